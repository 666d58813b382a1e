"""The loop: epochs of steps, an evaluation after each, and everything written down.

Randomness is a function of (seed, purpose, epoch), so that a resumed run continues to the same weights as a
run that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from itrd.data.datasets import ImageDataset, Split
from itrd.data.device import DeviceImages
from itrd.data.plan import plan_epoch
from itrd.engine.checkpoint import load_state, save_state, save_weights
from itrd.engine.config import RunConfig, milestone_rate
from itrd.engine.device import autocast, resolve_device
from itrd.engine.evaluate import evaluate
from itrd.engine.files import write_json
from itrd.engine.folder import RunFolder
from itrd.engine.log import Console, EpochLog, Quiet
from itrd.engine.metrics import Meter, accuracies
from itrd.engine.provenance import command_line, provenance
from itrd.engine.task import DistillTask
from itrd.errors import CheckpointError, TrainingError
from itrd.methods.base import Batch, at_least_float32
from itrd.seeds import derive


@dataclass
class Epoch:
    """What one epoch measured.

    Attributes:
        epoch: counted from 1.
        learning_rate: of this epoch.
        train: sample-weighted means over the epoch's augmented batches: loss, its unweighted terms, top1, top5.
        test: top1, top5 (percent) and loss on the test set after the epoch.
        seconds: training time, evaluation not included.
        images_per_second: training images per second.
    """

    epoch: int
    learning_rate: float
    train: dict[str, float]
    test: dict[str, float]
    seconds: float
    images_per_second: float


@dataclass
class Result:
    """A finished run.

    Attributes:
        last: the last epoch: the result.
        best: the epoch with the highest test accuracy, chosen on the test set: optimistic, for reference only.
        history: all epochs.
        student: the trained network, with the weights of the last epoch.
        record: everything that ``result.json`` holds.
    """

    last: Epoch
    best: Epoch
    history: list[Epoch]
    student: nn.Module
    record: dict[str, Any] = field(repr=False)


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
        callbacks: called with the trainer and the epoch after each epoch.
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
        self.best: Epoch | None = None
        self._folder = folder
        self._record = record or {}
        self._callbacks = callbacks
        self._stop = False
        self._place()
        assert config.learning_rate is not None
        self.optimizer = torch.optim.SGD(
            self.task.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )

    def _place(self) -> None:
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
        console = Console(config.epochs, len(self.train_images)) if config.progress else Quiet()
        first, step, meter, seconds = self._restore(console)
        log = EpochLog(self._folder, [asdict(e) for e in self.history], tensorboard=config.tensorboard)
        try:
            with console:
                for epoch in range(first, config.epochs + 1):
                    self._train_epoch(epoch, step, meter, seconds, console)
                    step, meter, seconds = 0, Meter(), 0.0
                    finished = self.history[-1]
                    log.add(asdict(finished))
                    for callback in self._callbacks:
                        callback(self, finished)
                    console.epoch(finished)
        finally:
            log.close()
        return self._finish()

    def _train_epoch(self, epoch: int, first_step: int, meter: Meter, seconds: float, console: Quiet) -> None:
        config, images = self.config, self.train_images
        rate = milestone_rate(config.learning_rate or 0.0, config.lr_decay, config.milestones or [], epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if first_step == 0:
            torch.manual_seed(derive(config.seed, "epoch", epoch))  # dropout and the like
        plan = plan_epoch(len(images), images.num_views, config.batch_size, seed=config.seed, epoch=epoch).to(
            self.device
        )
        self.task.train()
        started = time.perf_counter()
        for step, (indices, views) in enumerate(plan):
            if step < first_step:
                continue
            self._train_step(images.batch(indices, views), Batch(images.labels[indices], indices), meter)
            console.step(epoch, meter.count)
            if self._stop:
                self._save(epoch, step + 1, meter, seconds + time.perf_counter() - started)
                raise Interrupted(f"stopped in epoch {epoch} after step {step + 1}")
        train = meter.read()  # waits for the device
        seconds += time.perf_counter() - started
        _check_finite(train, epoch)
        test = evaluate(self.task.student, self.test_images, config.precision)
        done = Epoch(epoch, rate, train, test, seconds, meter.count / seconds)
        self.history.append(done)
        if self.best is None or test["top1"] > self.best.test["top1"]:
            self.best = done
            self._save_weights("best", done)
        self._save(epoch + 1, 0, Meter(), 0.0)

    def _train_step(self, images: torch.Tensor, batch: Batch, meter: Meter) -> None:
        with autocast(self.device, self.config.precision):
            output = self.task(images, batch)
        self.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        self.optimizer.step()
        logits = at_least_float32(output.logits)
        meter.add({**output.terms, **accuracies(logits, batch.labels)}, len(batch.labels))

    # --- state -------------------------------------------------------------------------------------------

    def _save(self, epoch: int, step: int, meter: Meter, seconds: float) -> None:
        """Save everything that the rest of the run depends on; ``epoch`` and ``step`` are the next to do."""
        if self._folder is None:
            return
        state = {
            "epoch": epoch,
            "step": step,
            "meter": meter.state_dict(),
            "seconds": seconds,
            "task": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": [asdict(e) for e in self.history],
            "best": self.best.epoch if self.best else None,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        save_state(self._folder.checkpoint, state)

    def _restore(self, console: Quiet) -> tuple[int, int, Meter, float]:
        meter = Meter()
        if self._folder is None or not self.config.resume:
            return 1, 0, meter, 0.0
        if not self._folder.checkpoint.exists():  # stopped before the first one was written
            return 1, 0, meter, 0.0
        state, complaint = load_state(self._folder.checkpoint)
        if complaint:
            console.message(f"damaged checkpoint: {complaint}")
        try:
            self.task.load_state_dict(state["task"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{self._folder.checkpoint} does not fit this run: {reason}") from None
        self.history = [Epoch(**e) for e in state["history"]]
        self.best = next((e for e in self.history if e.epoch == state["best"]), None)
        meter.load_state_dict(state["meter"], self.device)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        console.message(f"resuming at epoch {state['epoch']}, step {state['step'] + 1}")
        return state["epoch"], state["step"], meter, state["seconds"]

    def _finish(self) -> Result:
        assert self.best is not None
        last = self.history[-1]
        record = {
            "format": 1,
            "protocol": self.config.protocol(),
            "settings": self.config.identity(),
            **self._record,
            "data": {
                "name": self.data.name,
                "fingerprint": self.data.fingerprint,
                "train": len(self.data.train),
                "test": len(self.data.test),
            },
            "parameters": sum(p.numel() for p in self.task.student.parameters()),
            "objective": self.task.objective.describe(),
            "device": str(self.device),
            "provenance": provenance(str(self.device)),
            "command": command_line(),
            "seconds": sum(e.seconds for e in self.history),
            "last": asdict(last),
            "best": asdict(self.best),
            "curve": [asdict(e) for e in self.history],
        }
        self._save_weights("last", last)
        if self._folder is not None:
            write_json(self._folder.result, record)
        return Result(last, self.best, self.history, self.task.student, record)

    def _save_weights(self, which: str, epoch: Epoch) -> None:
        if self._folder is None:
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
        save_weights(self._folder.path / f"{which}.safetensors", student, metadata)


def _check_finite(means: dict[str, float], epoch: int) -> None:
    broken = [name for name, value in means.items() if not math.isfinite(value)]
    if broken:
        raise TrainingError(
            f"{', '.join(broken)} is not finite in epoch {epoch}; "
            "a lower learning rate, or fp32 instead of bf16, may help"
        )
