"""A detector that is not Detectron2's: torchvision's Faster R-CNN, trained on a COCO JSON, and its predictions.

It writes two files in COCO's result format for the training images. ``WINNERS`` is what users of any detector have: its
detections, each with the winner's score. ``VECTORS`` is what they can have with a little work: whole score vectors, and
these of the best proposals too.

python -m kd_det.studies.torchvision_detector --train train.json images/ --val val.json images/ --output output/detector
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor
from torchvision.datasets import CocoDetection
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import pil_to_tensor

from kd_det.common.command_line import command_parser, parse_arguments
from kd_det.common.errors import one_line_errors, whole_number
from kd_det.common.files import write_json

logger = logging.getLogger(__name__)

WINNERS, VECTORS, RESULT = "winners.json", "vectors.json", "detector.json"
IMAGE_SIZE = 128  # short and long side that the detector resizes to, as the digits scenes have it
CHANNELS, HIDDEN = 64, 256  # of the FPN and of the box head
ANCHORS = ((16,), (24,), (32,), (48,), (96,))  # of the levels of stride 4, 8, 16, 32 and 64
LEAST_SCORE = 0.05  # of a detection
PROPOSALS = 50  # of an image, in VECTORS
BATCH_SIZE, MAX_LR, SEED = 8, 0.001, 0

Targets = dict[str, Tensor]


class Images:
    """The images and boxes of a COCO JSON, in memory.

    Args:
        json_file: its annotations. Classes are numbered from 1 in the order of the categories' ids.
        folder: of its images.

    Attributes:
        ids: of the images, in order.
        pixels: of each a tensor (3, H, W) float32, RGB from 0 to 1.
        targets: of each "boxes" (N, 4) float32, XYXY, and "labels" (N,) int64.
        categories: the categories' ids, in order.
    """

    def __init__(self, json_file: str, folder: str) -> None:
        data = CocoDetection(folder, json_file)
        self.ids = list(data.ids)
        self.categories = sorted(data.coco.cats)
        self.pixels, self.targets = [], []
        for image, objects in data:
            self.pixels.append(pil_to_tensor(image.convert("RGB")).float() / 255)
            boxes = torch.tensor([each["bbox"] for each in objects], dtype=torch.float32).reshape(-1, 4)
            labels = torch.tensor([1 + self.categories.index(each["category_id"]) for each in objects])
            self.targets.append({"boxes": box_convert(boxes, "xywh", "xyxy"), "labels": labels.long()})


def build_detector(num_classes: int) -> FasterRCNN:
    """A narrow ResNet-18 FPN Faster R-CNN with random weights, for small images.

    Args:
        num_classes: without the background.
    """
    layers = {f"layer{number}": str(number - 1) for number in (1, 2, 3, 4)}
    backbone = BackboneWithFPN(resnet18(weights=None), layers, [64, 128, 256, 512], CHANNELS)
    anchors = AnchorGenerator(ANCHORS, ((1.5,),) * len(ANCHORS))
    head = TwoMLPHead(CHANNELS * 7**2, HIDDEN)
    return FasterRCNN(
        backbone, box_head=head, box_predictor=FastRCNNPredictor(HIDDEN, num_classes + 1), min_size=IMAGE_SIZE,
        max_size=IMAGE_SIZE, rpn_anchor_generator=anchors, rpn_batch_size_per_image=64, box_batch_size_per_image=64,
        rpn_pre_nms_top_n_train=300, rpn_post_nms_top_n_train=100, rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=PROPOSALS, box_score_thresh=LEAST_SCORE,
    )  # fmt: skip


def train(detector: FasterRCNN, images: Images, iterations: int, device: str) -> None:
    """Trains with AdamW and a one-cycle learning rate."""
    detector.to(device).train()
    optimizer = torch.optim.AdamW(detector.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, iterations)
    order = torch.Generator().manual_seed(SEED)
    start = time.perf_counter()
    for step in range(1, iterations + 1):
        chosen = torch.randint(len(images.ids), (BATCH_SIZE,), generator=order).tolist()
        targets = [{key: value.to(device) for key, value in images.targets[index].items()} for index in chosen]
        losses = detector([images.pixels[index].to(device) for index in chosen], targets)
        loss = sum(losses.values())
        if not loss.isfinite():
            raise RuntimeError(f"non-finite loss of the detector in iteration {step}: {losses}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == iterations:
            seconds = (time.perf_counter() - start) / step
            logger.info("detector %d/%d: loss %.3f, %.3f s/iter", step, iterations, loss.item(), seconds)


@torch.no_grad()
def predict(detector: FasterRCNN, pixels: Tensor) -> tuple[Targets, Tensor, Tensor]:
    """What the detector finds in an image (3, H, W).

    Returns:
        Its detections ("boxes", "labels", "scores"); the boxes (N, 4), XYXY in the image's pixels, of its detections
        and then of its proposals; and the softmax (N, K+1) on all these, the background first.
    """
    (found,) = detector([pixels])
    resized, _ = detector.transform([pixels])
    features = detector.backbone(resized.tensors)
    ((proposals,), _) = detector.rpn(resized, features)
    scale = resized.image_sizes[0][1] / pixels.shape[2], resized.image_sizes[0][0] / pixels.shape[1]
    to_resized = proposals.new_tensor(scale * 2)
    boxes = torch.cat([found["boxes"] * to_resized, proposals])
    pooled = detector.roi_heads.box_roi_pool(features, [boxes], resized.image_sizes)
    logits, _ = detector.roi_heads.box_predictor(detector.roi_heads.box_head(pooled))
    return found, boxes / to_resized, logits.softmax(1)


def predictions(detector: FasterRCNN, images: Images, device: str) -> tuple[list[Any], list[Any]]:
    """The entries of ``WINNERS`` and of ``VECTORS`` for all images."""
    detector.to(device).eval()
    winners, vectors = [], []
    for number, pixels in zip(images.ids, images.pixels, strict=True):
        found, boxes, probabilities = predict(detector, pixels.to(device))
        labels, scores = found["labels"].tolist(), found["scores"].tolist()
        for box, label, score in zip(_xywh(found["boxes"]), labels, scores, strict=True):
            category = images.categories[label - 1]
            winners.append({"image_id": number, "category_id": category, "bbox": box, "score": score})
        for box, vector in zip(_xywh(boxes), probabilities[:, 1:].tolist(), strict=True):
            if min(box[2:]) > 0:
                vectors.append({"image_id": number, "bbox": box, "scores": vector})
    return winners, vectors


def average_precision(json_file: str, entries: list[Any]) -> float:
    """COCO AP of detections, in percent."""
    if not entries:
        return 0.0
    truth = COCO(json_file)
    evaluation = COCOeval_faster(truth, truth.loadRes(entries), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return 100 * float(evaluation.stats[0])


def _xywh(boxes: Tensor) -> list[list[float]]:
    listed: list[list[float]] = box_convert(boxes, "xyxy", "xywh").tolist()
    return listed


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: trains, and writes both files of predictions and the AP."""
    parser = command_parser(
        "python -m kd_det.studies.torchvision_detector",
        f"Trains torchvision's Faster R-CNN, and writes its predictions of the training images: {WINNERS} with the\n"
        f"winners' scores, {VECTORS} with whole score vectors; and {RESULT} with its AP and the boxes of an image.",
        "python -m kd_det.studies.torchvision_detector --train train.json images --val val.json images \\",
        "    --output output/detector",
    )
    for split in ("train", "val"):
        option = f"annotations and image folder to {'learn and predict' if split == 'train' else 'evaluate on'}"
        parser.add_argument(f"--{split}", nargs=2, required=True, metavar=("JSON", "FOLDER"), help=option)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--iterations", type=int, default=1500, metavar="N", help="default 1500")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    with one_line_errors():
        args = parse_arguments(parser, arguments)
        whole_number("--iterations", args.iterations, 1)
        logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%m/%d %H:%M:%S")
        torch.manual_seed(SEED)
        images, held_out = Images(*args.train), Images(*args.val)
        detector = build_detector(len(images.categories))
        train(detector, images, args.iterations, args.device)
        args.output.mkdir(parents=True, exist_ok=True)
        found = dict(zip((WINNERS, VECTORS), predictions(detector, images, args.device), strict=True))
        for name, entries in found.items():
            write_json(args.output / name, entries)
        ap = average_precision(args.val[0], predictions(detector, held_out, args.device)[0])
        boxes = {name: len(entries) / len(images.ids) for name, entries in found.items()}
        # Last: this file says that the others are complete.
        write_json(args.output / RESULT, {"AP": ap, "boxes_per_image": boxes})


if __name__ == "__main__":
    main()
