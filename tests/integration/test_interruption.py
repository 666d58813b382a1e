"""Signals and sudden death at any moment: the documented status, and the same end after --resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kill  # the harness that `make reliability` runs at full length
import pytest

from itrd.cli import main
from itrd.engine import inputs
from itrd.engine import run as engine_run
from itrd.engine import trainer as engine_trainer
from itrd.engine.log import Quiet
from itrd.errors import UserError


def command(teacher: Path, out: Path, *more: str) -> list[str]:
    small = ["--train_subset", "60", "--test_subset", "40", "--batch_size", "16", "--epochs", "2"]
    quiet = ["--tensorboard", "false", "--progress", "false", "--device", "cpu"]
    method = ["--method", "abound(init_epochs=1)"]
    return [
        *("distill", "--teacher", str(teacher), "--student", "resnet8", "--out", str(out)),
        *(*method, *small, *quiet, *more),
    ]


def signalling(function: Callable[..., Any], number: int, call: int) -> Callable[..., Any]:
    """The function, which sends this process a signal at its call of a given number, from 1."""
    calls = [0]

    def called(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            signal.raise_signal(number)
        return function(*arguments, **named)

    return called


# Where the signal arrives: object, attribute, number of the call, and whether there is a run to resume then.
MOMENTS: dict[str, tuple[Any, str, int, bool]] = {
    "data loading": (inputs, "read_dataset", 1, False),
    "the evaluation of the teacher": (engine_run, "evaluate", 1, False),
    "opening the logs": (engine_trainer, "EpochLog", 1, True),
    "the first stage": (Quiet, "step", 2, True),
    "the end of the first stage": (engine_trainer, "save_run", 1, True),
    "the second stage": (Quiet, "step", 6, True),
    "an evaluation": (engine_trainer, "evaluate", 1, True),
    "a save": (engine_trainer, "save_run", 2, True),
    "the last evaluation": (engine_trainer, "evaluate", 2, True),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(teacher_folder, out)) == 0
    return out


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_at_any_moment(
    moment: str,
    number: int,
    status: int,
    whole: Path,
    teacher_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where, name, call, resumable = MOMENTS[moment]
    before = signal.getsignal(number)
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, signalling(getattr(where, name), number, call))
        assert main(command(teacher_folder, out)) == status
    assert signal.getsignal(number) is before
    error = capsys.readouterr().err
    assert error.startswith("itrd: stopped")
    assert error.count("\n") == 1
    assert ("continue with --resume" in error) == resumable == out.exists()
    assert main(command(teacher_folder, out, *(["--resume"] if resumable else []))) == 0
    assert kill.compare(whole, out) is None


def test_a_signal_in_the_final_save_lets_the_run_end(
    whole: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        saving = signalling(engine_trainer.save_run, signal.SIGTERM, 3)
        patch.setattr(engine_trainer, "save_run", saving)
        assert main(command(teacher_folder, out)) == 0
    assert kill.compare(whole, out) is None


SLOW_STEPS = """
import sys, time
from itrd.cli import main
from itrd.engine.log import Quiet
def step(self, epoch, images):
    print("step", flush=True)
    time.sleep(30)  # longer than anybody waits
Quiet.step = step
sys.exit(main(sys.argv[1:]))
"""


def test_a_second_signal_ends_the_process_at_once(teacher_folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_STEPS, *command(teacher_folder, tmp_path / "run")],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    while b"step" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None  # the first one waits for the step
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == 143


def test_a_lock_dies_with_its_process(teacher_folder: Path, tmp_path: Path) -> None:
    """A run that was killed left its lock file; nobody holds the lock."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_STEPS, *command(teacher_folder, out)],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    while b"step" not in process.stdout.readline():
        assert process.poll() is None
    assert main(command(teacher_folder, out, "--resume")) == 2
    process.kill()
    process.wait()
    (out / ".checkpoint.pt.abc.partial").write_bytes(b"half a checkpoint")
    assert (out / ".lock").exists()
    assert main(command(teacher_folder, out, "--resume")) == 0
    assert not list(out.glob(".*.partial"))


def test_kills_at_random_moments(teacher_folder: Path, tmp_path: Path) -> None:
    """`make reliability` does the same with 200 kills and all four methods."""
    harness = kill.Harness(tmp_path, teacher_folder, seed=1)
    for method in ("CRD", "AB"):
        report = harness.campaign(method, 4)
        assert (report.kills, report.equal, report.different) == (4, 4, [])


def test_an_exception_of_the_run_is_not_taken_for_a_stop() -> None:
    assert not issubclass(engine_trainer.Interrupted, Exception)
    assert not issubclass(UserError, engine_trainer.Interrupted)
