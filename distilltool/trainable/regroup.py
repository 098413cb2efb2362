"""Set a Reshape free that was written for one batch or one image size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

BATCH = 3  # the other probe's batch, as a multiple of the declared one; no side grows by it


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Axes of a tensor, `read` to `read_end`, that become those of another, `made` to `made_end`."""

    read: int
    read_end: int
    made: int
    made_end: int


def groups(before: Sequence[int], after: Sequence[int]) -> list[Group]:
    """The smallest groups of axes that hold the same count on both sides; both shapes hold the same count in all."""
    found, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        start_i, start_j = i, j
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while left != right:
            if left < right and i < len(before):
                left, i = left * before[i], i + 1
            elif j < len(after):
                right, j = right * after[j], j + 1
            else:
                left, i = left * before[i], i + 1
        found.append(Group(read=start_i, read_end=i, made=start_j, made_end=j))
    return found


Side = int | tuple[int, ...]  # a fixed side, or the product of these axes of what is reshaped


def freed(before: Sequence[int], there: Sequence[int], after: Sequence[int]) -> list[Side | None]:
    """The sides of a reshaped tensor where `before` is what is reshaped at the declared size and `there` at another.

    after: the sides at the declared size. A side that is None is whatever is left. A batch that was split goes to the
    first side it was split to; rows and columns to the first that is not 1 (windows are counted before what is in one).
    """
    sides: list[Side | None] = list(after)
    for one in groups(before, after):
        old, new = before[one.read : one.read_end], there[one.read : one.read_end]
        if tuple(old) == tuple(new):
            continue
        count = one.made_end - one.made
        if count == 1:
            moving = tuple(at for at in range(one.read, one.read_end) if before[at] != 1 or there[at] != 1)
            sides[one.made] = moving
        elif count > 1:
            sides[_moving(one, math.prod(old), math.prod(new), after)] = None
    return sides


def _moving(one: Group, old: int, new: int, after: Sequence[int]) -> int:
    """Which of several sides grows."""
    places = range(one.made, one.made_end)
    if new == BATCH * old:
        return one.made
    return next((at for at in places if after[at] != 1), one.made)
