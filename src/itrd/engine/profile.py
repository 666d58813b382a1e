"""Where a step's time goes."""

from __future__ import annotations

import dataclasses
import gzip
import os
import zlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from itrd.engine.config import DistillConfig, RunConfig
from itrd.engine.inputs import find_teacher, get_data
from itrd.engine.record import Epoch
from itrd.engine.run import prepare
from itrd.engine.trainer import Trainer
from itrd.errors import UserError
from itrd.files import PARTIAL

# The parts of a step that the engine marks, in the order they run.
PARTS = {
    "itrd.augment": "crop, flip, normalise",
    "itrd.teacher": "teacher, forward",
    "itrd.student": "student, forward",
    "itrd.objective": "losses, forward",
    "itrd.backward": "backward",
    "itrd.update": "check and optimiser",
}


@dataclass(frozen=True)
class Profile:
    """What a profiled epoch took.

    Attributes:
        steps: number of steps.
        milliseconds: per step, by part; ``rest`` is the host's time between the parts and the metrics.
        trace: file for a trace viewer (chrome://tracing, Perfetto).
    """

    steps: int
    milliseconds: dict[str, float]
    trace: Path


def profile_run(config: RunConfig, trace: Path, steps: int = 20) -> Profile:
    """Run two short epochs as the settings say, record the second, and write a trace.

    Nothing of the run itself is written; a table of the teacher is a temporary one. A method's first stage is run as a
    whole. Recording slows a step down by a few percent.

    Raises:
        UserError: the trace cannot be written there, which is tried first, or something of the run cannot work.
    """
    _check_writable(trace)
    if isinstance(config, DistillConfig) and config.teacher_logits is None:
        config, _ = find_teacher(config)
    config = config.resolved()
    there = len(get_data(config, network=config.trained_model).train)
    images = min(steps * config.batch_size, there)
    steps = -(-images // config.batch_size)
    short = dataclasses.replace(
        config,
        train_subset=images,
        test_subset=None,
        epochs=2,
        warmup_epochs=0,  # which may be more than these two
        capture=False,  # a replayed step has no parts
        out="",
        resume=False,
        progress=False,
        tensorboard=False,
    )
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    recorder = profile(activities=activities)
    epochs: list[Epoch] = []

    def on_epoch(trainer: Trainer, epoch: Epoch) -> None:
        epochs.append(epoch)
        if epoch.epoch == 1:
            recorder.start()
        else:
            recorder.stop()

    with TemporaryDirectory() as folder:
        if isinstance(short, DistillConfig) and short.teacher_table is not None:
            short = dataclasses.replace(short, teacher_table=folder, fill_table=False)
        with prepare(short, [on_epoch]) as trainer:
            trainer.fit()
    _write(recorder, trace)
    total = 1000 * epochs[-1].seconds / steps
    spent = _spent(list(recorder.events() or []), on_gpu=trainer.device.type == "cuda")
    parts = {title: spent[name] / steps for name, title in PARTS.items() if spent[name] > 0}
    return Profile(steps, {**parts, "rest": total - sum(parts.values())}, trace)


def _check_writable(trace: Path) -> None:
    if trace.exists() and not trace.is_file():
        raise _not_written(trace, "it is a folder" if trace.is_dir() else "it is no plain file")
    try:
        with NamedTemporaryFile(dir=trace.parent, prefix=f".{trace.name}.", suffix=PARTIAL):
            pass
    except OSError as error:
        raise _not_written(trace, str(error.strerror)) from None


def _write(recorder: profile, trace: Path) -> None:
    """Write the trace under a temporary name, and give it its own if it is whole: the profiler tells of no failure."""
    try:
        with TemporaryDirectory(dir=trace.parent, prefix=f".{trace.name}.", suffix=PARTIAL) as folder:
            written = Path(folder) / f"trace{trace.suffix}"  # whose ending may ask for compression
            recorder.export_chrome_trace(str(written))
            if not _is_whole(written):
                raise _not_written(trace, "the disk may be full")
            os.replace(written, trace)
    except OSError as error:
        raise _not_written(trace, str(error.strerror or error)) from None


def _is_whole(written: Path) -> bool:
    last = b""
    try:
        with gzip.open(written) if written.suffix == ".gz" else written.open("rb") as file:
            while chunk := file.read(1 << 20):
                last = last[-64:] + chunk
    except (FileNotFoundError, EOFError, zlib.error, gzip.BadGzipFile):
        return False
    return last.rstrip().endswith(b"}")


def _not_written(trace: Path, why: str) -> UserError:
    return UserError(f"cannot write the trace {trace}: {why}; choose another file with --profile")


def _spent(events: Sequence[Any], *, on_gpu: bool) -> dict[str, float]:
    """Sum up the milliseconds of each part: of the host, or of the kernels that were launched during the part.

    A backward pass launches its kernels from a thread of its own, so that they belong to its part by time alone.
    """
    spent: dict[str, float] = defaultdict(float)
    host = [event for event in events if event.device_type == DeviceType.CPU]
    if not on_gpu:
        for event in host:
            if event.name in PARTS:
                spent[event.name] += event.cpu_time_total / 1000
        return spent
    spans = sorted((e.time_range.start, e.time_range.end, e.name) for e in host if e.name in PARTS)
    starts = [start for start, _, _ in spans]
    for event in host:
        at = bisect_right(starts, event.time_range.start) - 1
        if event.name not in PARTS and event.kernels and at >= 0 and event.time_range.start < spans[at][1]:
            spent[spans[at][2]] += sum(kernel.duration for kernel in event.kernels) / 1000
    return spent
