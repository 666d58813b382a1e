"""The command line as a user meets it: real processes for start-up and signals, main() for the rest."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import itrd
from itrd.cli import main
from itrd.cli.commands import _show_classes
from itrd.engine.checkpoint import read_weights
from itrd.engine.provenance import command_line
from itrd.models import create_model

SMALL = [
    *("--train_subset", "60", "--test_subset", "40", "--batch_size", "16"),
    *("--tensorboard", "false", "--progress", "false"),
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must be refused: status 2, one line, nothing written. Return the line."""
    before = sorted(Path().rglob("*"))
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("itrd: error: ")
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return error


def distill(teacher: Path | str, *more: str) -> list[str]:
    return ["distill", "--teacher", str(teacher), "--student", "resnet8", "--epochs", "1", *SMALL, *more]


def test_train_distill_eval(teacher_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["train", "--model", "resnet8", "--data", "digits", "--epochs", "1", *SMALL, "--out", "t"]) == 0
    )
    assert main(distill("t", "--method", "kd + itrd", "--out", "s")) == 0
    assert main(["eval", "--model", "s"]) == 0
    out = capsys.readouterr().out
    assert "teacher resnet8: " in out
    assert "1*ce + 1*kd(T=4.0) + 1*itrd(" in out
    assert "top-1 " in out.splitlines()[-1]
    assert main(["eval", "--model", "s", "--by_class"]) == 0
    first, *table, mean = capsys.readouterr().out.splitlines()
    assert first == out.splitlines()[-1]
    rows = [line.split() for line in table[3:-1]]
    right = [float(row[2].rstrip("%")) for row in rows]
    assert right == sorted(right)
    assert {row[0] for row in rows} == set(itrd.load_dataset("digits").class_names)
    assert mean == f"mean of the 10 classes' accuracies: {sum(right) / 10:.2f}%"
    images = [int(row[1]) for row in rows]
    assert sum(n * share for n, share in zip(images, right, strict=True)) / sum(images) == pytest.approx(
        float(first.partition("top-1 ")[2].partition("%")[0]), abs=0.02
    )
    record = json.loads(Path("s/result.json").read_text())
    assert record["protocol"] == "custom"
    assert record["teacher"]["sha256"]
    assert set(record["last"]["train"]) == {"loss", "ce", "kd", "itrd.corr", "itrd.mutual", "top1", "top5"}
    assert record["last"] == record["curve"][-1]
    _, metadata = read_weights(Path("s/last.safetensors"))
    assert metadata["arch"] == "resnet8"
    assert metadata["top1"] == f"{record['last']['test']['top1']:.4f}"
    assert json.loads(Path("s/metrics.jsonl").read_text()) == record["curve"][0]


def test_the_summary_tells_the_moving_average(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--ema", "0.9", "--out", "a"], ["--out", "b"]):
        assert main(["train", "--model", "resnet8", "--data", "digits", "--epochs", "1", *SMALL, *flags]) == 0
        told = [line for line in capsys.readouterr().out.splitlines() if "moving average" in line]
        last = json.loads((Path(flags[-1]) / "result.json").read_text())["last"]
        assert len(told) == (flags[0] == "--ema")
        if told:
            assert told[0].startswith(f"top-1 {last['ema']['top1']:.2f}%")


def test_classes_with_names_like_markup_are_listed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    _show_classes(torch.tensor([[1, 2, 0], [0, 3, 0], [0, 0, 0]]), ["a[/b]", "[red]cats", ":cat:"])
    table = capsys.readouterr().out.splitlines()
    assert table[3].split() == ["a[/b]", "3", "33.33%", "[red]cats", "(66.7%)"]
    assert table[4].split() == ["[red]cats", "3", "100.00%"]
    assert table[-2:] == ["mean of the 2 classes' accuracies: 66.67%", "without test images: :cat:"]


def test_the_recorded_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("/somewhere/itrd/__main__.py", "/somewhere/bin/itrd"):
        monkeypatch.setattr(sys, "argv", [program, "distill", "--method", "kd + itrd"])
        assert command_line() == "itrd distill --method 'kd + itrd'"


def test_tensorboard_events() -> None:
    small = [word if word != "false" else "true" for word in SMALL]
    assert (
        main(["train", "--model", "resnet8", "--data", "digits", "--epochs", "2", *small, "--out", "t"]) == 0
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("t").Reload()
    assert {"train/loss", "train/ce", "test/top1", "test/top5", "learning_rate"} <= set(
        events.Tags()["scalars"]
    )
    assert [e.step for e in events.Scalars("test/top1")] == [1, 2]


def test_profile(teacher_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["distill", "--teacher", str(teacher_folder), "--student", "resnet8", "--batch_size", "8"]
    assert main([*command, "--profile", "trace.json"]) == 0
    out = capsys.readouterr().out
    for part in (
        "teacher, forward",
        "student, forward",
        "losses, forward",
        "backward",
        "check and optimiser",
        "rest",
    ):
        assert part in out
    assert "traceEvents" in json.loads(Path("trace.json").read_text())
    assert [p.name for p in Path().iterdir()] == ["trace.json"]


def test_first_stages_are_written_down_too(teacher_folder: Path) -> None:
    small = [word if word != "false" else "true" for word in SMALL]
    command = ["distill", "--teacher", str(teacher_folder), "--student", "resnet8", "--epochs", "1", *small]
    assert main([*command, "--method", "kd + abound(init_epochs=2)", "--out", "s"]) == 0
    lines = [json.loads(line) for line in Path("s/metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [("abound", 1), ("abound", 2), ("main", 1)]
    assert set(lines[0]["train"]) >= {"loss", "abound"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("s/first-stage-abound").Reload()
    assert [e.step for e in events.Scalars("train/abound")] == [1, 2]


def test_config_file_round_trip(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--model", "resnet8", "--data", "digits", "--epochs", "3", "--print_config"])
    Path("c.yaml").write_text(capsys.readouterr().out)
    assert yaml.safe_load(Path("c.yaml").read_text())["epochs"] == 3
    assert main(["train", "--config", "c.yaml", "--epochs", "1", *SMALL, "--out", "t"]) == 0
    assert json.loads(Path("t/result.json").read_text())["settings"]["epochs"] == 1


def test_listings(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, expected in (("models", "wrn_40_2"), ("methods", "2112.00459"), ("datasets", "cifar100")):
        assert main([verb]) == 0
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shell_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--print_completion", f"shtab-{shell}"])
    assert stop.value.code == 0
    script = capsys.readouterr().out
    assert "distill" in script
    assert "--student" in script


def test_unknown_names(capsys: pytest.CaptureFixture[str], teacher_folder: Path) -> None:
    assert "did you mean 'resnet8'" in refused(capsys, "train", "--model", "resnet9")
    teacher = str(teacher_folder)
    assert "did you mean 'wrn_16_2'" in refused(
        capsys, "distill", "--teacher", teacher, "--student", "wrn16_2"
    )
    assert "did you mean 'itrd'" in refused(capsys, *distill(teacher_folder, "--method", "itdr"))
    assert "did you mean 'cifar100'" in refused(capsys, "train", "--model", "resnet8", "--data", "cifar-100")
    assert "no setting 'beta'" in refused(capsys, *distill(teacher_folder, "--method", "itrd(beta=1)"))
    assert "invalid choice: 'distil'" in refused(capsys, "distil")
    assert "--student" in refused(capsys, "distill", "--teacher", teacher)
    for option, meant in (("--epoks", "--epochs"), ("--lr", "--learning_rate"), ("--lr_d", "--lr_decay")):
        line = refused(capsys, "train", "--model", "resnet8", option, "0.5")
        assert f"unrecognized arguments: {option} 0.5; did you mean {meant}?" in line
    line = refused(capsys, "train", "--model", "resnet8", "--optimizer", "adam")
    assert "unrecognized arguments: --optimizer adam (see" in line
    assert "epochs must be at least 1" in refused(capsys, "train", "--model", "resnet8", "--epochs", "0")
    for device in ("mps", "meta", "cpu:7", "tpu", "cuda:99"):
        assert "device" in refused(capsys, "train", "--model", "resnet8", "--device", device)
    assert "momentum must be at least 0" in refused(capsys, "train", "--model", "resnet8", "--momentum", "-1")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("train --model resnet8 --epochs two", "epochs must be a whole number, got 'two' (see `itrd train"),
        (
            "train --model resnet8 --milestones 3,b",
            "milestones must be a list of whole numbers, as in [3,4], got",
        ),
        ("train --model resnet8 --resume maybe", "resume must be true or false, got 'maybe'"),
        ("export --model m --out o --format onx", "format must be 'safetensors' or 'onnx' or "),
        (
            "distill --student resnet8 --config taps.yaml",
            "teacher_taps must be a list of strings, as in [layer3,",
        ),
        ("train --config empty.yaml", "the settings file holds no settings; write one a line"),
        ("train --config unknown.yaml", "`itrd train` has no setting 'modle'; did you mean 'model'?"),
        ("train --config imagenet", "`itrd train` has no setting 'teacher'; it is one of `itrd distill`"),
        ("distill --teacher t", "--student must be given (see `itrd distill --help`)"),
        ("export", "--model and --out must be given (see `itrd export --help`)"),
        ("bench", "which command? One of plan,run,check (see `itrd bench --help`)"),
    ],
)
def test_wrong_values_are_told_in_our_words(
    arguments: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty.yaml").write_text("")
    Path("taps.yaml").write_text("teacher_taps: {a: b}")
    Path("unknown.yaml").write_text("modle: resnet8")
    line = refused(capsys, *arguments.split())
    assert expected in line
    assert "<class" not in line


def test_lists_need_no_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "distill",
        "--student",
        "resnet8",
        "--milestones",
        "3,4",
        "--teacher_mean",
        "0.5",
        "--teacher_std",
    ]
    with pytest.raises(SystemExit):
        main(
            [
                *command,
                "[0.2, 0.3]",
                "--teacher_taps",
                "a,embedding=b",
                "--student_taps=null",
                "--print_config",
            ]
        )
    read = yaml.safe_load(capsys.readouterr().out)
    assert (read["milestones"], read["teacher_mean"], read["teacher_std"]) == ([3, 4], [0.5], [0.2, 0.3])
    assert (read["teacher_taps"], read["student_taps"]) == (["a", "embedding=b"], None)


def test_missing_and_damaged_data(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--model", "resnet8", "--data", "cifar100", "--data_root", "d"]
    assert "itrd datasets --download cifar100" in refused(capsys, *command)
    folder = Path("d/cifar-100-python")
    folder.mkdir(parents=True)
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(b"\x80\x02}q\x01(U\x04data")
    assert "cifar-100-python" in refused(capsys, *command)


def test_unusable_teachers(capsys: pytest.CaptureFixture[str], teacher_folder: Path) -> None:
    assert "fetch_pretrained_teachers.sh" in refused(capsys, *distill("wrn_40_2"))
    assert "no checkpoint at nothing.pth" in refused(capsys, *distill("nothing.pth"))

    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, ("executed",)

    Path("resnet8_evil").mkdir()
    torch.save({"model": Evil()}, "resnet8_evil/x.pth")
    assert "refused: it asks for more than weights" in refused(capsys, *distill("resnet8_evil/x.pth"))
    torch.save({"model": create_model("resnet14", 10).state_dict()}, "resnet8_evil/other.pth")
    assert "it fits resnet14" in refused(capsys, *distill("resnet8_evil/other.pth"))
    torch.save({"model": create_model("resnet8", 100).state_dict()}, "resnet8_evil/hundred.pth")
    line = refused(capsys, *distill("resnet8_evil/hundred.pth", "--data", "digits", "--method", "kd"))
    assert "has 100 classes and digits" in line
    Path("unfinished").mkdir()
    Path("unfinished/config.yaml").write_text("{}")
    assert "is not finished; continue it with --resume" in refused(capsys, *distill("unfinished"))
    assert "for teacher tables" in refused(capsys, *distill(teacher_folder, "--teacher_table", "/proc/x"))


def test_unusable_folders(capsys: pytest.CaptureFixture[str], teacher_folder: Path) -> None:
    Path("file").write_text("")
    Path("other").mkdir()
    Path("other/precious.txt").write_text("")
    assert "is a file" in refused(capsys, *distill(teacher_folder, "--out", "file"))
    assert "holds no run" in refused(capsys, *distill(teacher_folder, "--out", "other"))
    assert "nothing to resume" in refused(capsys, *distill(teacher_folder, "--out", "new", "--resume"))
    assert "cannot write" in refused(capsys, *distill(teacher_folder, "--out", "/proc/itrd/run"))
    assert main(distill(teacher_folder, "--out", "run")) == 0
    capsys.readouterr()
    assert "already holds this run" in refused(capsys, *distill(teacher_folder, "--out", "run"))
    line = refused(capsys, *distill(teacher_folder, "--out", "run", "--seed", "1", "--resume"))
    assert "holds another run (seed 0 not 1)" in line
    line = refused(capsys, "train", "--model", "resnet8", "--out", "run", "--resume")
    assert "run holds a run of `itrd distill`; choose another" in line
    alone = ["train", "--model", "resnet8", "--data", "digits", "--epochs", "1", *SMALL, "--out", "alone"]
    assert main(alone) == 0
    capsys.readouterr()
    line = refused(capsys, *distill(teacher_folder, "--out", "alone", "--resume"))
    assert "alone holds a run of `itrd train`; choose another" in line


def test_a_folder_in_use_is_refused(capsys: pytest.CaptureFixture[str], teacher_folder: Path) -> None:
    from filelock import FileLock

    assert main(distill(teacher_folder, "--out", "run")) == 0
    capsys.readouterr()
    with FileLock("run/.lock"):
        assert "another process is using run" in refused(
            capsys, *distill(teacher_folder, "--out", "run", "--resume")
        )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_exit_and_the_run_goes_on(number: int, status: int) -> None:
    command = [sys.executable, "-m", "itrd", "train", "--model", "resnet8", "--data", "digits"]
    command += [*SMALL, "--epochs", "400", "--out", "run"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while not Path("run/checkpoint.pt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status
    assert "continue with --resume" in error
    done = len(Path("run/metrics.jsonl").read_text().splitlines())
    assert 1 <= done < 400


def test_help_is_quick() -> None:
    """Within half a second of an empty Python process, of a processor's time: medians of five."""

    def median(command: list[str]) -> float:
        times = []
        for _ in range(5):
            before = os.times()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            after = os.times()
            times.append(sum(after[2:4]) - sum(before[2:4]))  # children's user and system time
        return statistics.median(times)

    assert median(["-m", "itrd", "--help"]) - median(["-c", "pass"]) < 0.5


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; from itrd.cli.parser import build_parser; build_parser(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
