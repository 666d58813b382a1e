"""Docstring paragraphs as Markdown: prose joined, formulas fenced, lists as lists."""

from __future__ import annotations

import re
import textwrap


def paragraph(text: str) -> str:
    """Turn one paragraph of a docstring into Markdown."""
    lines = text.splitlines()
    if all(line.startswith("    ") for line in lines):
        return f"```text\n{textwrap.dedent(text)}\n```"
    prose: list[str] = []
    bullets: list[str] = []
    for line in lines:
        if line.lstrip().startswith("* "):
            bullets.append(line.strip()[2:])
        elif bullets:
            bullets[-1] += " " + line.strip()
        elif line.startswith("    "):  # a formula inside a paragraph
            prose.append(f"`{line.strip()}`")
        else:
            prose.append(line.strip())
    parts = [inline(" ".join(prose))] if prose else []
    parts += ["\n".join(f"* {inline(bullet)}" for bullet in bullets)] if bullets else []
    return "\n\n".join(parts)


def inline(text: str) -> str:
    """Turn cross-references and literals into code, and keep angle brackets from being tags."""
    text = re.sub(r":\w+:`~?([^`]*)`", lambda match: f"`{match.group(1).rpartition('.')[2]}`", text)
    text = text.replace("``", "`")
    pieces = text.split("`")  # every second piece is code
    return "`".join(piece if i % 2 else piece.replace("<", "\\<") for i, piece in enumerate(pieces))


def table(head: list[str], rows: list[list[str]], text_columns: int = 1) -> str:
    """Write a Markdown table; the first columns are text, the others are numbers."""
    rule = ["---" if i < text_columns else "---:" for i in range(len(head))]
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
