"""Several runners: side by side on one machine, or on a Ray cluster.

They share nothing but the disk: each takes claims like any other runner, so none needs to know of the others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

from itrd.bench.cells import Cell
from itrd.bench.runner import Options, Report, Runner, say
from itrd.bench.tracks import Track
from itrd.engine.interrupt import SIGNALS, held, receive, stop_on_signals
from itrd.errors import ItrdError, UserError, first_line
from itrd.extras import require


def alone(track: Track, cells: list[Cell], options: Options) -> Report:
    """Run in this process; SIGINT and SIGTERM end it with everything saved, a second signal at once."""
    with stop_on_signals(), held():
        return Runner(track, cells, options).run()


def side_by_side(track: Track, cells: list[Cell], options: Options, jobs: int) -> Report:
    """Run several processes on this machine, for example several students on one GPU.

    SIGINT and SIGTERM end them with everything saved, a second signal at once.

    Raises:
        ItrdError: a process failed, or ended without a report.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    children: list[tuple[SpawnProcess, Connection]] = []
    first = 0  # signal

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal first
        for child, _ in children:
            child.kill() if first else child.terminate()
        first = first or number

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        for _ in range(jobs):
            mine, theirs = context.Pipe(duplex=False)
            child = context.Process(target=_child, args=(theirs, track, cells, options, jobs))
            child.start()
            theirs.close()  # so that the pipe ends with the child
            children.append((child, mine))
            if first:  # while this one was started
                child.terminate()
        outcomes = [_outcome(child, pipe) for child, pipe in children]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if first:  # one that had not begun yet ends without a report then, and nothing is lost
        outcomes = [outcome for outcome in outcomes if isinstance(outcome, Report)]
    total = _merged(track, cells, options, outcomes)
    total.signal = first or total.signal
    return total


def _outcome(child: SpawnProcess, pipe: Connection) -> Report | str:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return "it ended without a report; what it had begun can be continued"
    finally:
        child.join()


def _child(pipe: Connection, track: Track, cells: list[Cell], options: Options, jobs: int) -> None:
    for number in SIGNALS:
        # No more than noted, however often: a terminal signals the children as well as the parent, which passes it on.
        signal.signal(number, lambda number, frame: receive(number))
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    pipe.send(_work(track, cells, options))


def _work(track: Track, cells: list[Cell], options: Options) -> Report | str:
    """Be one of several runners; return what it did, or the error that ended it."""
    try:
        return Runner(track, cells, options).run()
    except ItrdError as error:
        text = " ".join(str(error).split())  # not every error can be sent to another process
        say(f"a runner failed: {text}")
        return text


def on_ray(address: str, track: Track, cells: list[Cell], options: Options, jobs: int | None) -> Report:
    """Run on the machines of a Ray cluster, which share this folder and have this package.

    Args:
        address: of the cluster, as Ray takes it.
        track: what the cells are of.
        cells: which.
        options: how; paths are taken from this process's folder.
        jobs: number of runners; by default one a GPU, or, without any, one a CPU.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
        ItrdError: a runner failed.
    """
    ray = require("ray", "ray")
    try:
        ray.init(address=address, log_to_driver=True, logging_level="warning")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"no Ray cluster at {address}: {first_line(error)}") from None
    try:
        resources = ray.cluster_resources()
        gpus, cpus = resources.get("GPU", 0.0), resources.get("CPU", 1.0)
        jobs = jobs or int(gpus or cpus) or 1
        share: dict[str, Any] = {"num_cpus": min(1.0, cpus / jobs), "num_gpus": min(1.0, gpus / jobs)}
        options = replace(
            options,
            results=options.results.absolute(),
            runs=options.runs.absolute(),
            zoo=options.zoo.absolute(),
            data_root=str(Path(options.data_root).absolute()),
            teacher_table=options.teacher_table and str(Path(options.teacher_table).absolute()),
        )
        work = ray.remote(max_retries=3)(_work).options(**share)  # a lost machine's cells are continued
        outcomes = ray.get([work.remote(track, cells, options) for _ in range(jobs)])
        return _merged(track, cells, options, outcomes)
    finally:
        ray.shutdown()


def _merged(track: Track, cells: list[Cell], options: Options, outcomes: Iterable[Report | str]) -> Report:
    """Make one report of those of several runners; what is left the ledger says.

    Raises:
        ItrdError: one of them failed as a whole.
    """
    total = Report()
    outcomes = list(outcomes)
    for report in outcomes:
        if isinstance(report, Report):
            total.done += report.done
            total.failed |= report.failed
            total.stopped = total.stopped or report.stopped
            total.signal = total.signal or report.signal
            total.skipped |= {c: why for c, why in report.skipped.items() if "another runner" not in why}
    left = set(Runner(track, cells, options).open_cells())
    total.left = len(left)
    # What one of them could not do, another may have done.
    total.failed = {cell: why for cell, why in total.failed.items() if cell in left}
    total.skipped = {cell: why for cell, why in total.skipped.items() if cell in left}
    errors = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if errors:
        raise ItrdError(
            f"{len(errors)} of {len(outcomes)} runners failed: {'; '.join(dict.fromkeys(errors))} "
            f"({len(total.done)} cells done, {total.left} left)"
        )
    return total
