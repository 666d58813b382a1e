"""Stop real runs with a signal at random moments; measure how long they take to save and leave.

    python benchmarks/stop.py --stops 20 [--out stops.json]

Student and teacher are wrn_40_2, with ITRD at batch size 64: about a second a step on one core.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import add_out, write

from itrd.engine.checkpoint import save_weights
from itrd.models import create_model

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


def main() -> int:
    """Run, stop, print; the status is 1 if a process took more than 5 s or left with another status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--latest", type=float, default=40.0, help="seconds after the start of the process")
    add_out(parser)
    options = parser.parse_args()
    draw = random.Random(0)
    found = []
    with tempfile.TemporaryDirectory() as name:
        teacher = Path(name) / "teacher.safetensors"
        about = {"arch": "wrn_40_2", "num_classes": "10", "data": "digits"}
        save_weights(teacher, create_model("wrn_40_2", 10), about)
        out = Path(name) / "run"
        command = [
            sys.executable,
            "-m",
            "itrd",
            "distill",
            "--teacher",
            str(teacher),
            "--student",
            "wrn_40_2",
        ]
        command += [
            "--train_subset",
            "256",
            "--epochs",
            "1000",
            "--device",
            "cpu",
            "--progress",
            "false",
            "--out",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for number in range(options.stops):
            sent = list(STATUS)[number % 2]
            resume = ["--resume"] if out.exists() else []
            process = subprocess.Popen(
                [*command, str(out), *resume],
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=environment,
            )
            time.sleep(draw.uniform(0.5, options.latest))
            started = time.monotonic()
            process.send_signal(sent)
            _, told = process.communicate()
            seconds = time.monotonic() - started
            found.append((seconds, process.returncode, STATUS[sent]))
            print(
                f"{seconds:5.2f} s, status {process.returncode}: {told.decode().splitlines()[-1:]}",
                flush=True,
            )
    good = sum(seconds <= 5 and status == expected for seconds, status, expected in found)
    times = sorted(round(seconds, 3) for seconds, _, _ in found)
    print(
        f"{good} of {len(found)} in time, median {statistics.median(times):.2f} s, longest {times[-1]:.2f} s"
    )
    write(options, torch.device("cpu"), good=good, seconds=times)
    return 0 if good == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
