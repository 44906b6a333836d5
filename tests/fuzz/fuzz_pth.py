"""Files of torch.save: python tests/fuzz/fuzz_pth.py --cases 1000"""

from __future__ import annotations

import io
import random
import zipfile
from functools import cache
from pathlib import Path

from tests.fuzz.harness import Target, main, mutated
from tests.fuzz.pickles import damaged_pickle
from tests.fuzz.weights import contents, load_in_both, saved


@cache
def whole() -> list[bytes]:
    return [saved(content, zipped=True) for content in contents()]


def make(rng: random.Random, folder: Path) -> Path:
    path = folder / "model.pth"
    content = rng.choice(whole())
    path.write_bytes(mutated(content, rng) if rng.random() < 0.2 else repacked(content, rng))
    return path


def repacked(content: bytes, rng: random.Random) -> bytes:
    """The archive with one member changed and the checksums right again; half of the time its pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        target = rng.choice([names[0]] * len(names) + names)
        for name in names:
            data, kind = old.read(name), rng.randrange(6)
            if name == target and name.endswith("data.pkl"):
                data = damaged_pickle(data, rng)
            elif name == target and kind == 0:
                continue
            elif name == target and kind == 1:
                new.writestr(name, bytes(50_000_000), zipfile.ZIP_DEFLATED)
                continue
            elif name == target and kind == 2:
                name = rng.choice(("archive/constants.pkl", "../x", "x" * 1000, "a", names[-1], names[0]))
            elif name == target:
                data = mutated(data, rng) if kind < 5 else rng.randbytes(rng.choice((0, 1, 3, 1000)))
            new.writestr(name, data)
    archive = file.getvalue()
    return mutated(archive, rng) if rng.random() < 0.1 else archive


TARGET = Target("pth", make, load_in_both)

if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("ignore", "Duplicate name", UserWarning)
    main(TARGET)
