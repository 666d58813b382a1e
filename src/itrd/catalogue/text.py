"""The catalogue as text for a terminal of 80 columns or a pipe."""

from __future__ import annotations

import textwrap

from itrd.catalogue.docstrings import to_text
from itrd.catalogue.facts import EXAMPLE, MethodFacts, all_facts, facts
from itrd.catalogue.overhead import cost_in_words, measurements
from itrd.recipes import PAIRS, Published

_WIDTH = 80
_INDENT = 13


def listing() -> str:
    """Write two or three lines about each method."""
    head = (
        f"Extra parameters and published accuracy (top-1 on CIFAR-100, percent) are for {EXAMPLE}. "
        "Everything about one: itrd methods NAME"
    )
    return "\n".join([textwrap.fill(head, _WIDTH), "", *(_entry(method) for method in all_facts())])


def about(name: str) -> str:
    """Write everything about one method.

    Raises:
        UnknownNameError: no such method.
    """
    method = facts(name)
    fields = [
        ("paper", method.paper),
        ("also called", ", ".join(method.aliases)),
        ("formula", method.formula),
        ("reads", ", ".join(method.reads) or "labels only"),
        ("loss", method.loss),
        ("weight", _weights(method)),
        ("extra", f"{method.extra_parameters} (trainable parameters, for {EXAMPLE})"),
    ]
    fields += [
        ("overhead", f"{words} of the student's own training step ({m.where})")
        for m in measurements()
        if (words := cost_in_words(m, method.name))
    ]
    lines = [f"{method.name}: {method.title}", ""]
    lines += [_wrap(text, f"{name:{_INDENT}}") for name, text in fields if text]
    for setting in method.settings:
        lines.append(_wrap(f"{setting.name}={setting.default!r}: {setting.about}", f"{'setting':{_INDENT}}"))
    text = (to_text(paragraph, _WIDTH) for paragraph in (*method.description, *method.deviations))
    lines += ["", "\n\n".join(text)]
    cells = [(pair, method.published(pair)) for pair in PAIRS]
    if any(cell for _, cell in cells):
        lines += ["", "Published top-1 on CIFAR-100, percent (settings: itrd recipes):"]
        lines += [f"    {pair!s:26}{_accuracy(cell)}" for pair, cell in cells if cell]
    return "\n".join(lines)


def _entry(method: MethodFacts) -> str:
    title = f"{method.title}: {method.paper}"
    if method.aliases:
        title += f" (or {', '.join(method.aliases)})"
    rest = [
        method.loss,
        f"reads {', '.join(method.reads) or 'labels only'}",
        f"{method.parameters:,} parameters" if method.parameters else "",
        _accuracy(method.published()),
    ]
    rest += [f"overhead {cost_in_words(m, method.name)}" for m in measurements()[:1] if m.of(method.name)]
    lines = (_wrap(title, f"{method.name:{_INDENT}}"), _wrap("; ".join(r for r in rest if r), " " * _INDENT))
    return "\n".join(lines)


def _weights(method: MethodFacts) -> str:
    text = f"{method.weight:g}, cross-entropy {method.ce_weight:g}"
    return (
        text if method.weight_in_sum is None else f"{text}; in sums {method.weight_in_sum:g}, cross-entropy 1"
    )


def _accuracy(cell: Published | None) -> str:
    if cell is None:
        return ""
    return f"{cell.top1:.2f} ({'epoch not stated' if cell.epoch == 'not stated' else f'{cell.epoch} epoch'})"


def _wrap(text: str, initial: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=initial,
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
