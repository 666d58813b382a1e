"""Watching over runs: the budget's end, the claims' heartbeat."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from itrd.bench.claims import HEARTBEAT, Claim
from itrd.engine.interrupt import received
from itrd.engine.trainer import Trainer

_TICK = 0.2
_SAFETY = 1.5  # the budget leaves room for this many of the longest pieces that cannot be interrupted


class Watch:
    """Stops trainers in time for the budget, and keeps their claims alive.

    Args:
        budget: seconds from now; None for no limit.
    """

    def __init__(self, budget: float | None) -> None:
        self._deadline = None if budget is None else time.monotonic() + budget
        self._longest = 0.0
        self._watched: dict[Trainer, Claim] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._spent = False

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def stopped(self) -> str | None:
        """Why work has to end: ``budget`` or ``signal``; None while it may go on."""
        return "signal" if received() else "budget" if self._spent else None

    def no_stop_during(self, seconds: float) -> None:
        """Learn how long a piece of work took that cannot be interrupted."""
        self._longest = max(self._longest, seconds)

    def _left(self) -> float:
        """Seconds of work left, with room for a piece that cannot be interrupted and for saving."""
        if self._deadline is None:
            return float("inf")
        return self._deadline - time.monotonic() - _SAFETY * self._longest - 1.0

    def time_for_another(self) -> bool:
        """Whether it makes sense to begin with another cell."""
        return self._left() > self._longest

    def stop(self) -> None:
        """The budget is spent: let the runs at hand stop after their current step, as they do at a signal."""
        self._spent = True
        for trainer in list(self._watched):
            trainer.request_stop()

    def sleep(self, seconds: float) -> bool:
        """Wait; return False as soon as work has to end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.stopped:
                return False
            time.sleep(_TICK)
        return True

    @contextmanager
    def over(self, trainer: Trainer, claim: Claim) -> Iterator[None]:
        """Watch over a run; several may be watched over at a time."""
        self._watched[trainer] = claim
        if self._spent:  # while the run was being prepared
            trainer.request_stop()
        try:
            yield
        finally:
            del self._watched[trainer]

    def _loop(self) -> None:
        touched = 0.0
        while not self._ended.wait(_TICK):
            if self._left() <= 0 and not self._spent:
                self.stop()
            if time.monotonic() - touched < HEARTBEAT or not self._watched:
                continue
            touched = time.monotonic()
            for trainer, claim in list(self._watched.items()):
                if not claim.touch():
                    trainer.request_stop()  # somebody took the cell over: this one ends, others may begin
