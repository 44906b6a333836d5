"""Hypothesis strategies for logits, labels and settings; random feature maps."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

# Few examples are enough: each has up to four samples, and other tests accompany every test with examples.
examples = settings(deadline=None, max_examples=40)
temperatures = st.floats(0.25, 20)
weights = st.floats(0, 20, width=16)


@st.composite
def logit_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """s and t, float64 (B, C) within ±1e4 and often near each other, and y (B,); B 1 to 4, C 2 to 6."""
    batch, classes = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    logits = st.one_of(st.floats(-10, 10, width=16), st.floats(-1e4, 1e4, width=16))
    rows = st.lists(st.lists(logits, min_size=classes, max_size=classes), min_size=batch, max_size=batch)
    s, t = (torch.tensor(draw(rows), dtype=torch.float64) for _ in range(2))
    labels = st.lists(st.integers(0, classes - 1), min_size=batch, max_size=batch)
    return s, t, torch.tensor(draw(labels))


def random_maps(*sizes: tuple[int, int], batch: int = 2, channels: int = 3, seed: int = 0) -> list[Tensor]:
    """A normal float64 (batch, channels, height, width) for each size (height, width)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, *size, dtype=torch.float64, generator=generator) for size in sizes]
