"""Files of torch.save from before PyTorch 1.6: python tests/fuzz/fuzz_legacy_pth.py --cases 1000"""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import struct
from functools import cache
from itertools import pairwise
from pathlib import Path

from tests.fuzz.harness import Target, main, mutated
from tests.fuzz.pickles import HUGE, damaged_pickle
from tests.fuzz.weights import contents, load_in_both, saved

PICKLES = 5


@cache
def whole() -> list[list[bytes]]:
    """The five pickles of each file, and what follows them."""
    return [_parts(saved(content, zipped=False)) for content in contents()]


def _parts(content: bytes) -> list[bytes]:
    file = io.BytesIO(content)
    places = [0]
    for _ in range(PICKLES):
        for _ in pickletools.genops(file):
            pass
        places.append(file.tell())
    places.append(len(content))
    return [content[first:last] for first, last in pairwise(places)]


def make(rng: random.Random, folder: Path) -> Path:
    parts = list(rng.choice(whole()))
    which = rng.choice((3, 3, 3, rng.randrange(PICKLES), PICKLES, PICKLES))
    if which < PICKLES:
        parts[which] = damaged_pickle(parts[which], rng)
    elif rng.random() < 0.5:
        parts[which] = struct.pack("=q", rng.choice((*HUGE, -1, 0, 1))) + parts[which][8:]
    else:
        parts[which] = mutated(parts[which], rng)
    if rng.random() < 0.05:
        parts = [pickle.dumps(rng.choice(HUGE), 2), *parts[1:]]
    path = folder / "model.pth"
    path.write_bytes(b"".join(parts))
    return path


TARGET = Target("legacy pth", make, load_in_both)

if __name__ == "__main__":
    main(TARGET)
