"""``torchvision://resnet18`` and ``timm://mobilenetv2_100`` as checkpoint paths.

Importing this package registers both prefixes with Detectron2's ``PathManager``, beside its own ``detectron2://``.
"""

from kd_det.pretrained.weights import TimmHandler, TorchvisionHandler, convert_resnet, import_timm

__all__ = ["TimmHandler", "TorchvisionHandler", "convert_resnet", "import_timm"]
