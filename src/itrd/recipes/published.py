"""Published accuracies on CIFAR-100, read from the table that ships with the package.

``published_results.csv`` says for every number where it stands and whether it is of the last or of the best
test epoch (worth about +0.3 points). Never compare the two without saying so. ReviewKD's row comes from another
recipe (own teachers, batch 128, learning rate 0.1, Nesterov).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Pair(NamedTuple):
    """A teacher and a student of the published tables."""

    teacher: str
    student: str

    def __str__(self) -> str:
        return f"{self.teacher} -> {self.student}"


# In the order of the published tables: same architecture family, then different ones.
SAME = (
    Pair("wrn_40_2", "wrn_16_2"),
    Pair("wrn_40_2", "wrn_40_1"),
    Pair("resnet56", "resnet20"),
    Pair("resnet110", "resnet20"),
    Pair("resnet110", "resnet32"),
    Pair("resnet32x4", "resnet8x4"),
    Pair("vgg13", "vgg8"),
)
DIFFERENT = (
    Pair("vgg13", "MobileNetV2"),
    Pair("ResNet50", "MobileNetV2"),
    Pair("ResNet50", "vgg8"),
    Pair("resnet32x4", "ShuffleV1"),
    Pair("resnet32x4", "ShuffleV2"),
    Pair("wrn_40_2", "ShuffleV1"),
)
PAIRS = (*SAME, *DIFFERENT)


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        pair: teacher and student.
        row: name of the table's row: a method, ``teacher`` or ``student alone``.
        top1: percent; None where none was published.
        epoch: ``last``, ``best`` or ``not stated``.
        source: where it stands.
        note: what to know of it.
    """

    pair: Pair
    row: str
    top1: float | None
    epoch: str
    source: str
    note: str


@cache
def published_results() -> tuple[Published, ...]:
    """All published numbers, in the file's order."""
    text = files("itrd.recipes").joinpath("published_results.csv").read_text(encoding="utf-8")
    return tuple(
        Published(
            Pair(line["teacher"], line["student"]),
            line["method"],
            float(line["top1_percent"]) if line["top1_percent"] else None,
            line["epoch_reported"],
            line["source"],
            line["note"],
        )
        for line in csv.DictReader(text.splitlines())
    )


def published(row: str, pair: Pair) -> Published | None:
    """The published number of a row for a pair, or None if the tables have no such cell."""
    return next((p for p in published_results() if p.row == row and p.pair == pair), None)
