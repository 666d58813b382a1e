"""What the pages' tables share: reading what a benchmark wrote, and Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).resolve().parent / "measured"


def read(machine: str, benchmark: str) -> dict[str, Any]:
    """What a benchmark wrote with --out."""
    path = MEASURED / f"{machine}-{benchmark}.json"
    if not path.is_file():
        raise SystemExit(
            f"{path} is missing; `make measured` and `make reliability` say which benchmark writes it"
        )
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def named(pair: str) -> str:
    """A pair as the pages write it."""
    return pair.replace(":", " → ")


def table(heads: list[str], rows: list[list[str]], numbers: bool = True) -> str:
    """A Markdown table; the first column is text, the others are numbers, or text, too."""
    rule = ["---", *["---:" if numbers else "---"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, rule, *rows])


def source(found: dict[str, Any]) -> str:
    """The command that wrote a file, and where."""
    command = f"`{found['command']}`: " if "command" in found else ""
    return f"{command}{found['machine']}."
