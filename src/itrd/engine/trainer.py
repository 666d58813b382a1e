"""The loop: epochs of steps, an evaluation after each, and everything written down.

Randomness is a function of (seed, purpose, epoch), so that a resumed run continues to the same weights as a
run that was never stopped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from itrd.data.datasets import ImageDataset
from itrd.data.plan import plan_epoch
from itrd.engine.average import MovingAverage
from itrd.engine.capture import CapturedStepper, Recorder, record_cuda
from itrd.engine.checkpoint import check_writable
from itrd.engine.config import RunConfig
from itrd.engine.device import (
    be_deterministic,
    keep_freed_memory,
    resolve_device,
    set_float32,
    stream_of_its_own,
)
from itrd.engine.distributed import DistributedStepper
from itrd.engine.evaluate import evaluate
from itrd.engine.finish import finish, finished_before
from itrd.engine.folder import RunFolder
from itrd.engine.interrupt import Interrupted, held, interruptible, receive, received
from itrd.engine.log import Console, EpochLog, Quiet, Silent
from itrd.engine.nonfinite import StepGuard, check_finite
from itrd.engine.optimizer import make_optimizer, set_rate
from itrd.engine.place import open_table, place_images, place_task
from itrd.engine.provenance import with_provenance
from itrd.engine.record import Epoch, Result
from itrd.engine.stages import MAIN, Stage, stages_of
from itrd.engine.state import (
    Position,
    Saved,
    restore_optimizer,
    restore_run,
    save_run,
    save_student,
    saved_run,
    seed_generators,
)
from itrd.engine.step import Stepper
from itrd.engine.task import DistillTask
from itrd.engine.team import ALONE, Team
from itrd.errors import RunFolderError, TrainingError, UserError
from itrd.seeds import derive


class Trainer:
    """Train the student of a task on a dataset.

    Args:
        task: networks and objective. The student's weights are taken as they are.
        data: training and test images.
        config: resolved settings.
        folder: an open run folder, or None to write nothing.
        record: what else belongs into the run's record (teacher, method, ...).
        callbacks: called with the trainer and the epoch after each epoch of the main stage, in every process.
        team: the processes that train together.

    Attributes:
        history: epochs of the main stage so far.
        first_stages: epochs of the methods' first stages so far.
        record: what is known of the run before its first epoch, such as the teacher and its accuracy.
        best: the epoch of the main stage with the highest test accuracy so far.
        optimizer: of the stage at hand; None before the first.
        position: what comes next.
        average: moving average of the student, if one was asked for.
        on_stream: enters the run's own stream, where there are streams.
    """

    def __init__(
        self,
        task: DistillTask,
        data: ImageDataset,
        config: RunConfig,
        *,
        folder: RunFolder | None = None,
        record: dict[str, Any] | None = None,
        callbacks: Sequence[Callable[[Trainer, Epoch], None]] = (),
        team: Team = ALONE,
    ) -> None:
        self.task = task
        self.team = team
        self.config = config
        self.data = data
        self.device = resolve_device(config.device)
        if config.deterministic:
            be_deterministic(self.device)
        elif self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # shapes do not change; the first steps choose the kernels
        if self.device.type == "cuda":
            set_float32(config.precision)
        else:
            keep_freed_memory()
        self.history: list[Epoch] = []
        self.first_stages: list[Epoch] = []
        self.best: Epoch | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.folder = folder
        self.record: dict[str, Any] = record or {}
        self._callbacks = callbacks
        self._stop = False
        self.train_images, self.test_images = place_images(data, config, self.device)
        place_task(task, self.train_images, data.num_classes, config, self.device)
        team.copy_from_leader(task.state_dict().values())  # a student that was given may have any weights
        if folder is not None or config.ema is not None:
            check_writable("student", task.student)
        self.average = None if config.ema is None else MovingAverage(task.student, config.ema)
        self._stages = stages_of(task, config)
        self._table = open_table(task, data, self.train_images, config, self.device, team)
        self.position = Position(self.device)
        self.provenances: list[dict[str, Any]] = []  # of every process that worked on this run
        self._saved: str | None = None  # where the last good checkpoint continues
        self._guard = StepGuard(task, skip=config.on_nonfinite == "skip", immediate=self.device.type == "cpu")
        self.on_stream = stream_of_its_own(self.device)

    def request_stop(self) -> None:
        """Stop after the current step, with the state saved; :meth:`fit` then raises :class:`Interrupted`."""
        self._stop = True

    def fit(self) -> Result:
        """Train to the last epoch and return the result.

        Raises:
            Interrupted: after :meth:`request_stop` or a signal; the state is saved.
            TrainingError: a number is not finite.
            RunFolderError: the run folder cannot be written any more.
        """
        turns = self.turns()
        with held(), self.on_stream():
            while True:
                try:
                    next(turns)
                except StopIteration as end:
                    result: Result = end.value
                    return result

    def turns(self) -> Generator[None, None, Result]:
        """Train as :meth:`fit` does, pausing after every step; the generator's value is the result.

        For several runs in one process, see :mod:`itrd.engine.together`, which sees to signals, streams and random
        generators.
        """
        try:
            return (yield from self._turns())
        except Interrupted as stop:
            stop.resumable = self.folder is not None
            raise
        except TrainingError as error:
            raise TrainingError(f"{error}; {self._last_good()}; {_ADVICE}") from None
        except RuntimeError as error:
            if "deterministic implementation" not in str(error):
                raise
            raise UserError(f"--deterministic is not possible here: {str(error).split('. ')[0]}") from None

    def _turns(self) -> Generator[None, None, Result]:
        config = self.config
        console = Console(len(self.train_images)) if config.progress else Quiet()
        if not self.team.leads:
            console = Silent()
        resumed = self._restore(console)
        if self.folder is not None and resumed is not None and self._is_through():
            with self._writing():
                return finished_before(self, self.folder)
        self.provenances = with_provenance(
            self.provenances, str(self.device), self.team.size, compiled=self.config.compile
        )
        with self._window(), self._writing():
            known = [asdict(e) for e in (*self.first_stages, *self.history)]
            log = EpochLog(self.folder, known, tensorboard=config.tensorboard)
        try:
            with console:
                for number in range(self.position.stage, len(self._stages)):
                    yield from self._run_stage(number, resumed, console, log)
                    resumed = None
        finally:
            log.close()
        with self._writing():
            return finish(self)

    def _run_stage(self, number: int, resumed: Saved | None, console: Quiet, log: EpochLog) -> Iterator[None]:
        """Run one stage, from its beginning or from where the saved state ``resumed`` left it."""
        position, stage = self.position, self._stages[number]
        optimizer = make_optimizer(stage.begin(), self.config, self.device)
        if resumed is not None:
            restore_optimizer(optimizer, resumed)
        self.optimizer = optimizer
        stepper = self._stepper(stage, optimizer)
        console.start(stage.name, stage.epochs)
        while position.epoch <= stage.epochs:
            done = yield from self._run_epoch(stage, stepper, console)
            last_of_stage = position.epoch == stage.epochs and stage.name != MAIN
            console.epoch(done)
            with self._writing():
                log.add(asdict(done))
            if stage.name == MAIN:
                for callback in self._callbacks:
                    callback(self, done)
            # After the callbacks: a run that is killed before this repeats the epoch and what they wrote.
            if last_of_stage:
                position.next_stage()
            else:
                position.next_epoch()
            self._save(None if last_of_stage else optimizer)
            if self._told_to_stop() and not (stage.name == MAIN and done.epoch == stage.epochs):
                raise Interrupted(f"stopped after epoch {done.epoch}")
            if last_of_stage:
                return

    def _stepper(self, stage: Stage, optimizer: torch.optim.Optimizer) -> Stepper:
        config, objective = self.config, self.task.objective
        parts = (stage, optimizer, self.train_images, self._guard, self.position.meter, config.precision)
        settings: dict[str, Any] = {"accumulate": config.accumulate}
        if stage.name == MAIN:
            settings["average"] = self.average
        if self.team.size > 1:
            if self.device.type == "cuda" and config.capture and self.team.leads and stage.name == MAIN:
                print("several processes: the training step is not captured as a CUDA graph", file=sys.stderr)
            reads = objective.reads if objective.relates_samples else None
            return DistributedStepper(*parts, **settings, team=self.team, reads=reads)
        record = self._recorder()
        if record is not None:
            return CapturedStepper(*parts, **settings, modules=self.task, record=record)
        return Stepper(*parts, **settings)

    def _recorder(self) -> Recorder | None:
        """Return what records a step for replay; None where steps are taken operation by operation."""
        captured = self.device.type == "cuda" and self.config.capture and self.train_images.resident
        return record_cuda if captured else None

    def _run_epoch(self, stage: Stage, stepper: Stepper, console: Quiet) -> Generator[None, None, Epoch]:
        position = self.position
        epoch = position.epoch
        yield from self._run_steps(stage, stepper, console)
        train = position.meter.read()  # waits for the device
        self._guard.settle()
        check_finite(train, f"in the mean over epoch {epoch}")
        images = position.meter.count / position.seconds
        done = Epoch(epoch, stage.rate(epoch), train, {}, position.seconds, images, stage=stage.name)
        done.skipped = position.meter.skipped
        if stage.name != MAIN:
            self.first_stages.append(done)
            return done
        started = time.perf_counter()
        try:
            with self._window():
                done.test = self._evaluate(self.task.student)
                if self.average is not None:
                    done.ema = self._evaluate(self.average.net)
        except Interrupted:
            self._save(stepper.optimizer)  # at the end of the epoch, before its evaluation
            raise Interrupted(f"stopped in the evaluation after epoch {epoch}") from None
        done.evaluation_seconds = time.perf_counter() - started
        check_finite(done.test, f"on the test set after epoch {epoch}")
        check_finite(done.ema, f"on the test set after epoch {epoch}, of the moving average")
        self.history.append(done)
        if self.best is None or not done.test or done.test["top1"] > self.best.test["top1"]:
            self.best = done
            if self.folder is not None:
                with self._writing():
                    save_student(self.folder, "best", self.task.student, self.data, done)
        return done

    def _run_steps(self, stage: Stage, stepper: Stepper, console: Quiet) -> Iterator[None]:
        """Take the steps of an epoch that are still to be taken."""
        config, images, position, guard = self.config, self.train_images, self.position, self._guard
        epoch = position.epoch
        set_rate(stepper.optimizer, stage.rate(epoch))
        seed = config.seed if stage.name == MAIN else derive(config.seed, "first stage", stage.name)
        if position.step == 0:
            seed_generators(derive(seed, "epoch", epoch))  # negatives, dropout and the like
        plan = plan_epoch(len(images), images.num_views, config.batch_size, seed=seed, epoch=epoch)
        if position.step >= len(plan):
            return  # stopped before the evaluation
        stage.begin()  # the evaluation and a restored state leave the modes as they are; be certain
        if stage.name == MAIN:
            self.task.start_epoch(epoch, stage.epochs)
        guard.start_epoch(
            f"epoch {epoch}" + ("" if stage.name == MAIN else f" of {stage.name}'s first stage"),
            position.step,
        )
        before, started = position.seconds, time.perf_counter()
        with self._window():
            table = self._table if stage.name == MAIN else None
            # Its cost belongs to the epoch.
            known = table.epoch(stepper.own(plan)) if table is not None else None
        for step in stepper.steps(plan, known, position.step):
            position.step = step + 1
            console.step(epoch, position.meter.count)
            if self._told_to_stop():
                guard.settle()
                position.seconds = before + time.perf_counter() - started
                self._agree()
                self._save(stepper.optimizer)
                raise Interrupted(f"stopped in epoch {epoch} after step {step + 1}")
            yield
        self._agree()
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        position.seconds = before + time.perf_counter() - started

    # --- state -------------------------------------------------------------------------------------------

    def _told_to_stop(self) -> bool:
        """Whether to stop; all processes ask at the same moments, and get the same answer."""
        number = self.team.most(received() or int(self._stop))
        if number > 1 and not received():
            receive(number)
        return number > 0

    def _window(self) -> AbstractContextManager[None]:
        """Let signals interrupt what is inside; not among several processes, which would wait for this one."""
        return interruptible() if self.team.size == 1 else nullcontext()

    def _agree(self) -> None:
        """Bring together what every process saw of its own part."""
        followers = [] if self.average is None else [self.average.net]
        self.team.average_statistics([self.task, *followers])

    def _evaluate(self, net: nn.Module) -> dict[str, float]:
        return evaluate(net, self.test_images, self.config.precision, team=self.team)

    def _save(self, optimizer: torch.optim.Optimizer | None) -> None:
        if self.folder is not None:
            with self._writing():
                save_run(self, self.folder, optimizer)
            self._saved = str(self.position)

    def _restore(self, console: Quiet) -> Saved | None:
        """Go back to the saved state, if this run resumes one; return what remains of it to be restored."""
        if not self.config.resume:
            return None
        folder = self.folder
        saved = self.team.share(self.team.lead(lambda: None if folder is None else saved_run(folder)))
        if saved is None:
            return None  # stopped before the first one was written
        rest = restore_run(self, saved, len(self._stages))
        if saved.complaint:
            console.message(f"damaged checkpoint: {saved.complaint}")
        self._saved = str(self.position)
        done = self._is_through()
        console.message("the run is finished already" if done else f"resuming at {self.position}")
        return rest

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Say what could not be written, and from where the run can go on."""
        try:
            yield
        except OSError as error:
            what = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
            advice = "mend this, then continue with --resume"
            raise RunFolderError(f"cannot write {what}; {self._last_good()}; {advice}") from None

    def _last_good(self) -> str:
        if self.folder is None or self._saved is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.folder.checkpoint}, at {self._saved}"

    def _is_through(self) -> bool:
        """Whether nothing is left to be done but, perhaps, the record."""
        past = self.position.stage == len(self._stages) - 1 and self.position.epoch > self._stages[-1].epochs
        return past and self.folder is not None and self.folder.result.is_file()


_ADVICE = (
    "try a lower learning rate, fp32 instead of bf16, or --on_nonfinite skip (with --resume: from there)"
)
