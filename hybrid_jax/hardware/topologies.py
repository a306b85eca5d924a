"""Which tori of TPUs there are."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

from hybrid_jax.errors import UserError
from hybrid_jax.hardware.chips import Chip

LARGEST_DIM = {2: 16, 3: 96}
"""By the dims of the torus: a pod of v5e or v6e is 16 by 16; cubes can stand in a row."""

_HOST = {2: (2, 4), 3: (2, 2, 1)}  # the chips of one host
_BOARD = {2: (2, 2), 3: (2, 2, 1)}  # what slices of several hosts are made of


def wrapped_dims(shape: tuple[int, ...], chip: Chip) -> tuple[bool, ...]:
    """Whether each dim of a slice closes to a ring.

    Optical switches close the dims of whole 4x4x4 cubes, all of them or none; a pod of v5e or v6e
    is wired as rings of 16, which a slice has along a dim that spans the pod.

    >>> from hybrid_jax.hardware.chips import CHIPS
    >>> wrapped_dims((4, 4, 8), CHIPS["v5p"]), wrapped_dims((2, 4, 4), CHIPS["v5p"])
    ((True, True, True), (False, False, False))
    >>> wrapped_dims((8, 16), CHIPS["v5e"])
    (False, True)
    """
    rings = tuple(size % chip.wrap == 0 for size in shape)
    return (all(rings),) * len(rings) if chip.torus_dims == 3 else rings


def host_bounds(shape: tuple[int, ...], chip: Chip) -> tuple[int, ...]:
    """The part of a slice that one host drives: all of a small slice, or one board.

    >>> from hybrid_jax.hardware.chips import CHIPS
    >>> host_bounds((2, 4), CHIPS["v5e"]), host_bounds((4, 4), CHIPS["v5e"])
    ((2, 4), (2, 2))
    """
    return shape if math.prod(shape) <= chip.host else _BOARD[chip.torus_dims]


def check_torus(shape: tuple[int, ...], chip: Chip, text: str) -> None:
    """Raises a UserError, with the nearest torus there is, unless a slice has this shape.

    Args:
      text: what the user wrote.
    """
    problem = _problem(shape, chip)
    if problem:
        nearest = _named(chip, _nearest(shape, chip))
        raise UserError(f"devices={text!r}: {problem}: use {nearest!r}, say.")


def torus_of(count: int, chip: Chip, text: str) -> tuple[int, ...]:
    """Returns the most even torus of `count` chips.

    Raises:
      UserError: there is none; the message names the nearest counts.
    """
    tori = {math.prod(shape): shape for shape in reversed(_tori(chip))}
    if count in tori:
        return tori[count]
    below = max((other for other in tori if other < count), default=None)
    above = min((other for other in tori if other > count), default=None)
    nearest = " or ".join(
        repr(_named(chip, tori[other])) for other in (below, above) if other is not None
    )
    more = "; write the slices as one number more" if above is None else ""
    raise UserError(
        f"devices={text!r}: no {chip.torus_dims}-dimensional torus of {count} {chip.name} chips: "
        f"use {nearest}, or write the topology{more}."
    )


def _problem(shape: tuple[int, ...], chip: Chip) -> str:
    """What is wrong with a shape, or nothing."""
    for size in shape:
        if size not in (1, 2) and size % 4:
            return f"dim {size} of a {chip.name} torus must be 1, 2 or a multiple of 4"
    count = math.prod(shape)
    if count > chip.domain:
        return (
            f"a {chip.name} slice has at most {chip.domain} chips, not {count}; several slices "
            "are written with one number more"
        )
    largest = LARGEST_DIM[chip.torus_dims]
    if max(shape) > largest:
        return f"dim {max(shape)} of a {chip.name} torus must be at most {largest}"
    if chip.torus_dims == 3 and max(shape) > 4 and any(size % 4 for size in shape):
        return f"a {chip.name} slice beyond 4x4x4 is made of such cubes"
    host, board = _HOST[chip.torus_dims], _BOARD[chip.torus_dims]
    on_host = all(a <= b for a, b in zip(sorted(shape), sorted(host), strict=True))
    of_boards = all(size % part == 0 for size, part in zip(shape, board, strict=True))
    # libtpu lays the dims of a host first: 1x2x2 is no v5p host, though 2x2x1 is.
    if (on_host and (shape[-1] == 1 or chip.torus_dims == 2)) or of_boards:
        return ""
    whole, part = ("x".join(map(str, sizes)) for sizes in (host, board))
    return f"a {chip.name} slice is part of one host, {whole}, or made of {part}"


@lru_cache
def _tori(chip: Chip) -> tuple[tuple[int, ...], ...]:
    """Every torus whose dims grow (on one host: fall), the most even first among equal counts."""
    sizes = (1, 2, *range(4, LARGEST_DIM[chip.torus_dims] + 1, 4))
    found = [
        shape
        for ordered in itertools.combinations_with_replacement(sizes, chip.torus_dims)
        if math.prod(ordered) <= chip.domain
        for shape in dict.fromkeys((ordered, ordered[::-1]))
        if not _problem(shape, chip)
    ]
    return tuple(
        sorted(found, key=lambda shape: (math.prod(shape), max(shape) / min(shape), shape))
    )


def _nearest(shape: tuple[int, ...], chip: Chip) -> tuple[int, ...]:
    """The torus whose chips, and then whose dims, come nearest to `shape`'s."""

    def distance(other: tuple[int, ...]) -> tuple[float, float]:
        counts = math.log(math.prod(other) / math.prod(shape))
        dims = zip(sorted(other), sorted(shape), strict=True)
        return abs(counts), sum(abs(math.log(a / b)) for a, b in dims)

    return min(_tori(chip), key=distance)


def _named(chip: Chip, shape: tuple[int, ...]) -> str:
    return f"{chip.name}:{'x'.join(map(str, shape))}"
