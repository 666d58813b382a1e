"""What there is to know about a method, gathered from its class."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from itrd.catalogue.docstrings import code
from itrd.engine.task import DistillTask
from itrd.methods import ALIASES, create_method, list_methods, method_class
from itrd.methods.base import Method
from itrd.methods.objective import Objective
from itrd.models import FeatureNet, create_model
from itrd.recipes import PAIRS, Pair, Published, published

EXAMPLE = PAIRS[0]  # the pair that extra parameters, accuracy and overhead are shown for
CLASSES = 100

# Methods whose row in the published tables is not called like their title.
_ROWS = {"none": "student alone", "logit_std": "KD + logit standardisation"}

_DEVIATIONS = re.compile(r"(Where (the published|the code|this) |Deviations? )")
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


@dataclass(frozen=True)
class Setting:
    """One keyword argument: its default, and the docstring's sentence about it."""

    name: str
    default: Any
    about: str


@dataclass(frozen=True)
class MethodFacts:
    """One method.

    Attributes:
        name: registry name.
        aliases: further names.
        title: the field's name.
        paper: authors, venue, year.
        arxiv: arXiv number, or an empty string.
        formula: the objective in one line.
        reads: what it reads of both networks, in alphabetical order.
        weight: published weight.
        weight_in_sum: weight inside a sum, where it differs.
        ce_weight: published weight of the cross-entropy.
        loss: the whole loss with the defaults, in the notation of losses.
        settings: its keyword arguments.
        description: paragraphs of the docstring that say what it computes.
        deviations: paragraphs of the docstring that say where published code, paper and this code differ.
        parameters: number of extra trainable parameters for the example pair.
        first_stage_parameters: how many of them nothing but its first stage trains.
        row: name of its row in the published tables, whether or not they have it.
    """

    name: str
    aliases: tuple[str, ...]
    title: str
    paper: str
    arxiv: str
    formula: str
    reads: tuple[str, ...]
    weight: float
    weight_in_sum: float | None
    ce_weight: float
    loss: str
    settings: tuple[Setting, ...]
    description: tuple[str, ...]
    deviations: tuple[str, ...]
    parameters: int
    first_stage_parameters: int
    row: str

    def published(self, pair: Pair = EXAMPLE) -> Published | None:
        """Return the published accuracy for a pair; None where there is no number."""
        cell = published(self.row, pair)
        return None if cell is None or cell.top1 is None else cell

    @property
    def extra_parameters(self) -> str:
        """The number of extra parameters in words."""
        if self.parameters == 0:
            return "none"
        total = f"{self.parameters:,}"
        if self.first_stage_parameters == 0:
            return total
        if self.first_stage_parameters == self.parameters:
            return f"{total}, all of the first stage"
        return f"{total}, of which {self.first_stage_parameters:,} belong to the first stage"


def facts(name: str) -> MethodFacts:
    """Gather the facts about a method.

    Raises:
        UnknownNameError: no such method.
    """
    cls = method_class(name)
    method = create_method(cls.name)
    objective = Objective.create(method)
    _set_up(objective)
    paragraphs = _paragraphs(cls)
    about = _arguments(paragraphs)
    text = [p for p in paragraphs if not p.startswith("Args:")]
    arxiv = _ARXIV.search(cls.paper)
    return MethodFacts(
        name=cls.name,
        aliases=tuple(alias for alias, of in ALIASES.items() if of == cls.name),
        title=cls.title,
        paper=cls.paper,
        arxiv=arxiv.group(1) if arxiv else "",
        formula=cls.formula,
        reads=tuple(sorted(cls.reads)),
        weight=cls.weight,
        weight_in_sum=cls.weight_in_sum,
        ce_weight=cls.ce_weight,
        loss=objective.describe(),
        settings=tuple(Setting(key, value, about.get(key, "")) for key, value in cls.settings().items()),
        description=tuple(p for p in text if not _DEVIATIONS.match(p)),
        deviations=tuple(p for p in text if _DEVIATIONS.match(p)),
        parameters=_count(method),
        first_stage_parameters=sum(_count(module) for module in method.first_stage_only()),
        row=_ROWS.get(cls.name, cls.title),
    )


def all_facts() -> Iterator[MethodFacts]:
    """Gather the facts about every method, in the order of the registry."""
    return (facts(name) for name in list_methods())


@cache
def _example_networks() -> tuple[FeatureNet, FeatureNet]:
    teacher, student = (create_model(name, CLASSES) for name in EXAMPLE)
    return teacher, student


def _set_up(objective: Objective) -> None:
    with torch.random.fork_rng(devices=[]):  # leaves the caller's random numbers alone
        teacher, student = _example_networks()
        task = DistillTask(student, teacher, objective)
        # Two labels a class are enough: the size of the training set changes no parameter.
        task.setup(torch.zeros(2, 3, 32, 32), CLASSES, torch.arange(2 * CLASSES) % CLASSES)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _paragraphs(cls: type[Method]) -> list[str]:
    return [block for block in re.split(r"\n\s*\n", inspect.cleandoc(cls.__doc__ or "")) if block.strip()]


def _arguments(paragraphs: list[str]) -> dict[str, str]:
    """Read the sentences about the settings from a docstring's ``Args:``."""
    block = next((p for p in paragraphs if p.startswith("Args:")), "")
    found: dict[str, str] = {}
    last = ""
    for line in block.splitlines()[1:]:
        entry = re.match(r" {4}(\w+): (.*)", line)
        if entry:
            last = entry.group(1)
            found[last] = entry.group(2).strip()
        elif last:
            found[last] += " " + line.strip()
    return {name: code(text) for name, text in found.items()}
