"""ROI heads that hand over what their box head predicted, so that it need not run a second time to be distilled."""

from __future__ import annotations

from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, cat, no_grad

from kd_det.modeling.regions import StudentRegions


@ROI_HEADS_REGISTRY.register()
class DistillROIHeads(StandardROIHeads):
    """``StandardROIHeads`` with ``forward_with_regions``. Parameters, names and inference are the parent's."""

    def forward_with_regions(
        self, images: ImageList, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> tuple[list[Instances], dict[str, Tensor], list[StudentRegions]]:
        """The training forward: what ``StandardROIHeads.forward`` gives, and the regions it was computed on.

        Args:
            images, features, proposals, targets: as ``StandardROIHeads.forward``.

        Returns:
            the sampled proposals, the losses of the box, mask and keypoint heads, and one ``StudentRegions``.
        """
        del images
        proposals = self.label_and_sample_proposals(proposals, targets)
        # A list of its own: TRAIN_ON_PRED_BOXES puts other boxes into the proposals below.
        boxes = [instances.proposal_boxes for instances in proposals]
        predictions = self._predict_boxes(features, boxes)
        logits = predictions[0]
        labels = cat([instances.gt_classes for instances in proposals])

        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            self._replace_boxes(predictions, proposals)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses, [StudentRegions(boxes, logits, labels)]

    def _predict_boxes(self, features: dict[str, Tensor], boxes: list[Boxes]) -> tuple[Tensor, Tensor]:
        pooled = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        return self.box_predictor(self.box_head(pooled))

    @no_grad()
    def _replace_boxes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> None:
        predicted = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
        for instances, boxes in zip(proposals, predicted, strict=True):
            instances.proposal_boxes = Boxes(boxes)
