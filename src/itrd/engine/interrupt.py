"""SIGINT and SIGTERM end the process in good order: at once where nothing can be lost, else as soon as it is saved.

A signal may arrive at any moment, so there are two kinds of code. By default :class:`Interrupted` is raised
wherever the signal finds the main thread. Inside :func:`held` a signal is only noted, and the code asks
:func:`received` at moments of its own choice; :func:`interruptible` opens a window in it for slow work that can be
thrown away. A second signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The process was asked to stop. No ``except Exception`` on the way may take it for a failure of its own.

    Attributes:
        status: exit status of the process: 130 after SIGINT, 143 after SIGTERM.
        resumable: whether ``--resume`` can continue what was stopped.
    """

    def __init__(self, message: str = "stopped", *, resumable: bool = False) -> None:
        super().__init__(message)
        self.status = 128 + (_received or signal.SIGINT)
        self.resumable = resumable


_received: int | None = None  # signals belong to the process, and so does what is known of them
_holding = False


def received() -> int:
    """The number of the signal that asked the process to stop; 0 if none did."""
    return _received or 0


def receive(number: int) -> None:
    """Take note of a signal that another process of the same run received."""
    global _received
    _received = _received or number


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into :class:`Interrupted`; elsewhere than in the main thread, do nothing."""
    global _received, _holding
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received, _holding = None, False


@contextmanager
def held() -> Iterator[None]:
    """Inside, a signal waits until somebody asks :func:`received`."""
    global _holding
    before, _holding = _holding, True
    try:
        yield
    finally:
        _holding = before


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, a signal raises :class:`Interrupted`; so does one that waited already."""
    global _holding
    if received():
        raise Interrupted
    before, _holding = _holding, False
    try:
        yield
    finally:
        _holding = before


def _note(number: int, frame: FrameType | None) -> None:
    global _received
    if _received is not None:
        _leave(number)
    _received = number
    if not _holding:
        raise Interrupted


def _leave(number: int) -> None:
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # a progress display has hidden the cursor
    os._exit(128 + number)
