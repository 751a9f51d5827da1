"""The combinations of a matrix: named axes, a number for each combination, a seeded slice of them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

FULL = os.environ.get("PYSIM_MATRIX") == "full"
SEED = int(os.environ.get("PYSIM_MATRIX_SEED", "1"))


class Space:
    """The product of axes; `space[n]` is its n-th combination as a dict axis -> value.

    A value that is listed twice comes twice as often in a slice.
    """

    def __init__(self, name: str, **axes: Sequence[Any]) -> None:
        self.name = name
        self.weighted = axes
        self.axes = {axis: tuple(dict.fromkeys(values)) for axis, values in axes.items()}

    def __len__(self) -> int:
        return prod(len(values) for values in self.axes.values())

    def __getitem__(self, number: int) -> dict[str, Any]:
        found = {}
        for axis, values in self.axes.items():
            number, at = divmod(number, len(values))
            found[axis] = values[at]
        return found

    def slice(self, quota: int, full: bool = FULL) -> Iterator[dict[str, Any]]:
        """Every combination, or `quota` of them where there are more: the same ones for the same seed.

        Every value of every axis is met as often as any other of its axis, give or take one.
        """
        if full or len(self) <= quota:
            for number in range(len(self)):
                yield self[number]
            return
        rng = random.Random(f"{self.name} {SEED}")
        decks: dict[str, list[Any]] = {}
        for axis, values in self.weighted.items():
            deck = list(values) * -(-quota // len(values))
            rng.shuffle(deck)
            decks[axis] = deck
        for n in range(quota):
            yield {axis: deck[n] for axis, deck in decks.items()}
