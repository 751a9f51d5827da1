"""The combinations of a matrix: named axes, a number for each combination, a seeded slice of them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

FULL = os.environ.get("PYSIM_MATRIX") == "full"
SEED = int(os.environ.get("PYSIM_MATRIX_SEED", "1"))


Combination = dict[str, Any]
Moot = Callable[[Combination], Iterable[str]]


def nothing_moot(c: Combination) -> Iterable[str]:
    """Every axis counts in every combination."""
    return ()


class Space:
    """The product of axes; `space[n]` is its n-th combination as a dict axis -> value.

    A value that is listed twice comes twice as often in a slice. `moot` names the axes on which nothing hangs
    in a combination, so that the first value of each stands for all: the level of virtual-8086 mode, what RCX
    holds for an instruction that does not look at it.
    """

    def __init__(self, name: str, moot: Moot = nothing_moot, /, **axes: Sequence[Any]) -> None:
        self.name = name
        self.moot = moot
        self.weighted = axes
        self.axes = {axis: tuple(dict.fromkeys(values)) for axis, values in axes.items()}

    def __len__(self) -> int:
        return prod(len(values) for values in self.axes.values())

    def __getitem__(self, number: int) -> Combination:
        found = {}
        for axis, values in self.axes.items():
            number, at = divmod(number, len(values))
            found[axis] = values[at]
        return found

    def everything(self) -> Iterator[Combination]:
        """Every combination once, in the order of their numbers."""
        names = tuple(self.axes)
        for values in product(*reversed(self.axes.values())):
            combination = dict(zip(names, reversed(values), strict=True))
            if all(combination[axis] == self.axes[axis][0] for axis in self.moot(combination)):
                yield combination

    def slice(self, quota: int, full: bool = FULL) -> Iterator[Combination]:
        """Every combination, or `quota` of them where there are more: the same ones for the same seed.

        Every value of every axis is met as often as any other of its axis, give or take one, where it counts.
        """
        if full or len(self) <= quota:
            yield from self.everything()
            return
        rng = random.Random(f"{self.name} {SEED}")
        decks: dict[str, list[Any]] = {}
        for axis, values in self.weighted.items():
            deck = list(values) * -(-quota // len(values))
            rng.shuffle(deck)
            decks[axis] = deck
        for n in range(quota):
            combination = {axis: deck[n] for axis, deck in decks.items()}
            for axis in self.moot(combination):
                combination[axis] = self.axes[axis][0]
            yield combination
