"""Several runs in one process, step by step in turn; each ends with the numbers it would have alone.

On a GPU every run launches its captured steps on a stream of its own, so that the small kernels of one fill the gaps
of another. The host only launches: one thread is enough for many runs. Runs of the same dataset object share its
images on the device, runs given the same teacher share its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from itrd.engine.interrupt import Interrupted, held
from itrd.engine.record import Result
from itrd.engine.state import generators, restore_generators
from itrd.engine.trainer import Trainer
from itrd.errors import ItrdError, UserError

# Steps that a run takes before the next run's turn. Changing turns costs the host some 0.1 ms, as much as launching
# a few captured steps; more steps a turn than this would only make the runs' streams alternate instead of overlap.
TURN = 8


class Seat:
    """One run among several of this process.

    Args:
        trainer: ready to train, without a progress display.

    Attributes:
        trainer: the run.
        result: of the finished run; None while it goes on.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.result: Result | None = None
        self._turns = trainer.turns()
        # The run's own states of the process's random generators. On a GPU also the generator itself: recorded steps
        # read seed and offset from the one they were recorded with, which steps of other runs must not write.
        self._generators: dict[str, Any] | None = None
        self._cuda: torch.Generator | None = None

    def advance(self, steps: int = TURN, *, alone: bool = False) -> bool:
        """Take some steps; return whether the run has finished.

        Args:
            steps: how many.
            alone: nothing else in this process has drawn random numbers since the last call.

        Raises:
            Interrupted, ItrdError, RuntimeError: what :meth:`itrd.engine.trainer.Trainer.fit` raises.
        """
        cuda = _default_generator(self.trainer.device)
        if cuda is not None:
            cuda.graphsafe_set_state(cuda.clone_state() if self._cuda is None else self._cuda)
        if self._generators is not None and not alone:
            restore_generators(self._generators, self.trainer.device)
        try:
            with held(), self.trainer.on_stream():
                for _ in range(steps):
                    next(self._turns)
        except StopIteration as end:
            self.result = end.value
            return True
        finally:
            if cuda is not None:
                # Not always the one from before: a recording that failed has put another one in place.
                self._cuda = cuda.graphsafe_get_state()
        self._generators = generators(self.trainer.device)
        return False

    def close(self) -> None:
        """Leave a run that has not finished; nothing is saved."""
        self._turns.close()


def _default_generator(device: torch.device) -> torch.Generator | None:
    """Return the generator of a GPU that modules draw from; None for a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.default_generators[
        torch.cuda.current_device() if device.index is None else device.index
    ]


def fit_together(trainers: Sequence[Trainer]) -> list[Result | ItrdError]:
    """Train several runs side by side; return each one's result, or the error that ended it, in their order.

    Raises:
        Interrupted: a signal stopped them; the states of all runs are saved.
        UserError: the runs want different switches of the process.
    """
    if len({(t.device.type, t.config.precision == "tf32", t.config.deterministic) for t in trainers}) > 1:
        raise UserError(
            "runs side by side need the same device, the same deterministic, and tf32 all or none: these are switches "
            "of the process"
        )
    seats = [Seat(trainer) for trainer in trainers]
    outcomes: dict[int, Result | ItrdError] = {}
    stop: Interrupted | None = None
    open_seats = dict(enumerate(seats))
    try:
        while open_seats:
            for number, seat in list(open_seats.items()):
                try:
                    if seat.advance(alone=len(seats) == 1):
                        assert seat.result is not None
                        outcomes[number] = seat.result
                        del open_seats[number]
                except ItrdError as error:  # the others go on
                    outcomes[number] = error
                    del open_seats[number]
                except Interrupted as interruption:
                    stop = interruption
                    del open_seats[number]
    finally:
        for seat in seats:
            seat.close()
    if stop is not None:
        raise stop
    return [outcomes[number] for number in range(len(seats))]
