"""ROI heads that return the predictions of their box head, so that it runs only once for the losses and the KD terms.

Each is one of Detectron2's heads with ``forward_with_regions``; its parameters and its inference are the parent's.
"""

from __future__ import annotations

from dataclasses import replace

from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    Res5ROIHeads,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, cat, no_grad

from kd_det.modeling.regions import StudentRegions
from kd_det.modeling.stored import carry_rows, rows_of
from kd_det.teacher.box_stages import BoundBoxStage, BoxStage, box_stages

Trained = tuple[list[Instances], dict[str, Tensor], list[StudentRegions]]


@ROI_HEADS_REGISTRY.register()
class DistillROIHeads(StandardROIHeads):
    """``StandardROIHeads`` with ``forward_with_regions``."""

    def forward_with_regions(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances],
        *,
        boxes_only: bool = False,
    ) -> Trained:
        """The training forward: what ``forward`` returns, and the regions that it was computed on.

        Args:
            images, features, proposals, targets: as ``forward``.
            boxes_only: the targets have boxes and classes alone: only the box head is run.

        Returns:
            the sampled proposals, the losses of the box, mask and keypoint heads, and one ``StudentRegions`` for each
            box stage, of which there is one here.
        """
        del images
        proposals = self.label_and_sample_proposals(proposals, targets)
        # A list of their own, because TRAIN_ON_PRED_BOXES replaces the proposals' boxes below.
        boxes = [instances.proposal_boxes for instances in proposals]
        stage = box_stages(self)[0].on(features)
        predictions = stage.predictor(stage.head(stage.pool(boxes)))
        regions = _regions(stage, boxes, predictions[0], proposals)

        losses = self.box_predictor.losses(predictions, proposals)
        if boxes_only:
            return proposals, losses, [regions]
        if self.train_on_pred_boxes:
            self._replace_boxes(predictions, proposals)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses, [regions]

    @no_grad()
    def _replace_boxes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> None:
        predicted = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
        for instances, boxes in zip(proposals, predicted, strict=True):
            instances.proposal_boxes = Boxes(boxes)


@ROI_HEADS_REGISTRY.register()
class DistillCascadeROIHeads(CascadeROIHeads):
    """``CascadeROIHeads`` with ``forward_with_regions``: each stage's logits on that stage's own proposals."""

    def forward_with_regions(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances],
        *,
        boxes_only: bool = False,
    ) -> Trained:
        """As ``DistillROIHeads.forward_with_regions``, with one ``StudentRegions`` for each stage."""
        del images
        sampled = self.label_and_sample_proposals(proposals, targets)
        losses, regions = self._train_stages(features, sampled, targets)
        if not boxes_only:
            losses.update(self._forward_mask(features, sampled))
            losses.update(self._forward_keypoint(features, sampled))
        return sampled, losses, regions

    def _train_stages(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> tuple[dict[str, Tensor], list[StudentRegions]]:
        maps = [features[name] for name in self.box_in_features]
        losses: dict[str, Tensor] = {}
        regions: list[StudentRegions] = []
        predicted: list[Tensor] = []  # the refined boxes of the stage before
        for number, stage in enumerate(box_stages(self)):
            if number > 0:
                refined = self._create_proposals_from_boxes(predicted, [item.image_size for item in proposals])
                carry_rows(proposals, predicted, refined)
                proposals = self._match_and_label_boxes(refined, number, targets)
            predictions = self._run_stage(maps, proposals, number)
            predicted = self.box_predictor[number].predict_boxes(predictions, proposals)
            with get_event_storage().name_scope(f"stage{number}"):
                stage_losses = self.box_predictor[number].losses(predictions, proposals)
            losses.update({f"{name}_stage{number}": value for name, value in stage_losses.items()})
            boxes = [item.proposal_boxes for item in proposals]
            regions.append(_regions(self._averaged(stage).on(features), boxes, predictions[0], proposals))
        return losses, regions

    def _averaged(self, stage: BoxStage) -> BoxStage:
        """The stage, dividing the gradient of its pooled regions by the number of stages, as ``_run_stage`` does."""

        def head(pooled: Tensor) -> Tensor:
            if pooled.requires_grad:
                pooled.register_hook(lambda gradient: gradient / self.num_cascade_stages)
            return stage.head(pooled)

        return replace(stage, head=head)


@ROI_HEADS_REGISTRY.register()
class DistillRes5ROIHeads(Res5ROIHeads):
    """``Res5ROIHeads`` (C4) with ``forward_with_regions``."""

    def forward_with_regions(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances],
        *,
        boxes_only: bool = False,
    ) -> Trained:
        """As ``DistillROIHeads.forward_with_regions``; the mask head takes the box head's features."""
        del images
        proposals = self.label_and_sample_proposals(proposals, targets)
        boxes = [instances.proposal_boxes for instances in proposals]
        stage = box_stages(self)[0].on(features)
        box_features = self.res5(stage.pool(boxes))  # the mask head takes them before they are averaged
        predictions = stage.predictor(box_features.mean(dim=(2, 3)))
        regions = _regions(stage, boxes, predictions[0], proposals)

        losses = self.box_predictor.losses(predictions, proposals)
        if self.mask_on and not boxes_only:
            foreground, chosen = select_foreground_proposals(proposals, self.num_classes)
            losses.update(self.mask_head(box_features[cat(chosen)], foreground))
        return proposals, losses, [regions]


def _regions(
    stage: BoundBoxStage, boxes: list[Boxes], logits: Tensor, proposals: list[Instances]
) -> StudentRegions:
    return StudentRegions(boxes, logits, cat([item.gt_classes for item in proposals]), stage, rows_of(proposals))
