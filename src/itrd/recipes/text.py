"""The recipes as text for a terminal of 80 columns or a pipe.

Cells that share loss, source and note are shown together; a loss is always on one line of its own.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from itrd.errors import UnknownNameError, UserError
from itrd.methods import ALIASES, METHODS
from itrd.recipes.imagenet import IMAGENET_LOSSES, ImagenetLoss
from itrd.recipes.published import PAIRS, Published, published
from itrd.recipes.settings import TABLE_METHODS, Recipe, all_recipes

_WIDTH = 80
_INDENT = 12

_HEAD = (
    "Losses behind the published accuracies on CIFAR-100 (top-1, percent; of the last test epoch, of the best "
    "one, or not stated). Schedule, batch size and learning rate are the defaults of `itrd distill`."
)

_IMAGENET_HEAD = (
    "Losses for ResNet-34 to ResNet-18 on ImageNet and the published top-1 accuracies in percent, with `itrd distill "
    "--config imagenet --method LOSS`. No run of them is recorded here."
)


def listing(method: str | None = None, teacher: str | None = None, student: str | None = None) -> str:
    """Write the recipes that fit; None fits all.

    Raises:
        UnknownNameError: no such method, teacher or student in the published tables.
        UserError: there is no recipe for this choice.
    """
    method = _known_method(method)
    _known("teacher", teacher, (pair.teacher for pair in PAIRS))
    _known("student", student, (pair.student for pair in PAIRS))
    wanted = (method, teacher, student)
    groups: dict[tuple[str, ...], list[Recipe]] = {}
    for found in all_recipes():
        if all(w is None or w == is_ for w, is_ in zip(wanted, (found.method, *found.pair), strict=True)):
            key = (found.method, found.loss, found.source, found.note, found.variant)
            groups.setdefault(key, []).append(found)
    if not groups:
        raise UserError(
            f"no recipe for {' and '.join(w for w in wanted if w)}: no such cell in the published tables"
        )
    blocks = [textwrap.fill(_HEAD, _WIDTH), *(_block(cells) for cells in groups.values())]
    if method is teacher is student is None:
        blocks += [textwrap.fill(_IMAGENET_HEAD, _WIDTH), *map(_imagenet_block, IMAGENET_LOSSES.items())]
    return "\n\n".join(blocks)


def _imagenet_block(item: tuple[str, ImagenetLoss]) -> str:
    row, found = item
    source = textwrap.fill(
        found.source, _WIDTH, initial_indent=_field("settings"), subsequent_indent=" " * _INDENT
    )
    top1 = "not known here" if found.top1 is None else f"{found.top1:.2f}"
    return "\n".join([row, _field("loss") + found.loss, source, _field("accuracy") + top1])


def _block(cells: list[Recipe]) -> str:
    first = cells[0]
    numbers = [published(cell.row, cell.pair) for cell in cells]
    lines = [f"{first.row} (--method {first.method})", _field("loss") + first.loss]
    for name, text in (
        ("variant", first.variant),
        ("settings", first.source),
        ("note", first.note),
        ("accuracy", _origin(numbers)),
    ):
        if text:
            indent = " " * _INDENT
            lines.append(textwrap.fill(text, _WIDTH, initial_indent=_field(name), subsequent_indent=indent))
    width = max(len(str(pair)) for pair in PAIRS)
    lines += [
        f"    {cell.pair!s:{width}}  {_number(number)}" for cell, number in zip(cells, numbers, strict=True)
    ]
    return "\n".join(lines)


def _field(name: str) -> str:
    return f"  {name:{_INDENT - 2}}"


def _number(cell: Published | None) -> str:
    return "none published" if cell is None or cell.top1 is None else f"{cell.top1:.2f}  {cell.epoch}"


def _origin(numbers: Iterable[Published | None]) -> str:
    origins = [f"{n.source}; {n.note}" if n.note else n.source for n in numbers if n and n.top1 is not None]
    return "; ".join(dict.fromkeys(origins))


def _known_method(name: str | None) -> str | None:
    name = ALIASES.get(name, name) if name is not None else None
    if name is not None and name not in METHODS:
        raise UnknownNameError("method", name, METHODS, hint=f"with recipes: {', '.join(TABLE_METHODS)}")
    if name is not None and name not in TABLE_METHODS:
        raise UserError(
            f"no recipe for {name}: the published benchmark leaves it out (with recipes: {', '.join(TABLE_METHODS)})"
        )
    return name


def _known(kind: str, name: str | None, names: Iterable[str]) -> None:
    known = list(dict.fromkeys(names))
    if name is not None and name not in known:
        raise UnknownNameError(kind, name, known, hint=f"the published tables have: {', '.join(known)}")
