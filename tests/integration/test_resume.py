"""A run that is stopped anywhere and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import itrd
from itrd.engine.checkpoint import save_weights
from itrd.engine.config import DistillConfig, TrainConfig
from itrd.engine.log import Quiet
from itrd.engine.networks import load_network
from itrd.engine.record import Epoch
from itrd.engine.run import prepare_distill, prepare_train
from itrd.engine.state import restore_run, save_run, saved_run
from itrd.engine.trainer import Interrupted
from itrd.errors import CheckpointError, RunFolderError
from itrd.methods import list_methods, method_class
from itrd.models import create_model


def prepared(settings: dict[str, Any], out: Path, resume: bool = False) -> Any:
    cls = DistillConfig if "teacher" in settings else TrainConfig
    config = cls(**settings, out=str(out), resume=resume, progress=False)
    return prepare_distill(config) if isinstance(config, DistillConfig) else prepare_train(config)


def run_until_stopped(settings: dict[str, Any], out: Path, steps: int) -> None:
    """Start or resume a run and stop it after a number of steps, counted over stages and epochs."""
    with prepared(settings, out, resume=out.exists()) as trainer, pytest.MonkeyPatch.context() as patch:
        left = [steps]

        def step(display: Quiet, epoch: int, images: int) -> None:
            left[0] -= 1
            if left[0] == 0:
                trainer.request_stop()

        patch.setattr(Quiet, "step", step)
        with pytest.raises(Interrupted):
            trainer.fit()


def resumed(settings: dict[str, Any], out: Path) -> dict[str, Any]:
    with prepared(settings, out, resume=True) as trainer:
        result = trainer.fit()
    return {"weights": result.student.state_dict(), "record": result.record}


def whole_run(settings: dict[str, Any], out: Path) -> dict[str, Any]:
    with prepared(settings, out) as trainer:
        result = trainer.fit()
    return {"weights": result.student.state_dict(), "record": result.record}


def check_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    for key, value in a["weights"].items():
        assert torch.equal(value, b["weights"][key]), key
    timing = ("seconds", "images_per_second", "evaluation_seconds")
    for x, y in zip(a["record"]["curve"], b["record"]["curve"], strict=True):
        assert {k: v for k, v in x.items() if k not in timing} == {
            k: v for k, v in y.items() if k not in timing
        }


@pytest.mark.parametrize("method", list_methods())
def test_resumed_run_equals_uninterrupted_run(
    method: str, tmp_path: Path, tiny: dict[str, Any], teacher_folder: Path
) -> None:
    two_stages = "init_epochs" in method_class(method).settings()
    notation = f"{method}(init_epochs=1)" if two_stages else method
    settings = {**tiny, "teacher": str(teacher_folder), "student": "resnet8", "method": notation, "seed": 3}
    expected = whole_run(settings, tmp_path / "whole")
    out = tmp_path / "parts"
    for steps in (3, 2, 2):  # of 4 an epoch: inside an epoch, across its end, and once more
        run_until_stopped(settings, out, steps)
    check_equal(expected, resumed(settings, out))
    lines = (out / "metrics.jsonl").read_text().splitlines()
    written = [(json.loads(line)["stage"], json.loads(line)["epoch"]) for line in lines]
    assert written == [(method, 1)] * two_stages + [("main", 1), ("main", 2)]


def test_bf16_and_teacher_training_resume_too(tmp_path: Path, tiny: dict[str, Any]) -> None:
    settings = {**tiny, "model": "resnet8", "data": "digits", "precision": "bf16"}
    expected = whole_run(settings, tmp_path / "whole")
    run_until_stopped(settings, tmp_path / "parts", 5)
    check_equal(expected, resumed(settings, tmp_path / "parts"))


def test_a_damaged_checkpoint_falls_back_and_still_ends_the_same(
    tmp_path: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**tiny, "model": "resnet8", "data": "digits"}
    expected = whole_run(settings, tmp_path / "whole")
    out = tmp_path / "parts"
    for steps in (2, 1):
        run_until_stopped(settings, out, steps)
    content = bytearray((out / "checkpoint.pt").read_bytes())
    content[len(content) // 3] ^= 0x10
    (out / "checkpoint.pt").write_bytes(content)
    ended = resumed(settings, out)
    assert "continuing from checkpoint.prev.pt" in capsys.readouterr().err
    check_equal(expected, ended)


def test_a_checkpoint_of_another_network_is_refused_with_the_reason(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    settings = {**tiny, "data": "digits", "epochs": 1}
    whole_run({**settings, "model": "resnet8"}, tmp_path / "run")
    whole_run({**settings, "model": "resnet14"}, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "checkpoint.pt", tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"does not fit this run: .*: Unexpected key.* \.\.\.$"):
        resumed({**settings, "model": "resnet8"}, tmp_path / "run")


def test_a_checkpoint_is_not_a_file_of_weights(tmp_path: Path, tiny: dict[str, Any]) -> None:
    whole_run({**tiny, "model": "resnet8", "data": "digits", "epochs": 1}, tmp_path / "run")
    with pytest.raises(CheckpointError, match="is what --resume continues a run from, not a file of weights"):
        load_network(f"resnet8:{tmp_path / 'run' / 'checkpoint.pt'}")


def test_resuming_a_finished_run_changes_nothing(
    tmp_path: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**tiny, "model": "resnet8", "data": "digits"}
    expected = whole_run(settings, tmp_path / "run")
    before = (tmp_path / "run" / "result.json").read_bytes()
    check_equal(expected, resumed(settings, tmp_path / "run"))
    assert (tmp_path / "run" / "result.json").read_bytes() == before
    assert capsys.readouterr().err == "the run is finished already\n"


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_resuming_a_finished_run_writes_lost_weights_again(
    damage: str, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    settings = {**tiny, "model": "resnet8", "data": "digits", "ema": 0.9}
    whole_run(settings, tmp_path / "run")
    files = [tmp_path / "run" / f"{which}.safetensors" for which in ("last", "ema")]
    before = [path.read_bytes() for path in files]
    assert before[0] != before[1]
    result = (tmp_path / "run" / "result.json").read_bytes()
    for path in files:
        path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:100])
    resumed(settings, tmp_path / "run")
    assert [path.read_bytes() for path in files] == before
    assert (tmp_path / "run" / "result.json").read_bytes() == result


def test_a_checkpoint_of_many_epochs_is_read_back(tmp_path: Path, tiny: dict[str, Any]) -> None:
    settings = {**tiny, "model": "resnet8", "data": "digits", "epochs": 40_000}
    with prepared(settings, tmp_path / "run") as trainer:
        for number in range(1, 30_001):
            done = Epoch(number, 0.1, {"loss": 1 / number}, {"top1": 1 / 3, "loss": math.inf}, 0.1, 100.0)
            trainer.history.append(done)
        trainer.best = trainer.history[0]
        trainer.position.epoch = 30_001
        trainer.first_stages = trainer.history[:2]
        save_run(trainer, trainer.folder, None)
    with prepared(settings, tmp_path / "run", resume=True) as again:
        saved = saved_run(again.folder)
        assert saved is not None
        restore_run(again, saved, 1)
    for name in ("history", "first_stages", "best"):
        assert getattr(again, name) == getattr(trainer, name)


def test_a_run_is_tied_to_its_teachers_content(
    tmp_path: Path, tiny: dict[str, Any], teacher_folder: Path
) -> None:
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    settings = {**tiny, "teacher": str(tmp_path / "teacher"), "student": "resnet8", "method": "kd"}
    run_until_stopped(settings, tmp_path / "run", 2)
    net = create_model("resnet8", 10)
    save_weights(tmp_path / "teacher" / "last.safetensors", net, {"arch": "resnet8", "data": "digits"})
    with pytest.raises(RunFolderError, match=r"the teacher of the run in .* changed since it began"):
        resumed(settings, tmp_path / "run")


def test_another_spelling_of_the_same_path_is_the_same_run(
    tmp_path: Path, tiny: dict[str, Any], teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(teacher_folder, tmp_path / "runs" / "teacher")
    monkeypatch.chdir(tmp_path)
    settings = {**tiny, "student": "resnet8:runs/teacher", "method": "kd"}
    run_until_stopped({**settings, "teacher": "runs/teacher"}, tmp_path / "run", 2)
    shutil.copytree(teacher_folder, "other")
    with pytest.raises(RunFolderError, match="holds another run"):
        resumed({**settings, "teacher": "other"}, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "runs")  # from where runs/teacher leads nowhere
    settings["student"] = f"resnet8:{tmp_path / 'runs' / 'teacher'}"
    resumed({**settings, "teacher": "./teacher/"}, tmp_path / "run")


def test_a_folder_called_like_a_network_is_none(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("resnet20").mkdir()
    whole_run({**tiny, "model": "resnet8", "data": "digits", "epochs": 1}, tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"holds another run \(model 'resnet8' not 'resnet20'\)"):
        resumed({**tiny, "model": "resnet20", "data": "digits", "epochs": 1}, tmp_path / "run")


def test_a_run_is_tied_to_a_given_teachers_weights(tmp_path: Path, tiny: dict[str, Any]) -> None:
    settings = {**tiny, "data": "digits", "out": str(tmp_path / "run"), "epochs": 1}
    torch.manual_seed(0)
    itrd.distill(create_model("resnet20", 10), "resnet8", method="kd", **settings)
    with pytest.raises(RunFolderError, match=r"the teacher of the run in .* changed since it began"):
        itrd.distill(create_model("resnet20", 10), "resnet8", method="kd", **settings, resume=True)
    torch.manual_seed(0)
    itrd.distill(create_model("resnet20", 10), "resnet8", method="kd", **settings, resume=True)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    settings = {**tiny, "epochs": 1, "model": "resnet8", "data": "digits"}
    a, b = whole_run(settings, tmp_path / "a"), whole_run(settings, tmp_path / "b")
    check_equal(a, b)
    c = whole_run({**settings, "seed": 1}, tmp_path / "c")
    assert not torch.equal(a["weights"]["conv1.weight"], c["weights"]["conv1.weight"])
