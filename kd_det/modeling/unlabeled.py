"""Unlabelled images in a training step: the teacher's detections become their ground truth.

Detectron2's losses, and those of the KD terms, are means over the images that they are computed on (over the sampled
proposals, of which nearly every image has as many). A batch of n labelled and m unlabelled images has the loss
``(n * L(labelled) + m * L(unlabelled)) / (n + m)``, the mean over all its images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from detectron2.structures import ImageList, Instances
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor

from kd_det.common.errors import SetupError
from kd_det.data.image_sets import UNLABELED
from kd_det.data.stored import EMPTY
from kd_det.teacher.frozen import FrozenTeacher

SUFFIX = "_unlabeled"
# Detectron2's names of the losses of box regression; those of a Cascade's stages begin with the first.
BOX_REGRESSION = ("loss_box_reg", "loss_rpn_loc")
Losses = tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]  # the detector's own, and those of each term


@dataclass(frozen=True)
class UnlabeledImages:
    """How a detector is trained on unlabelled images.

    Attributes:
        thresholds: (K,) for the live teacher's detections; None: the items have their ground truth already.
        box_regression: whether their losses of box regression are taken.
    """

    thresholds: Tensor | None
    box_regression: bool

    def losses(self, batched_inputs: Sequence[dict[str, Any]], losses_of: Callable[..., Losses]) -> Losses:
        """The losses of a batch of labelled and unlabelled images.

        Args:
            batched_inputs: the items; those of unlabelled images are marked.
            losses_of: called with labelled items, and with unlabelled items and ``unlabeled``, this object.

        Raises:
            SetupError: the batch has no unlabelled or no labelled image, because another data loader made it.
        """
        labeled = [item for item in batched_inputs if not item.get(UNLABELED)]
        others = [item for item in batched_inputs if item.get(UNLABELED)]
        if not labeled or not others:
            raise SetupError(
                f"DATASETS.UNLABELED is set, but the batch has {len(labeled)} labelled and {len(others)} unlabelled "
                "images. Take the data loader of kd_det.engine.trainer.DistillTrainer.build_train_loader(cfg)."
            )
        own, terms = losses_of(labeled)
        with _logging_apart():
            own_of_others, terms_of_others = losses_of(others, unlabeled=self)
        if not self.box_regression:
            own_of_others = {k: v for k, v in own_of_others.items() if not k.startswith(BOX_REGRESSION)}
        share = len(labeled) / len(batched_inputs)
        together = {name: _weighted(part, share) for name, part in terms.items()}
        for name, part in terms_of_others.items():
            together[name] |= _weighted(part, 1 - share, SUFFIX)
        return _weighted(own, share) | _weighted(own_of_others, 1 - share, SUFFIX), together

    def labeled(
        self,
        batched_inputs: list[dict[str, Any]],
        teacher: FrozenTeacher | None,
        features: Mapping[str, Tensor],
        images: ImageList,
    ) -> list[dict[str, Any]]:
        """The items with "instances", their ground truth: what they have, or the live teacher's detections. Logs the
        number of boxes of an image.

        Args:
            batched_inputs: the items of unlabelled images.
            teacher, features: the live teacher and its maps of them.
            images: the student's input.
        """
        if self.thresholds is not None and teacher is not None:
            detections = teacher.detections(features, teacher.proposals(features, images))
            truth = [_above(found, self.thresholds.to(found.scores.device)) for found in detections]
            pairs = zip(batched_inputs, truth, strict=True)
            batched_inputs = [{**item, "instances": each.to("cpu")} for item, each in pairs]  # as of the data loader
        boxes = sum(len(item["instances"]) for item in batched_inputs)
        get_event_storage().put_scalar("boxes_per_image", boxes / len(batched_inputs))
        return batched_inputs


def _above(found: Instances, thresholds: Tensor) -> Instances:
    """The detections of an image above the thresholds, as ground truth; as Detectron2's mapper, without empty boxes."""
    above = found.scores > thresholds[found.pred_classes]
    kept = found[above & found.pred_boxes.nonempty(threshold=EMPTY)]
    return Instances(found.image_size, gt_boxes=kept.pred_boxes, gt_classes=kept.pred_classes)


def _weighted(losses: Mapping[str, Tensor], weight: float, suffix: str = "") -> dict[str, Tensor]:
    return {name + suffix: weight * value for name, value in losses.items()}


@contextmanager
def _logging_apart() -> Iterator[None]:
    """What is logged meanwhile gets the prefix "unlabeled/". Detectron2's names are those of the labelled images."""
    storage = get_event_storage()
    with EventStorage(storage.iter) as apart:
        yield
    for name, (value, _) in apart.latest().items():
        storage.put_scalar(f"unlabeled/{name}", value)
    for name, picture, _ in apart._vis_data:
        storage.put_image(f"unlabeled/{name}", picture)
