"""The command lines around training: export, check data sets, visualize, store and import a teacher's knowledge."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence

from kd_det.common.command_line import UpToOverrides, add_config_file, command_parser, parse_arguments
from kd_det.common.errors import one_line_errors
from kd_det.common.signals import end_at_once, noting_signals
from kd_det.data.coco_json import add_dataset_option, parse_option
from kd_det.data.knowledge_format import DTYPES
from kd_det.data.knowledge_writer import SHARD_IMAGES
from kd_det.data.predictions import SCORES
from kd_det.engine import knowledge, predictions
from kd_det.engine.dataset_check import check_sets
from kd_det.engine.launch import launch
from kd_det.engine.setup import read_setup
from kd_det.engine.visualization import visualize as draw
from kd_det.export import FORMATS, Exported, export_student
from kd_det.export.formats import needs_kd_det

AFTER_DEMO = "(after kd-det demo:)"
TIMM_NOTE = """The backbone is timm's: whoever builds the student from config.yaml and model.pth needs kd_det (import
kd_det.modeling, and read the configuration with kd_det.config.load_config). TorchScript and ONNX do not need it."""
NOTHING_COMPARED = "nothing was detected on these images, so nothing was compared; name others with --image"


def export(arguments: Sequence[str] | None = None) -> None:
    """Writes a trained student for use without kd_det, and compares each file with the model that was trained."""
    parser = command_parser(
        "kd-det export",
        "Writes a trained student for use without kd_det, and compares each file with the model that was trained.",
        "kd-det export --config-file coco/dkd_r101_r18.yaml --weights output/coco/dkd_r101_r18/model_final.pth \\",
        "    --output output/export/r18",
        AFTER_DEMO,
        "kd-det export --config-file digits_det/dkd.yaml --weights output/demo/dkd/seed1/model_final.pth \\",
        "    --output output/export/digits",
    )
    add_config_file(parser, required=True, help="the configuration that the student was trained with")
    parser.add_argument("--weights", required=True, help="its checkpoint, model_final.pth")
    parser.add_argument("--output", required=True, help="the folder to write to")
    formats = f"of {', '.join(FORMATS)}; default: {' '.join(FORMATS[:2])}"
    parser.add_argument(
        "--format", nargs="+", action=UpToOverrides, default=list(FORMATS[:2]), metavar="FORMAT", help=formats
    )
    images = "images to compare on; default: scikit-learn's two"
    parser.add_argument("--image", nargs="+", action=UpToOverrides, default=[], help=images)
    parser.add_argument("--device", default="cpu", help="where the exported student runs; a trace is bound to it")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the configuration, last of all")
    with one_line_errors():
        _export(parse_arguments(parser, arguments))


def _export(args: argparse.Namespace) -> None:
    cfg = read_setup(args.config_file, [*args.opts, "MODEL.DEVICE", args.device])
    written = []
    try:
        for exported in export_student(cfg, args.weights, args.output, args.format, args.image):
            print(_line(exported), flush=True)
            written.append(exported)
    finally:
        if written and needs_kd_det(cfg):
            print(TIMM_NOTE)


def _line(exported: Exported) -> str:
    files = ", ".join(str(path) for path in exported.files)
    verdict = NOTHING_COMPARED if exported.detections == 0 else (
        f"largest difference over {exported.detections} detections: boxes {exported.boxes:.2g} pixels, "
        f"scores {exported.scores:.2g}"
    )  # fmt: skip
    return f"{exported.format}: {files}\n    {verdict}"


def check_data(arguments: Sequence[str] | None = None) -> None:
    """Reports on data sets in COCO format. Exit code 0, 1 or 2: see ``kd-det check-data --help``."""
    parser = command_parser(
        "kd-det check-data",
        "Reports on data sets in COCO format: classes, box sizes, faults, duplicates, and the teacher's classes beside "
        "them.\n\nExit code 0; 1 if a fault would stop training; 2 if a set cannot be looked at.",
        "kd-det check-data --dataset mine=annotations.json,images --sizes",
        "kd-det check-data --config-file my_student.yaml --dataset mine_train=train.json,images",
        "kd-det check-data --config-file digits_det/dkd.yaml",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered sets (default: all that are given)")
    add_config_file(parser, help="a student's configuration: its sets, its teacher's classes")
    add_dataset_option(parser)
    parser.add_argument("--sizes", action="store_true", help="decode every image as training does")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs, after all else")
    with one_line_errors():
        args = parse_arguments(parser, arguments)
        cfg = read_setup(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"], args.dataset)
        own = [parse_option(text)[0] for text in args.dataset]
        given = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *cfg.DATASETS.UNLABELED, *own]
        report, stops = check_sets(cfg, args.names or given, sizes=args.sizes, with_model=bool(args.config_file))
        print(report)
        sys.exit(1 if stops else 0)


def visualize(arguments: Sequence[str] | None = None) -> None:
    """Draws ground truth, teacher and student side by side, one PNG for each image."""
    parser = command_parser(
        "kd-det visualize",
        "Draws ground truth, teacher and student side by side, one PNG for each image.",
        "kd-det visualize --config-file coco/dkd_r101_r18.yaml --weights output/model_final.pth \\",
        "    --input datasets/coco/val2017/000000000139.jpg my_images --output output/pictures",
        AFTER_DEMO,
        "kd-det visualize --config-file digits_det/dkd.yaml --weights output/demo/dkd/seed1/model_final.pth \\",
        "    --input datasets/digits_det/val --output output/pictures \\",
        "    KD.TEACHER.WEIGHTS output/demo/teacher/seed1/model_final.pth",
    )
    add_config_file(parser, required=True, help="the student's configuration")
    parser.add_argument("--weights", default="", help="the student's checkpoint (default OUTPUT_DIR/model_final.pth)")
    inputs = "images, and folders whose images, sub-folders' too, are drawn"
    parser.add_argument(
        "--input", nargs="+", action=UpToOverrides, required=True, metavar="IMAGE_OR_FOLDER", help=inputs
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score to draw (default 0.5)")
    add_dataset_option(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the configuration, last of all")
    with one_line_errors():
        args = parse_arguments(parser, arguments)
        cfg = read_setup(args.config_file, args.opts, args.dataset)
        datasets = [parse_option(text)[0] for text in args.dataset]
        for path in draw(cfg, args.weights, args.input, args.output, args.threshold, datasets):
            print(path)


def store_teacher(arguments: Sequence[str] | None = None) -> None:
    """Stores what teachers know about the training images of a student's configuration."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = command_parser(
        "kd-det store-teacher",
        "Stores what a teacher knows about each training image of a student's configuration: its boxes, best first,\n"
        "and its class probabilities on them and on the objects. Train from it with KD.TEACHER.STORED. Run it again\n"
        "to continue after an interruption, to add images, or to repair files.",
        "kd-det store-teacher --config-file coco/dkd_r101_r18.yaml --top-k 8 --num-gpus 8 --output output/knowledge",
        AFTER_DEMO,
        "kd-det store-teacher --config-file digits_det/dkd.yaml --output output/knowledge \\",
        "    KD.TEACHER.WEIGHTS output/demo/teacher/seed1/model_final.pth",
        "kd-det store-teacher --config-file digits_det/dkd.yaml --views flip 128 160 \\",
        "    --teacher digits_det/teacher.yaml output/demo/teacher/seed1/model_final.pth \\",
        "    --teacher digits_det/teacher.yaml output/demo/teacher/seed2/model_final.pth --output output/averaged",
    )
    add_config_file(parser, required=True, help="the student's configuration: its training sets, its teacher")
    teacher = (
        "CONFIG_FILE [WEIGHTS] [KEY VALUE ...], a teacher in place of the configuration's; several are averaged. A zoo "
        "name needs no WEIGHTS. The pairs, up to the next option, override its configuration; KD.TEACHER.CLASS_MAP may "
        "be among them"
    )
    parser.add_argument("--teacher", nargs="+", action="append", default=[], metavar="VALUE", help=teacher)
    views = (
        "short sides, and flip for a mirrored one of each; the probabilities are averaged (default: as at test time)"
    )
    parser.add_argument("--views", nargs="+", action=UpToOverrides, default=[], metavar="VIEW", help=views)
    _add_storing_options(parser)
    parser.add_argument("--images", type=int, metavar="N", help="only the first N of each set, for a trial")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes; with MODEL.DEVICE cpu, on the CPU")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the configuration, last of all")
    with one_line_errors(), noting_signals(end_at_once):
        args = _storing_arguments(parser, "store-teacher", arguments)
        launch(knowledge.store_teacher, args)


def import_teacher(arguments: Sequence[str] | None = None) -> None:
    """Makes stored knowledge of any detector's predictions."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = command_parser(
        "kd-det import-teacher",
        "Makes stored knowledge of any detector's predictions for the images of training sets. The file is in COCO's\n"
        "result format: [{image_id, bbox: [x, y, width, height], category_id, score}]. A full vector, scores: [...],\n"
        "in the order of the categories' ids, may stand for category_id and score. With the winner's score alone, the\n"
        "rest is spread evenly.",
        "kd-det import-teacher predictions.json --config-file my_student.yaml --output output/knowledge",
        "kd-det import-teacher yolo.json --config-file my_student.yaml --scores sigmoid --categories coco.json \\",
        "    --output output/knowledge --opts KD.TEACHER.CLASS_MAP \"['*', 'pedestrian=person']\"",
    )
    parser.add_argument("predictions", metavar="PREDICTIONS.json", help="the detections")
    add_config_file(parser, required=True, help="the student's configuration: its training sets and classes")
    parser.add_argument("--set", default="", metavar="NAME", help="one of the sets (default: all that are trained on)")
    scores = "softmax: the background has the rest of 1; sigmoid: logits log(p / (1 - p)), the background's 0"
    parser.add_argument("--scores", default=SCORES[0], metavar="KIND", help=f"{scores} (default: {SCORES[0]})")
    categories = "a JSON with the categories of the predictions (default: the data set's own)"
    parser.add_argument("--categories", default="", metavar="JSON", help=categories)
    _add_storing_options(parser)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs, after all else")
    with one_line_errors(), noting_signals(end_at_once):
        predictions.import_teacher(_storing_arguments(parser, "import-teacher", arguments))


def _add_storing_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder of knowledge")
    boxes = "boxes of an image, beside its objects' own (default: 128)"
    parser.add_argument("--boxes", type=int, default=128, metavar="N", help=boxes)
    top_k = "logits of a box; the mass of the rest is kept as one number (default: 0, all)"
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help=top_k)
    dtype = f"precision of the stored log-probabilities, {' or '.join(DTYPES)} (default: float16)"
    parser.add_argument("--dtype", default="float16", metavar="DTYPE", help=dtype)
    shard = f"images in a file, which a process loses at most if it is killed (default: {SHARD_IMAGES})"
    parser.add_argument("--shard-images", type=int, default=SHARD_IMAGES, metavar="N", help=shard)
    add_dataset_option(parser)


def _storing_arguments(parser: argparse.ArgumentParser, verb: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser.set_defaults(num_machines=1, machine_rank=0, dist_url="auto")
    args = parse_arguments(parser, arguments)
    args.command = f"kd-det {verb} {shlex.join(_without_images(arguments))}"
    return args


def _without_images(arguments: Sequence[str]) -> Iterator[str]:
    """Without ``--images N``: messages repeat the command to make a folder complete."""
    left = iter(arguments)
    for argument in left:
        if argument == "--images":
            next(left, None)
        elif not argument.startswith("--images="):
            yield argument
