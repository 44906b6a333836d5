"""Names of models in the names of files."""

from __future__ import annotations

import re


def short_name(name: str) -> str:
    """What file and configuration names call the model: ``res32x4`` for ``resnet32x4``, and ``/`` replaced by ``_``.

    Only the CIFAR networks called ``resnet...`` in lower case are shortened, so that no two models share a name.
    """
    return re.sub(r"^resnet(?=\d)", "res", name.replace("/", "_"))
