#!/usr/bin/env python
"""Writes a trained student for use without kd_det, and compares each file with the model that was trained.

python tools/export_student.py --config-file coco/dkd_r101_r18.yaml \\
    --weights output/coco/dkd_r101_r18/model_final.pth --output output/export/r18
"""

import argparse
from collections.abc import Sequence

from kd_det.common.command_line import UpToOverrides, add_config_file, parse_arguments
from kd_det.engine.setup import one_line_errors, read_setup
from kd_det.export import FORMATS, Exported, export_student
from kd_det.export.formats import needs_kd_det

TIMM_NOTE = """The backbone is timm's: whoever builds the student from config.yaml and model.pth needs kd_det (import
kd_det.modeling, and read the configuration with kd_det.config.load_config). TorchScript and ONNX do not need it."""
NOTHING_COMPARED = "nothing was detected on these images, so nothing was compared; name others with --image"


def main(arguments: Sequence[str] | None = None) -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    add_config_file(parser, required=True, help="the configuration that the student was trained with")
    parser.add_argument("--weights", required=True, help="its checkpoint, model_final.pth")
    parser.add_argument("--output", required=True, help="the folder to write to")
    several = {"nargs": "+", "action": UpToOverrides}
    formats = f"of {', '.join(FORMATS)}; default: {' '.join(FORMATS[:2])}"
    parser.add_argument("--format", **several, default=list(FORMATS[:2]), metavar="FORMAT", help=formats)
    parser.add_argument("--image", **several, default=[], help="images to compare on; default: scikit-learn's two")
    parser.add_argument("--device", default="cpu", help="where the exported student runs; a trace is bound to it")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the configuration, last of all")
    args = parse_arguments(parser, arguments)
    with one_line_errors():
        export(args)


def export(args: argparse.Namespace) -> None:
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


if __name__ == "__main__":
    main()
