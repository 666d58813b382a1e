"""The loop: epochs of steps, an evaluation after each, and everything written down.

Randomness is a function of (seed, purpose, epoch), so that a resumed run continues to the same weights as a
run that was never stopped.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from itrd.data.datasets import ImageDataset, Split
from itrd.data.device import DeviceImages
from itrd.data.plan import EpochPlan, plan_epoch
from itrd.engine.checkpoint import load_state, save_state, save_weights
from itrd.engine.config import RunConfig
from itrd.engine.device import autocast, resolve_device
from itrd.engine.evaluate import evaluate
from itrd.engine.files import write_json
from itrd.engine.folder import RunFolder
from itrd.engine.log import Console, EpochLog, Quiet
from itrd.engine.metrics import Meter, accuracies
from itrd.engine.record import Epoch, Result, build_record
from itrd.engine.stages import MAIN, Stage, stages_of
from itrd.engine.table import TABULAR, EpochRows, TeacherTable
from itrd.engine.task import DistillTask
from itrd.errors import CheckpointError, TrainingError
from itrd.methods.base import Batch, at_least_float32
from itrd.seeds import derive


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


class Trainer:
    """Train the student of a task on a dataset.

    Args:
        task: networks and objective. The student's weights are taken as they are.
        data: training and test images.
        config: resolved settings.
        folder: an open run folder, or None to write nothing.
        record: what else belongs into the run's record (teacher, method, ...).
        callbacks: called with the trainer and the epoch after each epoch of the main stage.

    Attributes:
        history: epochs of the main stage so far.
        first_stages: epochs of the methods' first stages so far.
        record: what is known of the run before its first epoch, such as the teacher and its accuracy.
        best: the epoch of the main stage with the highest test accuracy so far.
        optimizer: of the stage at hand; None before the first.
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
    ) -> None:
        self.task = task
        self.config = config
        self.data = data
        self.device = resolve_device(config.device)
        self.history: list[Epoch] = []
        self.first_stages: list[Epoch] = []
        self.best: Epoch | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.folder = folder
        self.record: dict[str, Any] = record or {}
        self._callbacks = callbacks
        self._stop = False
        self._place()
        self._stages = stages_of(task, config)
        self._table = self._open_table()
        self._position = _Position(self.device)

    def _place(self) -> None:
        """Move images and networks to the device and build the objective's trainable modules."""
        channels_last = self.config.channels_last
        data = self.data

        def placed(split: Split, padding: int, flip: bool) -> DeviceImages:
            return DeviceImages(
                split,
                data.mean,
                data.std,
                padding=padding,
                flip=flip,
                device=self.device,
                channels_last=channels_last,
            )

        self.train_images = placed(data.train, data.padding, data.flip)
        self.test_images = placed(data.test, 0, False)
        for net in (self.task.student, self.task.teacher):
            if net is not None:
                net.to(self.device)
                if channels_last:
                    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # The extra modules' weights depend on the seed alone, not on how the student was initialised.
        torch.manual_seed(derive(self.config.seed, "method"))
        few = torch.arange(min(4, len(self.train_images)), device=self.device)
        self.task.setup(self.train_images.plain(few), data.num_classes, self.train_images.labels)

    def _open_table(self) -> TeacherTable | None:
        """Open the table of teacher outputs, if this run is to use one and its methods can."""
        folder, task = getattr(self.config, "teacher_table", None), self.task
        if folder is None or task.teacher is None or not task.objective.reads:
            return None
        if not task.objective.reads <= TABULAR:
            print(
                "the method reads feature maps: the teacher is run at every step, not looked up",
                file=sys.stderr,
            )
            return None
        assert task.observe_teacher is not None
        # On a CPU the training batch, so that a row has the bits of the live teacher; on a GPU a large one.
        batch = self.config.batch_size if self.device.type == "cpu" else max(1024, self.config.batch_size)
        return TeacherTable(
            Path(folder),
            task.observe_teacher,
            task.teacher,
            self.data,
            self.train_images,
            self.config.precision,
            batch,
        )

    def _teacher_rows(self, stage: Stage, plan: EpochPlan) -> EpochRows | None:
        return self._table.epoch(plan) if self._table is not None and stage.name == MAIN else None

    def request_stop(self) -> None:
        """Stop after the current step, with the state saved; :meth:`fit` then raises :class:`Interrupted`."""
        self._stop = True

    def fit(self) -> Result:
        """Train to the last epoch and return the result.

        Raises:
            Interrupted: after :meth:`request_stop`.
            TrainingError: the loss is no longer finite.
        """
        config = self.config
        console = Console(len(self.train_images)) if config.progress else Quiet()
        resumed = self._restore(console)
        log = EpochLog(self.folder, [asdict(e) for e in self.history], tensorboard=config.tensorboard)
        try:
            with console:
                for number in range(self._position.stage, len(self._stages)):
                    self._run_stage(number, resumed, console, log)
                    resumed = None
        finally:
            log.close()
        return self._finish()

    def _run_stage(self, number: int, resumed: dict | None, console: Quiet, log: EpochLog) -> None:
        """Run one stage, from its beginning or from where the saved state ``resumed`` left it."""
        config, position, stage = self.config, self._position, self._stages[number]
        optimizer = torch.optim.SGD(
            stage.begin(),
            lr=stage.rate(1),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        if resumed is not None and resumed["optimizer"] is not None:
            optimizer.load_state_dict(resumed["optimizer"])
        self.optimizer = optimizer
        console.start(stage.name, stage.epochs)
        while position.epoch <= stage.epochs:
            done = self._run_epoch(stage, optimizer, console)
            last_of_stage = position.epoch == stage.epochs and stage.name != MAIN
            console.epoch(done)
            if stage.name == MAIN:
                log.add(asdict(done))
                for callback in self._callbacks:
                    callback(self, done)
            # After the callbacks: a run that is killed before this repeats the epoch and what they wrote.
            position.next_stage() if last_of_stage else position.next_epoch()
            self._save(None if last_of_stage else optimizer)
            if last_of_stage:
                return

    def _run_epoch(self, stage: Stage, optimizer: torch.optim.Optimizer, console: Quiet) -> Epoch:
        config, images, position = self.config, self.train_images, self._position
        epoch = position.epoch
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(epoch)
        seed = config.seed if stage.name == MAIN else derive(config.seed, "first stage", stage.name)
        if position.step == 0:
            torch.manual_seed(derive(seed, "epoch", epoch))  # negatives, dropout and the like
        plan = plan_epoch(len(images), images.num_views, config.batch_size, seed=seed, epoch=epoch)
        stage.begin()  # the evaluation and a restored state leave the modes as they are; be certain
        if stage.name == MAIN:
            self.task.objective.start_epoch(epoch)
        before, started = position.seconds, time.perf_counter()
        known = self._teacher_rows(stage, plan)  # its cost belongs to the epoch
        for step, (indices, views) in enumerate(plan.to(self.device)):
            if step < position.step:
                continue
            batch = Batch(images.labels[indices], indices)
            with autocast(self.device, config.precision):
                teacher = known.slice(step * config.batch_size, len(indices)) if known else None
                output = stage.step(images.batch(indices, views), batch, teacher)
            optimizer.zero_grad(set_to_none=True)
            output.loss.backward()
            optimizer.step()
            logits = at_least_float32(output.logits)
            position.meter.add({**output.terms, **accuracies(logits, batch.labels)}, len(indices))
            console.step(epoch, position.meter.count)
            if self._stop:
                position.step, position.seconds = step + 1, before + time.perf_counter() - started
                self._save(optimizer)
                raise Interrupted(f"stopped in epoch {epoch} after step {step + 1}")
        train = position.meter.read()  # waits for the device
        seconds = before + time.perf_counter() - started
        _check_finite(train, epoch)
        done = Epoch(
            epoch, stage.rate(epoch), train, {}, seconds, position.meter.count / seconds, stage=stage.name
        )
        if stage.name != MAIN:
            self.first_stages.append(done)
            return done
        done.test = evaluate(self.task.student, self.test_images, config.precision)
        self.history.append(done)
        if self.best is None or done.test["top1"] > self.best.test["top1"]:
            self.best = done
            self._save_weights("best", done)
        return done

    # --- state -------------------------------------------------------------------------------------------

    def _save(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Save everything that the rest of the run depends on."""
        if self.folder is None:
            return
        state = {
            "position": self._position.state_dict(),
            "task": self.task.state_dict(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "history": [asdict(e) for e in self.history],
            "first_stages": [asdict(e) for e in self.first_stages],
            "best": self.best.epoch if self.best else None,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        save_state(self.folder.checkpoint, state)

    def _restore(self, console: Quiet) -> dict | None:
        """Go back to the saved state, if this run resumes one; return it."""
        if self.folder is None or not self.config.resume:
            return None
        if not self.folder.checkpoint.exists():  # stopped before the first one was written
            return None
        state, complaint = load_state(self.folder.checkpoint)
        if complaint:
            console.message(f"damaged checkpoint: {complaint}")
        try:
            self.task.load_state_dict(state["task"])
            self._position.load_state_dict(state["position"])
            self.history = [Epoch(**e) for e in state["history"]]
            self.first_stages = [Epoch(**e) for e in state["first_stages"]]
            self.best = next((e for e in self.history if e.epoch == state["best"]), None)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{self.folder.checkpoint} does not fit this run: {reason}") from None
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        console.message(f"resuming {self._position}")
        return state

    def _finish(self) -> Result:
        assert self.best is not None
        last = self.history[-1]
        record = build_record(
            self.config,
            self.task,
            self.data,
            str(self.device),
            self.history,
            self.first_stages,
            self.best,
            self.record,
        )
        self._save_weights("last", last)
        if self.folder is not None:
            write_json(self.folder.result, record)
        return Result(last, self.best, self.history, self.task.student, record)

    def _save_weights(self, which: str, epoch: Epoch) -> None:
        if self.folder is None:
            return
        student = self.task.student
        metadata = {
            "arch": getattr(student, "arch", type(student).__name__),
            "num_classes": str(self.data.num_classes),
            "data": self.data.name,
            "epoch": str(epoch.epoch),
            "which": which,
            "top1": f"{epoch.test['top1']:.4f}",
        }
        save_weights(self.folder.path / f"{which}.safetensors", student, metadata)


class _Position:
    """What comes next: stage (from 0), epoch (from 1), step (from 0), and what this epoch has summed up."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stage = 0
        self.epoch = 1
        self._start_epoch()

    def _start_epoch(self) -> None:
        self.step = 0
        self.seconds = 0.0
        self.meter = Meter()

    def next_epoch(self) -> None:
        self.epoch += 1
        self._start_epoch()

    def next_stage(self) -> None:
        self.stage += 1
        self.epoch = 1
        self._start_epoch()

    def __str__(self) -> str:
        return f"at epoch {self.epoch}, step {self.step + 1}"

    def state_dict(self) -> dict[str, Any]:
        state = {key: getattr(self, key) for key in ("stage", "epoch", "step", "seconds")}
        return {**state, "meter": self.meter.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key in ("stage", "epoch", "step", "seconds"):
            setattr(self, key, state[key])
        self.meter = Meter()
        self.meter.load_state_dict(state["meter"], self._device)


def _check_finite(means: dict[str, float], epoch: int) -> None:
    broken = [name for name, value in means.items() if not math.isfinite(value)]
    if broken:
        raise TrainingError(
            f"{', '.join(broken)} is not finite in epoch {epoch}; "
            "a lower learning rate, or fp32 instead of bf16, may help"
        )
