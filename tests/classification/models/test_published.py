"""Names, order, shapes, totals and logits of the 23 networks that teacher checkpoints are published for."""

from __future__ import annotations

import pytest
import torch

from classification.models import create_model, model_names
from tests.classification.models.published import MODELS, fill, images


@pytest.mark.parametrize("name", MODELS)
def test_the_published_list(name):
    model = create_model(name, 100)
    ours = {key: "x".join(map(str, value.shape)) for key, value in model.state_dict().items()}
    assert list(ours.items()) == list(MODELS[name]["state_dict"].items())
    assert sum(parameter.numel() for parameter in model.parameters()) == MODELS[name]["parameters"]


@pytest.mark.parametrize("name", MODELS)
def test_the_published_logits(name):
    with torch.no_grad():
        logits = fill(create_model(name, 100))(images())
    published = torch.tensor(MODELS[name]["logits"], dtype=torch.float64)
    torch.testing.assert_close(logits[:, :3], published, rtol=0, atol=1e-7 * logits.abs().max().item())


def test_all_that_the_papers_use_are_there():
    others = {"wrn_16_4", "wrn_28_2", "wrn_28_4", "MobileNetV1"}  # without a published list
    assert set(model_names()) == set(MODELS) | others
    assert len(MODELS) == 23
