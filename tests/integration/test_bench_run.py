"""The runner as a user meets it: budgets, kills, several at once, teachers that are not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from itrd.bench.check import check_ledger, check_zoo
from itrd.bench.ledger import Ledger
from itrd.cli import main

TRACK: dict[str, Any] = {
    "name": "tiny",
    "title": "A few digits",
    "data": "digits",
    "pairs": [["resnet14", "resnet8"]],
    "settings": {"epochs": 4, "train_subset": 60, "test_subset": 40, "batch_size": 16},
    "waves": [{"methods": ["none", "kd"], "seeds": [0, 1]}],
}
NAMES = [
    "resnet14-resnet8-kd-seed0",
    "resnet14-resnet8-kd-seed1",
    "resnet8-none-seed0",
    "resnet8-none-seed1",
    "teacher-resnet14",
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(TRACK))


def bench(*words: str) -> int:
    return main(["bench", "run", "--track", "tiny.yaml", *words])


def start(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "itrd", "bench", "run", "--track", "tiny.yaml", *words]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def numbers(root: Path) -> dict[str, Any]:
    """What the records of a ledger measured, timing left out."""
    found = {}
    for path in sorted((root / "tiny").glob("*.json")):
        record = json.loads(path.read_text())
        curve = {name: record["curve"][name] for name in ("epoch", "learning_rate", "train", "test")}
        found[path.stem] = {"curve": curve, "teacher": record.get("teacher", {}).get("sha256")}
    return found


def assert_complete(root: Path = Path("results")) -> None:
    assert sorted(numbers(root)) == NAMES
    assert check_ledger(Ledger(root)) == []
    assert [p.name for p in (root / "tiny").glob(".*")] == [".claims"]
    assert [p.name for p in (root / "tiny" / ".claims").iterdir() if p.name != ".lock"] == []


def test_a_kill_and_a_second_run_give_what_one_run_gives(capsys: pytest.CaptureFixture[str]) -> None:
    """Two budgets with a kill in between: the same cells, the same numbers, no duplicate, nothing torn."""
    whole = ["--results", "whole/results", "--out", "whole/runs", "--zoo", "whole/zoo"]
    assert bench(*whole) == 0
    assert "5 cells done, 0 left" in capsys.readouterr().out
    assert_complete(Path("whole/results"))

    killed = Path("runs/tiny/resnet8-none-seed0")
    process = start("--budget", "60")
    wait_for(lambda: (killed / "checkpoint.pt").exists() or process.poll() is not None)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (killed / "checkpoint.pt").exists()
    done = len((killed / "metrics.jsonl").read_text().splitlines())
    assert Path("results/tiny/.claims/resnet8-none-seed0.json").exists()
    assert sorted(numbers(Path("results"))) == ["teacher-resnet14"]

    process = start("--budget", "60")
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "4 cells done, 0 left" in out
    assert "resuming at epoch" in error
    assert done >= 1
    assert_complete()
    assert numbers(Path("results")) == numbers(Path("whole/results"))


def test_students_that_train_together_write_the_same_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--results", "alone/results", "--out", "alone/runs", "--zoo", "alone/zoo") == 0
    assert bench("--together", "3") == 0
    assert "5 cells done, 0 left" in capsys.readouterr().out
    assert_complete()
    assert numbers(Path("results")) == numbers(Path("alone/results"))


def test_a_budget_is_kept_and_nothing_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.yaml").write_text(yaml.safe_dump({**TRACK, "teacher": {"epochs": 100000}}))
    started = time.monotonic()
    assert bench("--budget", "6", "--methods", "teacher") == 0
    assert time.monotonic() - started < 6.5
    assert "0 cells done, 1 left, budget spent" in capsys.readouterr().out
    assert Path("runs/tiny/teacher-resnet14/checkpoint.pt").exists()
    assert not list(Path("results/tiny/.claims").glob("*.json"))
    before = len(Path("runs/tiny/teacher-resnet14/metrics.jsonl").read_text().splitlines())
    assert before > 1
    assert bench("--budget", "4", "--methods", "teacher") == 0
    assert "resuming at epoch" in capsys.readouterr().err
    assert len(Path("runs/tiny/teacher-resnet14/metrics.jsonl").read_text().splitlines()) > before


def test_a_half_done_cell_goes_on_elsewhere() -> None:
    """Only the run folder is carried to another place."""
    import shutil

    Path("tiny.yaml").write_text(yaml.safe_dump({**TRACK, "settings": {**TRACK["settings"], "epochs": 60}}))
    cell = ["--methods", "none", "--seeds", "0"]
    process = start(*cell)
    folder = Path("runs/tiny/resnet8-none-seed0")
    wait_for(lambda: (folder / "checkpoint.pt").exists() or process.poll() is not None)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error
    shutil.copytree(folder, "elsewhere/tiny/resnet8-none-seed0")
    shutil.rmtree("runs")
    there = start(*cell, "--out", "elsewhere", "--results", "there")
    _, error = there.communicate(timeout=120)
    assert there.returncode == 0, error
    assert "resuming at epoch" in error
    assert [p.stem for p in Path("there/tiny").glob("*.json")] == ["resnet8-none-seed0"]


def test_two_runners_never_do_the_same_cell(capfd: pytest.CaptureFixture[str]) -> None:
    assert bench("--jobs", "2") == 0
    out, error = capfd.readouterr()
    assert "5 cells done, 0 left" in out
    finished = [line for line in error.splitlines() if "after the last epoch" in line]
    assert len(finished) == 5
    assert_complete()


def test_lack_of_a_teacher_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--methods", "kd") == 0
    told = capsys.readouterr()
    assert "0 cells done, 2 left" in told.out
    assert "no teacher zoo/tiny/resnet14.safetensors" in told.err
    assert main(["bench", "plan", "--track", "tiny.yaml"]) == 0
    plan = capsys.readouterr().out
    assert plan.count("no teacher") == 2
    assert plan.count("to do") == 3
    assert "estimate" in plan
    assert main(["bench", "plan", "--track", "tiny.yaml", "--rows", "2"]) == 0
    short = capsys.readouterr().out
    assert short.count("to do") + short.count("no teacher") == 2
    assert "and 3 more; --rows 0 lists all" in short
    assert short.splitlines()[-1] == plan.splitlines()[-1]  # the sums are those of all cells


def test_what_a_killed_runner_had_trained_is_not_trained_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench() == 0
    for name in ("resnet8-none-seed0", "teacher-resnet14"):
        Path(f"results/tiny/{name}.json").unlink()
    for path in Path("zoo/tiny").iterdir():
        path.unlink()
    before = numbers(Path("results"))
    capsys.readouterr()
    assert bench() == 0
    told = capsys.readouterr()
    assert "2 cells done, 0 left" in told.out
    assert "resuming" not in told.err
    assert_complete()
    assert numbers(Path("results")).items() >= before.items()
    assert check_zoo(Path("zoo")) == []


def test_a_failing_cell_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.yaml").write_text(yaml.safe_dump({**TRACK, "teacher": {"learning_rate": 1e30}}))
    assert bench() == 1
    told = capsys.readouterr()
    assert "failed: teacher-resnet14: " in told.err
    assert "2 cells done, 3 left" in told.out
    Path("results/tiny/resnet8-none-seed0.json").write_text("{torn")
    assert bench("--methods", "none") == 0
    assert "a damaged record is in its place" in capsys.readouterr().err


def test_counts_are_told_in_words_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    Path("one.md").write_text("No figure.")
    assert main(["bench", "check", "--files", "one.md"]) == 1  # no ledger
    assert capsys.readouterr().out == "0 records, 1 document: 1 fault\n"
    assert main(["bench", "plan", "--track", "tiny.yaml", "--methods", "teacher"]) == 0
    assert "\n1 cell of track tiny, 0 done" in capsys.readouterr().out
    assert main(["report"]) == 0
    size = Path("report.md").stat().st_size
    assert f"written report.md ({size:,} bytes)" in capsys.readouterr().out


def test_the_command_line_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    for words, complaint in (
        (["run", "--track", "nothing"], "unknown track 'nothing'"),
        (["run", "--track", "tiny.yaml", "--methods", "magic"], "no method 'magic'"),
        (["run", "--track", "tiny.yaml", "--pairs", "resnet14:resnet8", "--seeds", "9"], ""),
        (["run", "--track", "tiny.yaml", "--jobs", "0"], "jobs must be at least 1"),
        (["check", "--files", "nothing.md"], "no document nothing.md"),
    ):
        status = main(["bench", *words])
        error = capsys.readouterr().err
        assert complaint in error
        assert status == (2 if complaint else 0)
    with pytest.raises(SystemExit) as stop:
        main(["bench"])
    assert stop.value.code == 2
    assert "which command? One of plan,run,check" in capsys.readouterr().err


def test_ray(capfd: pytest.CaptureFixture[str]) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    address = ray.get_runtime_context().gcs_address
    try:
        assert start("--ray", address).wait(timeout=300) == 0
    finally:
        ray.shutdown()
    assert_complete()
