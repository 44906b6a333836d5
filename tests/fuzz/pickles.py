"""Damaged pickles: instructions cut out, repeated and put in, numbers replaced, bytes changed."""

from __future__ import annotations

import pickletools
import random
import struct

from tests.fuzz.harness import mutated

HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1)
NAMES = (
    "os system", "builtins eval", "builtins bytearray", "builtins bytes", "collections OrderedDict",
    "collections Counter", "_codecs encode", "numpy ndarray", "numpy dtype", "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray scalar", "numpy._core.numeric _frombuffer", "torch FloatStorage", "torch BoolStorage",
    "torch Size", "torch device", "torch float32", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    "torch._tensor _rebuild_from_type_v2", "torch.storage UntypedStorage", "torch Tensor",
)  # fmt: skip
VALUES = (
    b"N", b"\x88", b"\x89", b"K\x00", b"K\x02", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"G\x7f\xf8" + bytes(6),
    b")", b"]", b"}", b"\x8c\x01a", b"X\x01\x00\x00\x00\xff", b"\x8c\x02O8", b"\x8c\x02f4", b"\x8c\x06latin1",
    b"C\x04abcd", b"\x8a\x0a" + b"\xff" * 10, b"(K\x01K\x02t", b"(K\x00J\xff\xff\xff\x7ft",
)  # fmt: skip
ACTIONS = tuple(b"R b a e s u t ( 0 1 2 d l \x85 \x86 \x87 Q . \x81 \x93 \x94 \x8f h\x00 h\x05 q\x00".split(b" "))


def damaged_pickle(content: bytes, rng: random.Random) -> bytes:
    """``content``, one pickle, with one to three damages."""
    for _ in range(rng.randint(1, 3)):
        content = rng.choice((mutated, _rearranged, _added, _added, _renumbered))(content, rng)
    return content


def hostile_part(rng: random.Random) -> bytes:
    """A few instructions that ask for much, for code, or for nonsense."""
    kind, huge = rng.randrange(8), rng.choice(HUGE)
    if kind == 0:
        return b"r" + struct.pack("<I", min(huge, 2**32 - 1))
    if kind == 1:
        return rng.choice((b"\x8d", b"\x8e", b"\x95", b"\x96")) + struct.pack("<Q", huge)
    if kind == 2:
        return rng.choice((b"B", b"X", b"\x8b", b"T")) + struct.pack("<I", min(huge, 2**32 - 1))
    if kind == 3:
        return rng.choice((b"(", b"]", b"}", b"2", b"\x85", b"(l", b"N\x85")) * rng.choice((3, 1000, 100_000))
    if kind == 4:
        return b"]" + b"q\x07h\x07h\x07\x86" * rng.choice((2, 60))
    name = rng.choice(NAMES).encode().replace(b" ", b"\n")
    return b"c" + name + b"\n" + b"".join(rng.choice(VALUES + ACTIONS) for _ in range(rng.randint(0, 6)))


def _places(content: bytes) -> list[int]:
    places = []
    try:
        for _, _, place in pickletools.genops(content):
            places.append(place)
    except Exception:  # damaged already: the instructions up to here
        pass
    return places or [0]


def _rearranged(content: bytes, rng: random.Random) -> bytes:
    """A run of instructions removed, repeated, or moved."""
    places = [*_places(content), len(content)]
    first, second, third = sorted(rng.choices(places, k=3))
    return rng.choice(
        (
            content[:first] + content[second:],
            content[:second] + content[first:second] + content[second:],
            content[:first] + content[second:third] + content[first:second] + content[third:],
        )
    )


def _added(content: bytes, rng: random.Random) -> bytes:
    place = rng.choice(_places(content))
    part = hostile_part(rng) if rng.random() < 0.6 else rng.choice(VALUES + ACTIONS)
    return content[:place] + part + content[place:]


def _renumbered(content: bytes, rng: random.Random) -> bytes:
    """A number, the argument of an instruction, replaced."""
    numbers = [place for place in _places(content) if content[place : place + 1] in b"KMJIXBTqrhj\x8c\x8d\x8e"]
    if not numbers:
        return content
    place = rng.choice(numbers) + 1
    width = {b"K": 1, b"q": 1, b"h": 1, b"\x8c": 1, b"M": 2, b"\x8d": 8, b"\x8e": 8}.get(content[place - 1 : place], 4)
    value = rng.choice((0, 1, 3, 255, 2 ** (8 * width - 1) - 1, 2 ** (8 * width) - 1, rng.randrange(2 ** (8 * width))))
    return content[:place] + struct.pack("<Q", value % 2 ** (8 * width))[:width] + content[place + width :]
