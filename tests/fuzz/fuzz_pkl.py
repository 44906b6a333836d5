"""Model zoo pickles: python tests/fuzz/fuzz_pkl.py --cases 1000"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from tests.fuzz.harness import Target, main
from tests.fuzz.pickles import damaged_pickle
from tests.fuzz.weights import load_in_both, zoo_pickles

whole = cache(zoo_pickles)


def make(rng: random.Random, folder: Path) -> Path:
    path = folder / "model.pkl"
    path.write_bytes(damaged_pickle(rng.choice(whole()), rng))
    return path


TARGET = Target("pkl", make, load_in_both)

if __name__ == "__main__":
    main(TARGET)
