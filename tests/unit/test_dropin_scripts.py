"""Both scripts from end to end on a tiny dataset: files, their content, resuming."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_helpers import write_folder
from itrd.dropin import student
from itrd.dropin.files import OriginalFiles
from itrd.engine.networks import load_network
from itrd.engine.record import Epoch
from itrd.models import create_model

ROOT = Path(__file__).parents[2]
TEACHER = "save/models/resnet8_cifar100_lr_0.05_decay_0.0005_trial_0"
TINY = ["--batch_size", "8", "--num_workers", "2", "--device", "cpu"]
WITH_TEACHER = ["--path_t", f"./{TEACHER}/resnet8_last.pth", "--model_s", "wrn_16_1", *TINY]
ITRD = [*WITH_TEACHER, "-b", "1.0", "-r", "1.0"]
SCALARS = {"train_acc", "train_loss", "test_acc", "test_loss", "test_acc_top5"}


def start(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A folder with data and a teacher that train_teacher.py trained there."""
    folder = tmp_path_factory.mktemp("dropin")
    write_folder("cifar100", folder / "data", train=20, test=10)
    trained = start(
        folder, "train_teacher.py", "--model", "resnet8", "--epochs", "2", "--save_freq", "2", *TINY
    )
    return SimpleNamespace(folder=folder, trained=trained)


@pytest.fixture
def inside(place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place.folder)
    torch.set_num_threads(1)
    return place.folder


def load(path: Path) -> dict:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_teacher(place: SimpleNamespace) -> None:
    assert (place.trained.returncode, place.trained.stderr) == (0, "")
    assert "epoch 2, total time" in place.trained.stdout
    assert "best accuracy:" in place.trained.stdout
    folder = place.folder / TEACHER
    assert names(folder) == {"resnet8_best.pth", "ckpt_epoch_2.pth", "resnet8_last.pth", "run"}
    best, saved, last = (
        load(folder / f) for f in ("resnet8_best.pth", "ckpt_epoch_2.pth", "resnet8_last.pth")
    )
    assert best.keys() == {"epoch", "model", "best_acc", "optimizer"}
    assert saved.keys() == {"epoch", "model", "accuracy", "optimizer"}
    assert last.keys() == {"opt", "model", "optimizer"}
    assert last["opt"].model == "resnet8"
    assert saved["epoch"] == 2
    network = create_model("resnet8", 100)
    network.load_state_dict(last["model"], strict=True)
    torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9).load_state_dict(last["optimizer"])
    assert load_network(str(folder / "resnet8_last.pth")).arch == "resnet8"
    written = scalars(place.folder / TEACHER.replace("models", "tensorboard"))
    assert written.keys() == SCALARS
    assert [step for step, _ in written["test_acc"]] == [1, 2]
    assert written["test_acc"][1][1] == pytest.approx(float(saved["accuracy"]))


def test_itrd_student(place: SimpleNamespace) -> None:
    ran = start(
        place.folder, "train_student.py", *ITRD, "--epochs", "2", "--save_freq", "1", "--distill", "itrd"
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("teacher accuracy:")
    name = "S-wrn_16_1_T-resnet8_cifar100_r-1.0_b-1.0_1_l_corr-2.0_l_mutual-0.05_alpha-1.5"
    folder = place.folder / "save/student_model" / name
    checkpoints = {"wrn_16_1_best.pth", "ckpt_epoch_1.pth", "ckpt_epoch_2.pth", "wrn_16_1_last.pth"}
    sources = {"train_student.py", "itrd.py", "trainer.py"}
    assert names(folder) == checkpoints | sources | {"log.txt", "run"}
    best, saved, last = (
        load(folder / f"{f}.pth") for f in ("wrn_16_1_best", "ckpt_epoch_2", "wrn_16_1_last")
    )
    assert best.keys() == {"epoch", "model", "best_acc"}
    assert saved.keys() == {"epoch", "model", "accuracy"}
    assert last.keys() == {"opt", "model"}
    assert last["opt"].model_name == name
    for content in (best, saved, last):
        create_model("wrn_16_1", 100).load_state_dict(content["model"], strict=True)

    log = (folder / "log.txt").read_text().splitlines()
    assert log[0] == "test_acc, test_loss, test_acc_top5"
    assert len(log) == 4
    assert log[2].startswith(f"tensor({float(saved['accuracy']):.4f}".rstrip("0"))
    assert log[3] == f"------best accuracy: {best['best_acc']!r}"

    written = scalars(place.folder / "save/student_tensorboards" / name)
    assert written.keys() == SCALARS | {"train_correlation_loss", "train_mutual_loss"}
    # r = b = 1: the loss is the cross-entropy, at random about log 100, and the weighted terms.
    terms = written["train_correlation_loss"][0][1] + written["train_mutual_loss"][0][1]
    assert 2 < written["train_loss"][0][1] - terms < 12


def test_repdistiller_student(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [*WITH_TEACHER, "--distill", "kd", "-r", "0.1", "-a", "0.9", "-b", "0", "--epochs", "1"]
    assert student.main(line) == 0
    assert capsys.readouterr().out.startswith("teacher accuracy:")
    name = "S:wrn_16_1_T:resnet8_cifar100_kd_r:0.1_a:0.9_b:0.0_1"
    assert names(inside / "save/student_model" / name) == {"wrn_16_1_best.pth", "wrn_16_1_last.pth", "run"}
    assert scalars(inside / "save/student_tensorboards" / name).keys() == SCALARS


def test_a_line_that_fits_both_scripts_says_what_is_trained(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        *WITH_TEACHER,
        "--gamma",
        "0.1",
        "--alpha",
        "0.9",
        "--beta",
        "0",
        "--epochs",
        "1",
        "--trial",
        "long",
    ]
    assert student.main(line) == 0
    note, teacher, *_ = capsys.readouterr().out.splitlines()
    assert note.startswith("note: this command line is read as RepDistiller's")
    assert "0.1*ce + 0.9*kd(T=4)" in note
    assert teacher.startswith("teacher accuracy:")
    assert (inside / "save/student_model/S:wrn_16_1_T:resnet8_cifar100_kd_r:0.1_a:0.9_b:0.0_long").is_dir()


def test_one_process_writes_the_files(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert student.main([*ITRD, "--epochs", "1", "--trial", "several"]) == 2
    assert "the original scripts run as one process" in capsys.readouterr().err


def test_runs_are_not_overwritten(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [*ITRD, "--epochs", "1", "--trial", "again"]
    assert student.main([*line, "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert student.main(line) == 0
    capsys.readouterr()
    assert student.main(line) == 2
    assert "--resume" in capsys.readouterr().err
    assert student.main([*line, "--resume", "--weight_decay", "0"]) == 2
    assert "choose another --trial" in capsys.readouterr().err


def test_resumed_run_ends_as_if_never_stopped(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [*ITRD, "--epochs", "3", "--save_freq", "1", "--seed", "5"]
    assert student.main([*line, "--trial", "whole"]) == 0

    after_epoch = OriginalFiles.after_epoch
    with monkeypatch.context() as patch:

        def stop_in_second_epoch(self, trainer, epoch):
            after_epoch(self, trainer, epoch)
            trainer.request_stop()

        patch.setattr(OriginalFiles, "after_epoch", stop_in_second_epoch)
        assert student.main([*line, "--trial", "stopped"]) == 130
        assert "--resume" in capsys.readouterr().err
    with monkeypatch.context() as patch:

        def killed_in_second_epoch(self, trainer, epoch):
            after_epoch(self, trainer, epoch)
            raise MemoryError

        patch.setattr(OriginalFiles, "after_epoch", killed_in_second_epoch)
        with pytest.raises(MemoryError):
            student.main([*line, "--trial", "stopped", "--resume"])
    assert student.main([*line, "--trial", "stopped", "--resume"]) == 0

    whole, stopped = (
        inside
        / f"save/student_model/S-wrn_16_1_T-resnet8_cifar100_r-1.0_b-1.0_{trial}_l_corr-2.0_l_mutual-0.05_alpha-1.5"
        for trial in ("whole", "stopped")
    )
    assert names(whole) == names(stopped)
    assert (whole / "log.txt").read_text() == (stopped / "log.txt").read_text()
    for file in ("wrn_16_1_last", "wrn_16_1_best", "ckpt_epoch_2"):
        torch.testing.assert_close(
            load(whole / f"{file}.pth")["model"], load(stopped / f"{file}.pth")["model"], rtol=0, atol=0
        )
    written = [
        scalars(Path(str(f).replace("student_model", "student_tensorboards"))) for f in (whole, stopped)
    ]
    assert written[0] == written[1]


def test_wrong_checkpoint_is_refused(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = inside / "vgg8_wrong"
    wrong.mkdir()
    (wrong / "x.pth").write_bytes((inside / TEACHER / "resnet8_last.pth").read_bytes())
    assert student.main(["--path_t", "vgg8_wrong/x.pth", "--model_s", "wrn_16_1", "-b", "1", *TINY]) == 2
    said = capsys.readouterr().err
    assert "not a checkpoint of vgg8" in said
    assert len(said.splitlines()) == 1


def test_networks_that_the_original_lists_and_cannot_build(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("resnet18", "resnet34"):
        assert student.main([*ITRD, "--model_s", name]) == 2
        assert f"{name} is not provided: the original script lists it" in capsys.readouterr().err


def test_first_stage_is_logged_once_whenever_the_run_is_resumed(tmp_path: Path) -> None:
    def epoch(number: int, stage: str = "main") -> Epoch:
        measured = {"top1": 1.0, "top5": 2.0, "loss": number / 10}
        return Epoch(number, 0.1, measured, measured, 1.0, 1.0, stage)

    opt = SimpleNamespace(save_folder=str(tmp_path), tb_folder=str(tmp_path), save_freq=40)
    trainer = SimpleNamespace(first_stages=[epoch(n, "abound") for n in (1, 2, 3)], best=None)
    for numbers in ([1, 2], [2, 3]):  # killed while epoch 2 was written, then resumed
        files = OriginalFiles(opt, "resnet8")
        for number in numbers:
            files.after_epoch(trainer, epoch(number))
        files.close()
        time.sleep(1.1)  # event files are read in the order of the second in their names
    written = scalars(tmp_path)
    assert written.keys() == SCALARS | {"init_train_loss"}
    for tag in ("init_train_loss", "test_loss"):
        assert written[tag] == [(n, pytest.approx(n / 10)) for n in (1, 2, 3)]
