import pytest
from detectron2.utils.events import EventStorage


@pytest.fixture(autouse=True)
def storage():
    """Detectron2's heads log to a storage while they train."""
    with EventStorage(0) as storage:
        yield storage
