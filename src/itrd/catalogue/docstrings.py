"""Paragraphs of docstrings as Markdown and as text of a given width; and Markdown tables.

A paragraph is a formula (indented) or prose, after which a list may follow without an empty line.
"""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple


class Paragraph(NamedTuple):
    """A formula, or prose and the list that follows it."""

    formula: str
    prose: str
    bullets: list[str]


def parse(text: str) -> Paragraph:
    """Take a paragraph of a docstring apart."""
    text = code(text)
    lines = text.splitlines()
    if all(line.startswith("    ") and not line.lstrip().startswith("* ") for line in lines):
        return Paragraph(textwrap.dedent(text), "", [])
    prose: list[str] = []
    bullets: list[str] = []
    for line in lines:
        if line.lstrip().startswith("* "):
            bullets.append(line.strip()[2:])
        elif bullets:
            bullets[-1] += " " + line.strip()
        else:
            prose.append(line.strip())
    return Paragraph("", " ".join(prose), bullets)


def code(text: str) -> str:
    """Turn cross-references and literals into `code`."""
    text = re.sub(r":\w+:`~?([^`]*)`", lambda match: f"`{match.group(1).rpartition('.')[2]}`", text)
    return text.replace("``", "`")


def to_markdown(text: str) -> str:
    """Write a paragraph as Markdown."""
    formula, prose, bullets = parse(text)
    if formula:
        return f"```text\n{formula}\n```"
    return "\n\n".join(p for p in (escape(prose), "\n".join(f"* {escape(b)}" for b in bullets)) if p)


def to_text(text: str, width: int) -> str:
    """Write a paragraph in lines of at most ``width``; formulas keep their lines."""
    formula, prose, bullets = parse(text)
    if formula:
        return textwrap.indent(formula, "    ")
    lines = [textwrap.fill(prose, width, break_long_words=False)] if prose else []
    for bullet in bullets:
        lines.append(
            textwrap.fill(
                bullet, width, initial_indent="  * ", subsequent_indent="    ", break_long_words=False
            )
        )
    return "\n".join(lines)


def escape(text: str) -> str:
    """Keep angle brackets outside code from being tags."""
    pieces = text.split("`")  # every second piece is code
    return "`".join(piece if i % 2 else piece.replace("<", "&lt;") for i, piece in enumerate(pieces))


def markdown_table(head: list[str], rows: list[list[str]], text_columns: int = 1) -> str:
    """Write a Markdown table; the first columns are text, the others are numbers."""
    rule = ["---" if i < text_columns else "---:" for i in range(len(head))]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in [head, rule, *rows]
    )
