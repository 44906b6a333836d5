from __future__ import annotations

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def catalogue():
    """Forgets the data sets that a test registered."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
