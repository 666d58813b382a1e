"""Errors that a user can act on.

Everything derived from :class:`UserError` is printed by the command line as one line, without a
traceback, and ends the process with status 2. The message says what is wrong *and* what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What other libraries call our settings, where it is spelled too differently to be guessed.
_CUSTOMARY = {
    "lr": "learning_rate",
    "bs": "batch_size",
    "wd": "weight_decay",
    "gpu": "device",
    "amp": "precision",
}


def closest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the known name that was probably meant, or None; ``cutoff`` is the least likeness, of 1."""
    folded = {n.lower(): n for n in known}
    customary = folded.get(_CUSTOMARY.get(name.lower(), ""))
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=cutoff)
    return customary or (folded[close[0]] if close else None)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class ItrdError(Exception):
    """Base of every error raised on purpose by this package."""


class UserError(ItrdError):
    """Something the caller can mend: a name, a path, a file, a setting."""


class UnknownNameError(UserError, KeyError):
    """A model, method or dataset that does not exist; names the closest one that does."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        names = sorted(known)
        close = closest(name, names)
        meant = f"; did you mean {close!r}?" if close else ""
        tail = hint or f"known: {', '.join(names)}"
        super().__init__(f"unknown {kind} {name!r}{meant} ({tail})")

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class MissingLibraryError(UserError, ImportError):
    """An optional library is missing, or cannot be imported."""


class DataError(UserError):
    """A dataset is missing, damaged, or not what was asked for."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, unsafe, or for another architecture."""


class RunFolderError(UserError):
    """An output folder cannot be used."""


class TrainingError(ItrdError):
    """Training stopped because a number is no longer finite."""


class PeerError(ItrdError):
    """Another process of this run has failed or is gone."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(
            "another process of this run has ended; it said why" + (f" ({reason})" if reason else "")
        )
