"""``torchvision/NAME`` or ``torchvision/NAME.WEIGHTS``: adapts torchvision's classifiers to our protocol."""

from __future__ import annotations

import re
from typing import cast

import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from classification.models.library_model import LibraryModel, pools_linearly, probe_image, probing
from classification.models.protocol import ModelOutput
from kd_det.common.errors import SetupError, did_you_mean

# The blocks that torchvision's families are made of, and the graph nodes that pool a map to one position.
BLOCK = re.compile(r"(layer\d|stage\d|features\.(?:denseblock)?\d+|layers\.\d+|trunk_output\.block\d)(?=\.|$)")
POOLING = re.compile(r"(.*\.)?(avgpool|adaptive_avg_pool2d|mean)(_\d+)?")


class TorchvisionModel(LibraryModel):
    """Models that pool a map and end with one linear layer: ResNet, MobileNet, EfficientNet, RegNet, VGG ...

    torchvision's feature extraction traces the model, so that one forward pass returns everything. The map is the input
    of the pooling; ``pooled`` is the input of the last layer. Stages are the outputs of the last block at each map
    size, from a quarter of the image's size on, after the activation where blocks end with one (those of MobileNetV2
    and EfficientNet do not). The only stage is the map where blocks return no maps (Swin's are channels-last) or where
    there are no blocks.

    Pretrained weights are torchvision's latest, or those named after a dot: ``resnet50.IMAGENET1K_V1`` is the ResNet-50
    of the papers (76.1 % top-1 on ImageNet), ``resnet50`` a later one (80.9 %).

    ``pools_linearly`` is False where a layer lies between pooling and the last layer, such as MobileNetV2's dropout.
    """

    def __init__(self, name: str, num_classes: int, *, pretrained: bool = False, image_size: int | None = None) -> None:
        name, _, tag = name.partition(".")
        weights = _weights(name, tag or "DEFAULT")
        network, classifier, own = _build(name, num_classes, weights if pretrained else None)
        image = probe_image(image_size or 224)
        graphs = get_graph_node_names(network, suppress_diff_warning=True)  # in training, in evaluation
        ends = [_ends(name, nodes, classifier) for nodes in graphs]
        try:
            blocks = _stage_blocks(network, graphs, ends[1]["map"], image)
            wanted = [
                end | {block: _last(nodes, block) for block in blocks} for nodes, end in zip(graphs, ends, strict=True)
            ]
            super().__init__(_extractor(network, wanted))
            self.classifier_name = classifier
            self.stage_roles = [_role(wanted[1], block) for block in blocks]
            self.pools_linearly = pools_linearly(self, image)
            self.find_stage_ends(image)
        except (RuntimeError, AssertionError) as error:
            size = f"{image.shape[2]}x{image.shape[3]}"
            raise SetupError(f"torchvision/{name} does not take {size} images: {error}") from error
        transforms = weights.transforms()
        self.input_mean, self.input_std = tuple(transforms.mean), tuple(transforms.std)
        self.has_own_classifier = own

    @property
    def classifier(self) -> nn.Linear:
        return cast(nn.Linear, self.model.get_submodule(self.classifier_name))

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | ModelOutput:
        found = self.model(x)
        if not return_features:
            self._inputs.clear()
            return found["logits"]
        stages = [found[role] for role in self.stage_roles] or [found["map"]]
        return ModelOutput(found["logits"], found["map"], found["pooled"], stages, self.take_preactivations(stages))


def _weights(name: str, tag: str) -> WeightsEnum:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        version = torchvision.__version__
        raise SetupError(f"torchvision/{name} does not exist in torchvision {version}.{did_you_mean(name, known)}")
    tags = torchvision.models.get_model_weights(name).__members__
    if tag not in tags:
        raise SetupError(
            f"torchvision/{name} has no weights {tag!r}.{did_you_mean(tag, tags)} Known: {', '.join(tags)}."
        )
    return tags[tag]


def _build(name: str, num_classes: int, pretrained: WeightsEnum | None) -> tuple[nn.Module, str, bool]:
    """Returns the model, the name of its last linear layer, and whether that layer is pretrained."""
    if pretrained is None:
        network = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    else:
        try:
            network = torchvision.models.get_model(name, weights=pretrained)
        except (OSError, RuntimeError) as error:
            raise SetupError(f"PRETRAINED: the weights of torchvision/{name} cannot be fetched: {error}") from error
    linear = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise SetupError(_unfit(name))
    own = pretrained is not None and network.get_submodule(linear[-1]).out_features == num_classes
    if pretrained and not own:
        parent, _, key = linear[-1].rpartition(".")
        new = nn.Linear(network.get_submodule(linear[-1]).in_features, num_classes)
        setattr(network.get_submodule(parent), key, new)
    return network, linear[-1], own


def _ends(name: str, nodes: list[str], classifier: str) -> dict[str, str]:
    """The nodes of map, pooled and logits."""
    if nodes[-1] == classifier:
        poolings = [i for i, node in enumerate(nodes) if POOLING.fullmatch(node)]
        if poolings:
            return {"map": nodes[poolings[-1] - 1], "pooled": nodes[-2], "logits": nodes[-1]}
    raise SetupError(_unfit(name))


def _stage_blocks(network: nn.Module, graphs: tuple[list[str], list[str]], last: str, image: Tensor) -> list[str]:
    """The last block of each map size, from a quarter of the image's size on. ``last`` is the node of the map."""
    nodes = graphs[1][: graphs[1].index(last) + 1]
    blocks = dict.fromkeys(match[0] for node in nodes if (match := BLOCK.match(node)))
    wanted = [{block: _last(nodes, block) for block in blocks} for nodes in graphs]
    extractor = _extractor(network, wanted)
    with probing(extractor):
        maps = extractor(image)
    shapes = {block: maps[block].shape for block in blocks}
    # A square image has square maps, unless their channels come last.
    sizes = {height: block for block, (_, _, height, width) in shapes.items() if height == width}
    return [block for height, block in sizes.items() if 4 * height <= image.shape[2]]


def _extractor(network: nn.Module, wanted: list[dict[str, str]]) -> nn.Module:
    """The traced network. A node with several roles is returned once, under the first of them: see ``_role``."""
    train, evaluation = ({roles[_role(roles, role)]: _role(roles, role) for role in roles} for roles in wanted)
    return create_feature_extractor(
        network, train_return_nodes=train, eval_return_nodes=evaluation, suppress_diff_warning=True
    )


def _role(roles: dict[str, str], role: str) -> str:
    """The first role with the same node: the last stage often is the map."""
    return next(other for other, node in roles.items() if node == roles[role])


def _last(nodes: list[str], block: str) -> str:
    return [node for node in nodes if node == block or node.startswith(f"{block}.")][-1]


def _unfit(name: str) -> str:
    return (
        f"torchvision/{name} does not end with pooling a map and one linear layer that give the logits, which "
        "torchvision/ models must; timm/ has most networks as well."
    )
