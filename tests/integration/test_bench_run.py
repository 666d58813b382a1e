"""The runner as a user meets it: budgets, kills, several at once, teachers that are not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from itrd.bench.cells import cells_of
from itrd.bench.check import check_ledger, check_zoo
from itrd.bench.ledger import Ledger
from itrd.bench.runner import Options, Runner
from itrd.bench.tracks import load_track
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


def start(*words: str, program: Sequence[str] = ("-m", "itrd"), alone: bool = False) -> subprocess.Popen:
    command = [sys.executable, *program, "bench", "run", "--track", "tiny.yaml", *words]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=alone,
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


def test_runners_that_all_fail_are_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    Path("tiny.yaml").write_text(yaml.safe_dump({**TRACK, "data": "cifar100"}))
    assert bench("--jobs", "2", "--data_root", "nowhere") == 1
    error = capfd.readouterr().err
    assert "2 of 2 runners failed: " in error
    assert "nowhere" in error
    assert "(0 cells done, 5 left)" in error
    assert "Traceback" not in error


SLOW_STEPS = """
import sys, time
from itrd.cli import main
from itrd.engine.log import Quiet
def step(self, epoch, images):
    print("step", flush=True)
    time.sleep(60)  # longer than anybody waits
Quiet.step = step
if __name__ == "__main__":  # the processes of --jobs read this file, too
    sys.exit(main())
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_second_signal_ends_runners_at_once(jobs: str) -> None:
    Path("slow.py").write_text(SLOW_STEPS)
    process = start("--jobs", jobs, program=["slow.py"])
    assert process.stdout is not None
    assert process.stdout.readline() == "step\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # the first one waits for the step
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130


def test_a_signal_that_everybody_gets_counts_once() -> None:
    """A terminal, or a batch system, signals parent and children alike: they save all the same."""
    Path("tiny.yaml").write_text(yaml.safe_dump({**TRACK, "settings": {**TRACK["settings"], "epochs": 500}}))
    process = start("--jobs", "2", "--methods", "none", alone=True)
    folders = [Path(f"runs/tiny/resnet8-none-seed{seed}") for seed in (0, 1)]
    wait_for(lambda: all((f / "checkpoint.pt").exists() for f in folders) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.count("the next runner continues it") == 2
    assert not list(Path("results/tiny/.claims").glob("*.json"))


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


def test_the_result_of_another_run_does_not_become_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    cell = ["--methods", "kd", "--seeds", "0"]
    assert bench("--methods", "teacher") == 0
    assert bench(*cell) == 0
    result, record = (
        Path("runs/tiny/resnet14-resnet8-kd-seed0/result.json"),
        Path("results/tiny") / f"{NAMES[0]}.json",
    )
    held, before = json.loads(result.read_text()), numbers(Path("results"))
    record.unlink()
    others = {
        "other learning_rate, seed": {"settings": {**held["settings"], "seed": 7, "learning_rate": 1e-4}},
        "other augment": {"settings": {**held["settings"], "augment": "none"}},
        "other content of the data": {"data": {**held["data"], "fingerprint": "0" * 64}},
        "other weights of the teacher": {"teacher": {**held["teacher"], "sha256": "0" * 64}},
        "is damaged": {"settings": None},
    }
    for complaint, change in others.items():
        result.write_text(json.dumps({**held, **change}))
        assert bench(*cell) == 1
        error = capsys.readouterr().err
        assert complaint in error
        assert "another folder with --out" in error
        assert not record.exists()
    result.write_text(json.dumps(held))
    assert bench(*cell) == 0
    assert f"taken from the finished run in {result.parent}, nothing is trained" in capsys.readouterr().err
    assert numbers(Path("results")) == before
    assert bench(*cell, "--results", "again/results", "--out", "again/runs") == 0  # a fresh one
    assert "resnet8-kd-seed0: starts" in capsys.readouterr().err
    assert numbers(Path("again/results")).items() <= before.items()


@pytest.mark.parametrize(
    "setting", [{"augment": "none"}, {"flip": True}, {"image_size": 16}, {"normalisation": "imagenet"}]
)
def test_students_do_not_get_the_images_as_their_teacher_reads_them(setting: dict[str, Any]) -> None:
    Path("tiny.yaml").write_text(yaml.safe_dump({**TRACK, "teacher": setting}))
    track = load_track("tiny.yaml")
    teacher, *students = cells_of(track)
    runner = Runner(track, [], Options())
    theirs, first, second = (runner._dataset(cell) for cell in (teacher, *students[:2]))
    assert first is second
    assert first is not theirs


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
    photos = {**TRACK, "name": "photos", "data": "./photos"}
    Path("photos.yaml").write_text(yaml.safe_dump(photos))
    assert main(["bench", "plan", "--track", "photos.yaml", "--methods", "teacher"]) == 0
    assert "0 done; what the others cost is not known" in capsys.readouterr().out
    assert main(["report"]) == 0
    size = Path("report.md").stat().st_size
    assert f"written report.md ({size:,} bytes)" in capsys.readouterr().out


def test_the_command_line_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    for words, complaint in (
        (["run", "--track", "nothing"], "unknown track 'nothing'"),
        (["run", "--track", "tiny.yaml", "--methods", "magic"], "no method 'magic'"),
        (["run", "--track", "tiny.yaml", "--pairs", "resnet14:resnet8", "--seeds", "9"], ""),
        (["run", "--track", "tiny.yaml", "--jobs", "0"], "jobs must be at least 1"),
        (["run", "--track", "tiny.yaml", "--results", "/dev/null/x"], "choose another folder with --results"),
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
