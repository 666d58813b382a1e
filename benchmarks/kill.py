"""Kill training at random moments, resume it, and compare the end with a run that nobody disturbed.

    python benchmarks/kill.py --kills 200 [--out kills.json]

Every attempt is a process of its own that is ended with SIGKILL at a random moment, until the run is through; then
the bits of both files of weights, the curve and the best epoch are compared with those of the undisturbed run. The
processes are forked from one that has imported torch and done nothing else, for starting Python would take most of
the time. They write files slowly, in pieces, so that many kills fall into the middle of a write; nothing else about
them differs from ``itrd distill``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kill_worker import METHODS, worker

SHARE = 0.45  # of an undisturbed run's time: within it a kill falls
EARLY = 0.05  # share of kills that fall before training starts
WHERE = {
    "": "before training",
    "r": "between two steps",
    "s": "between two steps",
    "e": "in an evaluation",
    "E": "between two steps",
    "w": "in a write: first half of the bytes",
    "h": "in a write: second half of the bytes",
    "f": "in a write: flushing to the disk",
    "l": "in a write: keeping the previous checkpoint",
    "m": "in a write: renaming",
    "W": "between two steps",
}


# --- the harness -----------------------------------------------------------------------------------------


@dataclass
class Report:
    """What became of the kills of one method."""

    kills: int = 0
    equal: int = 0
    runs: int = 0
    where: Counter[str] = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)


class Harness:
    """Starts workers, kills them, and compares what they leave.

    Args:
        folder: for the runs.
        teacher: run folder of their teacher.
        seed: of the moments.
    """

    def __init__(self, folder: Path, teacher: Path, seed: int) -> None:
        self._folder, self._teacher, self._seed = folder, teacher, seed
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["itrd.engine.run", "itrd.engine.log", "sklearn.datasets"])

    def campaign(self, method: str, kills: int) -> Report:
        """Kill runs of a method until there were so many kills; compare every run with the undisturbed one."""
        draw = random.Random(f"{self._seed} {method}")
        whole = self._folder / f"{method}-whole"
        started = time.monotonic()
        self._attempt(method, whole, None)
        horizon = SHARE * (time.monotonic() - started)
        report = Report()
        while report.kills < kills:
            out, before, finished = self._folder / f"{method}-{report.runs}", report.kills, False
            while not finished:
                moment = None
                if report.kills < kills:
                    early = draw.random() < EARLY
                    moment = -draw.uniform(0, 0.2) if early else draw.uniform(0, horizon)
                where = self._attempt(method, out, moment)
                finished = where is None
                if where is not None:
                    report.kills += 1
                    report.where[where] += 1
            report.runs += 1
            difference = compare(whole, out)
            if difference:
                report.different.append(f"{out.name}: {difference}")
            else:
                report.equal += report.kills - before
                shutil.rmtree(out)
        return report

    def _attempt(self, method: str, out: Path, moment: float | None) -> str | None:
        """Run a worker and kill it; return where it was then, or None if it was through before.

        ``moment`` is in seconds after the start of training or, negative, of the process; None: no kill.
        """
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=worker, args=(method, str(out), str(self._teacher), theirs))
        process.start()
        theirs.close()
        told = b""
        if moment is not None:
            while moment >= 0 and b"r" not in told and (piece := os.read(ours.fileno(), 4096)):
                told += piece
            time.sleep(abs(moment))
            process.kill()
        while piece := os.read(ours.fileno(), 4096):
            told += piece
        process.join()
        status = process.exitcode
        process.close()
        ours.close()
        if status == 0:
            return None
        if moment is None or status != -signal.SIGKILL:
            log = Path(f"{out}.log").read_text()
            raise RuntimeError(f"a worker failed with status {status}:\n{log[-3000:]}")
        return WHERE[told.decode()[-1:]]


def compare(whole: Path, parts: Path) -> str | None:
    """Say in what two finished runs differ, in anything but times."""
    from itrd.engine.checkpoint import read_weights

    for name in ("last.safetensors", "best.safetensors"):
        (weights, about), (others, about_others) = (read_weights(folder / name) for folder in (whole, parts))
        if about != about_others or not _same(weights, others):
            return f"{name} differs"
    records = [json.loads((folder / "result.json").read_text()) for folder in (whole, parts)]
    for key in ("curve", "first_stages", "best", "last"):
        a, b = (_timeless(record[key]) for record in records)
        if a != b:
            return f"{key} differs"
    lines = [
        [_timeless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, parts)
    ]
    if lines[0] != lines[1]:
        return "metrics.jsonl differs"
    left = [path.name for path in parts.iterdir() if path.name.endswith(".partial")]
    return f"left behind: {left}" if left else None


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def _timeless(epochs: Any) -> Any:
    if isinstance(epochs, list):
        return [_timeless(epoch) for epoch in epochs]
    return {k: v for k, v in epochs.items() if "second" not in k}


def make_teacher(folder: Path) -> Path:
    """Train a small teacher for the campaigns."""
    import itrd

    out = folder / "teacher"
    itrd.train("resnet8", "digits", train_subset=48, test_subset=40, epochs=1, out=str(out), device="cpu")
    return out


def main() -> int:
    """Run all campaigns and print their figures."""
    import torch  # not above: every worker imports this module, too
    from common import add_out, write

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="kills in all (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    add_out(parser)
    options = parser.parse_args()
    share, total, started = -(-options.kills // len(METHODS)), Report(), time.monotonic()
    reports: dict[str, Report] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        harness = Harness(folder, make_teacher(folder), options.seed)
        for method in METHODS:
            report = reports[method] = harness.campaign(method, share)
            print(f"{method}: {report.equal} of {report.kills} kills equal, {report.runs} runs", flush=True)
            total.kills += report.kills
            total.equal += report.equal
            total.where += report.where
            total.different += report.different
    for where, count in total.where.most_common():
        print(f"  {count:4d} {where}")
    for difference in total.different:
        print(f"  DIFFERENT {difference}")
    write(
        options,
        torch.device("cpu"),
        seconds=time.monotonic() - started,
        methods={name: {"kills": r.kills, "equal": r.equal, "runs": r.runs} for name, r in reports.items()},
        where=dict(total.where.most_common()),
        different=total.different,
    )
    print(f"{total.equal} of {total.kills} kills equal, in {time.monotonic() - started:.0f} s")
    return 0 if total.equal == total.kills else 1


if __name__ == "__main__":
    sys.exit(main())
