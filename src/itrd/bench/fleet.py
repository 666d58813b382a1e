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
from pathlib import Path
from types import FrameType
from typing import Any

from itrd.bench.cells import Cell
from itrd.bench.runner import Options, Report, Runner, say
from itrd.bench.tracks import Track
from itrd.errors import ItrdError, UserError


def alone(track: Track, cells: list[Cell], options: Options) -> Report:
    """Run in this process; SIGINT and SIGTERM end it with everything saved."""
    runner = Runner(track, cells, options)

    def stop(number: int, frame: FrameType | None) -> None:
        runner.report.signal = number
        runner.request_stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return runner.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def side_by_side(track: Track, cells: list[Cell], options: Options, jobs: int) -> Report:
    """Run several processes on this machine, for example several students on one GPU."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    children = []
    for _ in range(jobs):
        mine, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(theirs, track, cells, options, jobs))
        child.start()
        theirs.close()  # so that the pipe ends with the child
        children.append((child, mine))

    def forward(number: int, frame: FrameType | None) -> None:
        for child, _ in children:
            if child.is_alive():
                child.terminate()

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        reports = []
        for child, pipe in children:
            try:
                reports.append(pipe.recv())
            except EOFError:
                say("a runner ended without a report; what it had begun can be continued")
            child.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return _together(reports)


def _child(pipe: Connection, track: Track, cells: list[Cell], options: Options, jobs: int) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    try:
        pipe.send(alone(track, cells, options))
    except ItrdError as error:
        say(" ".join(str(error).split()))


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
    """
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed; `pip install ray`, or use scripts/slurm_array.sh") from None
    try:
        ray.init(address=address, log_to_driver=True, logging_level="warning")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from None
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
        work = ray.remote(max_retries=3)(_on_worker).options(**share)  # a lost machine's cells are continued
        return _together(ray.get([work.remote(track, cells, options) for _ in range(jobs)]))
    finally:
        ray.shutdown()


def _on_worker(track: Track, cells: list[Cell], options: Options) -> Report:
    return Runner(track, cells, options).run()


def _together(reports: Iterable[Report]) -> Report:
    """One report of several runners: what none of them has done is left."""
    total = Report()
    reports = list(reports)
    for report in reports:
        total.done += report.done
        total.failed |= report.failed
        total.stopped = total.stopped or report.stopped
        total.signal = total.signal or report.signal
        total.skipped |= {cell: why for cell, why in report.skipped.items() if "another runner" not in why}
    total.skipped = {cell: why for cell, why in total.skipped.items() if cell not in total.done}
    total.left = min((report.left for report in reports), default=0)
    return total
