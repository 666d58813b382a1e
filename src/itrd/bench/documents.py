"""Figures in README and docs: blocks between markers, generated from the ledger.

A block begins with a line ``<!-- ledger:WHAT -->`` and ends with a line ``<!-- /ledger -->``. WHAT is ``TRACK`` for
the tables of a track, ``TRACK/measured`` for its cells that were run, ``TRACK/itrd`` for ITRD against its published
values, ``TRACK/methods`` for the methods with what they read, cost and gain, or ``zoo`` for the teachers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from itrd.bench import choices, tables
from itrd.bench.ledger import Ledger
from itrd.bench.summary import TrackSummary
from itrd.bench.tracks import list_tracks
from itrd.errors import UserError
from itrd.files import write_atomically

_PARTS = {
    "": tables.track_tables,
    "measured": tables.measured_table,
    "itrd": tables.itrd_table,
    "methods": choices.choice_table,
}


class DocumentError(UserError):
    """A document's markers do not make sense."""


def block(what: str, ledger: Ledger, zoo: Path) -> str:
    """Generate the content of one block.

    Raises:
        DocumentError: there is no such block.
    """
    if what == "zoo":
        return tables.zoo_table(zoo)
    track, _, part = what.partition("/")
    if track not in {*list_tracks(), *ledger.tracks()} or part not in _PARTS:
        raise DocumentError(
            f"no block ledger:{what}; it is zoo, TRACK or TRACK/PART, with one of {', '.join(filter(None, _PARTS))}"
        )
    return _PARTS[part](TrackSummary(track, ledger.runs(track)))


def refreshed(text: str, ledger: Ledger, zoo: Path) -> str:
    """Return a document with every block as the ledger has it now.

    Raises:
        DocumentError: a block that is not known, not closed, or not opened.
    """
    return filled(text, "ledger", lambda what: block(what, ledger, zoo))


def filled(text: str, word: str, content: Callable[[str], str]) -> str:
    """Return a document with new content in every block between ``<!-- WORD:WHAT -->`` and ``<!-- /WORD -->``.

    Args:
        text: the document.
        word: which blocks.
        content: what belongs into the block of a WHAT.

    Raises:
        DocumentError: a block that is not closed, or not opened, or a marker of another form.
    """
    marker = re.compile(rf"<!-- (?:{word}:(?P<what>\S+)|(?P<end>/{word})) -->")
    lines: list[str] = []
    open_block: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith((f"<!-- {word}", f"<!-- /{word}")):
            if open_block is None:
                lines.append(line)
            continue
        found = marker.fullmatch(line)
        if found is None or (open_block is None) == (found["end"] is not None):
            raise DocumentError(
                f"line {number}: markers <!-- {word}:WHAT --> and <!-- /{word} --> must alternate"
            )
        if found["end"]:
            assert open_block is not None
            lines += ["", content(open_block), ""]
            open_block = None
        else:
            open_block = found["what"]
        lines.append(line)
    if open_block is not None:
        raise DocumentError(f"the block {word}:{open_block} is not closed with <!-- /{word} -->")
    return "\n".join(lines) + ("\n" if text.endswith("\n") else "")


def markdown_files(names: str) -> list[Path]:
    """Documents from a comma-separated list of files and of folders of Markdown files.

    Raises:
        UserError: one of them does not exist.
    """
    found: list[Path] = []
    for name in filter(None, map(str.strip, names.split(","))):
        path = Path(name)
        if not path.exists():
            raise UserError(
                f"no document {path}; run this in the root of the repository, or name other files"
            )
        found += sorted(path.rglob("*.md")) if path.is_dir() else [path]
    return found


def update_documents(documents: Iterable[Path], ledger: Ledger, zoo: Path) -> list[Path]:
    """Rewrite the blocks of the documents; return those that changed."""
    changed = []
    for path in documents:
        text = path.read_text(encoding="utf-8")
        new = refreshed(text, ledger, zoo)
        if new != text:
            write_atomically(path, new.encode())
            changed.append(path)
    return changed
