"""``timm/NAME``: adapts the classifiers of timm, convolutional or token-based, to our protocol."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from classification.models.library_model import LibraryModel, is_close, pools_linearly, probe_image, probing
from classification.models.protocol import ModelOutput
from kd_det.common.errors import SetupError, did_you_mean

# What timm and the model hub raise for unknown names, wrong sizes and unfit files.
FAILURES = (OSError, RuntimeError, ValueError, TypeError, AssertionError, KeyError, IndexError)


class TimmModel(LibraryModel):
    """The map is the input of timm's pooling, without class tokens; ``pooled`` is the input of timm's classifier.

    Stages are timm's: the last map of each size, from a quarter of the image's size on. Models whose maps all have one
    size (ViT, Mixer) give four evenly spaced blocks, the last one included. Models without timm's
    ``forward_intermediates`` have one stage, the map.

    ``classifier`` is None where the logits are not the output of one linear layer (distilled DeiT averages two).
    ``pools_linearly`` is determined by a forward pass when the model is built.
    """

    def __init__(self, name: str, num_classes: int, *, pretrained: bool = False, image_size: int | None = None) -> None:
        super().__init__(_build(name, num_classes, pretrained, image_size))
        config = self.model.pretrained_cfg
        self.input_mean, self.input_std = tuple(config["mean"]), tuple(config["std"])
        self.has_own_classifier = pretrained and config.get("num_classes") == num_classes
        self.levels = _levels(self.model)
        self.one_linear_layer = False
        size = image_size or config["input_size"][-1]
        try:
            self._look(name, num_classes, probe_image(size))
        except SetupError:
            raise
        except FAILURES as error:
            raise SetupError(f"timm/{name} does not take {size}x{size} images: {error}") from error

    @property
    def classifier(self) -> nn.Linear | None:
        return self.model.get_classifier() if self.one_linear_layer else None

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | ModelOutput:
        if not return_features:
            logits = self.model(x)
            self._inputs.clear()
            return logits
        final, stages = self._trunk(x)
        pooled = self.model.forward_head(final, pre_logits=True)
        classifier = self.classifier
        logits = self.model.forward_head(final) if classifier is None else classifier(pooled)
        feature_map = self._to_map(final, stages[-1].shape[2:] if stages else None)
        stages = stages or [feature_map]
        return ModelOutput(logits, feature_map, pooled, stages, self.take_preactivations(stages))

    def _trunk(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """timm's final features, in its own layout, and the stage maps."""
        if self.levels is None:
            return self.model.forward_features(x), []
        return self.model.forward_intermediates(x, indices=self.levels)

    def _to_map(self, final: Tensor, size: torch.Size | None) -> Tensor:
        """Final features as (B, D, H, W). Tokens (B, N, D) are laid out as a map of ``size``, the last stage's."""
        if final.ndim == 4:
            return final.permute(0, 3, 1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else final
        tokens = final[:, getattr(self.model, "num_prefix_tokens", 0) :]
        if size is None:
            size = torch.Size([round(tokens.shape[1] ** 0.5)] * 2)
        return tokens.transpose(1, 2).unflatten(2, size)

    def _look(self, name: str, num_classes: int, image: Tensor) -> None:
        """Runs the model on one image to check that it fits the protocol."""
        classifier = self.model.get_classifier()
        seen: list[Tensor] = []
        with probing(self.model):
            if isinstance(classifier, nn.Linear):
                handle = classifier.register_forward_hook(lambda _, args, output: seen.extend((args[0], output)))
            logits = self.model(image)
            if isinstance(classifier, nn.Linear):
                handle.remove()
            if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
                raise SetupError(f"timm/{name} is no classifier: it does not return logits of {num_classes} classes.")
            self.one_linear_layer = len(seen) == 2 and seen[1] is logits
            output = self(image, return_features=True)
            if not is_close(output.logits, logits):
                self.levels = None
                output = self(image, return_features=True)
        if output.map.ndim != 4 or not is_close(output.logits, logits):
            raise SetupError(f"timm/{name}: its features are not a map, or its logits do not come from them.")
        self.pools_linearly = self.one_linear_layer and pools_linearly(self, image)
        self.find_stage_ends(image)


def _build(name: str, num_classes: int, pretrained: bool, image_size: int | None) -> nn.Module:
    settings = _settings(name, pretrained, image_size)
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **settings)
    except FAILURES as error:
        wanted = " with its pretrained weights" if pretrained else ""
        wanted += f" for {image_size}x{image_size} images" if settings else ""
        raise SetupError(f"timm/{name} cannot be created{wanted}: {type(error).__name__}: {error}") from error
    if not hasattr(model, "forward_head") or not hasattr(model, "get_classifier"):
        raise SetupError(f"timm/{name} is no classifier: its head cannot be separated from its features.")
    return model


def _settings(name: str, pretrained: bool, image_size: int | None) -> dict[str, Any]:
    """What ``timm.create_model`` takes besides name and classes."""
    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models())
        raise SetupError(f"timm/{name} does not exist in timm {timm.__version__}.{near}")
    try:
        config = timm.models.get_pretrained_cfg(name)
    except FAILURES as error:
        tags = ", ".join(timm.list_pretrained(name.split(".")[0])) or "none"
        raise SetupError(f"timm/{name}: {error} With pretrained weights: {tags}.") from error
    if pretrained and not (config and config.has_weights):
        raise SetupError(f"PRETRAINED: timm has no weights of {name}; set it to False, or take another model.")
    fixed = image_size and config and config.fixed_input_size and image_size != config.input_size[-1]
    return {"img_size": image_size} if fixed else {}


def _levels(model: Any) -> list[int] | None:
    """The indices of timm's intermediate maps that are the stages."""
    if not hasattr(model, "forward_intermediates"):
        return None
    reductions = [level["reduction"] for level in model.feature_info]
    last = {reduction: i for i, reduction in enumerate(reductions)}
    if len(last) == 1:
        wanted = min(4, len(reductions))
        return [(i + 1) * len(reductions) // wanted - 1 for i in range(wanted)]
    return sorted(i for reduction, i in last.items() if reduction >= 4)
