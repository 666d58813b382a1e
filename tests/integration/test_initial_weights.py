"""A network that is trained further: its name says where its first weights come from."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import itrd
from itrd.bench.cells import Cell
from itrd.cli import main
from itrd.engine import compiled
from itrd.engine.config import DistillConfig, TrainConfig
from itrd.engine.interrupt import Interrupted
from itrd.engine.networks import check_name, load_network, starting_network
from itrd.engine.run import prepare_train
from itrd.errors import CheckpointError, UserError
from itrd.models import list_models

SHORT: dict[str, Any] = {"epochs": 1, "train_subset": 64, "test_subset": 20, "device": "cpu"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "alone"
    itrd.train("resnet8", "digits", out=str(out), **SHORT)
    return out


def test_a_run_without_steps_ends_with_the_weights_it_began_with(alone: Path, tmp_path: Path) -> None:
    first = load_network(str(alone))
    out = tmp_path / "further"
    settings = ["--epochs", "1", "--train_subset", "64", "--test_subset", "20", "--device", "cpu"]
    still = ["--learning_rate", "1e-30", "--weight_decay", "0"]
    main(["train", "--data", "digits", "--model", f"resnet8:{alone}", "--out", str(out), *settings, *still])
    found = load_network(str(out))
    before, after = dict(first.net.named_parameters()), dict(found.net.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    record = json.loads((out / "result.json").read_text())
    assert record["student"]["sha256"] == first.sha256
    assert record["student"]["arch"] == "resnet8"


def test_a_student_starts_from_a_file_and_the_seed_does_not_change_it(alone: Path) -> None:
    spec = f"resnet8:{alone / 'last.safetensors'}"
    trained = load_network(spec).net.state_dict()
    for seed in (0, 1):
        found = starting_network(spec, 10, seed)
        assert all(torch.equal(value, trained[key]) for key, value in found.net.state_dict().items())
        assert found.source.endswith("last.safetensors")
        assert found.sha256 is not None


@pytest.mark.parametrize("name", list_models())
def test_other_classes_get_a_fresh_classifier_and_nothing_else(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = itrd.create_model(name, 7)
    torch.save({"model": before.state_dict()}, tmp_path / "x.pth")
    spec = f"{name}:{tmp_path / 'x.pth'}"
    net = starting_network(spec, 5, 0).net
    old, new = before.state_dict(), net.state_dict()
    changed = {key for key, value in new.items() if value.shape != old[key].shape}
    assert {key.rpartition(".")[2] for key in changed} <= {"weight", "bias"}
    assert len({key.rpartition(".")[0] for key in changed}) == 1
    assert all(torch.equal(new[key], old[key]) for key in new.keys() - changed)
    again, other = (starting_network(spec, 5, seed).net for seed in (0, 1))
    for key in changed:
        assert torch.equal(new[key], again.state_dict()[key])
    assert any(not torch.equal(new[key], other.state_dict()[key]) for key in changed)


def test_wrong_names(alone: Path, tmp_path: Path) -> None:
    for name, message in {
        "resnet8:nowhere": "no weights at 'nowhere'; give resnet8:FILE",
        "resnet8:": "no weights at ''; give resnet8:FILE",
        str(
            alone
        ): f"holds weights of resnet8; to train a network that starts from them, write resnet8:{alone}",
        f"resnet8@{alone}": f"weights stand behind a colon here; write resnet8:{alone}",
        f"timm:test_resnet:{alone}": f"weights stand behind an @ here; write timm:test_resnet@{alone}",
        "timm:test_resnet@": "nothing follows the @",
        "": "'' names no network",
        ":runs/a": "':runs/a' names no network",
        str(tmp_path): "no checkpoint at",
    }.items():
        with pytest.raises(UserError, match=re.escape(message)):
            check_name(name)
    with pytest.raises(CheckpointError, match=r"resnet20"):
        starting_network(f"resnet20:{alone}", 10, 0)


def test_a_run_says_what_it_starts_from(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        "--epochs",
        "1",
        "--train_subset",
        "64",
        "--test_subset",
        "20",
        "--device",
        "cpu",
        "--out",
        "",
    ]
    assert main(["train", "--data", "digits", "--model", f"resnet8:{alone}", *settings]) == 0
    assert f"starts from {alone / 'last.safetensors'}\n" in capsys.readouterr().out
    torch.save({"model": itrd.create_model("resnet8", 7).state_dict()}, tmp_path / "x.pth")
    assert main(["train", "--data", "digits", "--model", f"resnet8:{tmp_path / 'x.pth'}", *settings]) == 0
    assert "x.pth; its classifier starts afresh: 7 classes there, 10 here\n" in capsys.readouterr().out


@pytest.mark.parametrize("parts", [(True, False), (False, True), (False, False)])
def test_a_run_that_was_compiled_in_part_says_so(
    parts: tuple[bool, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled.torch, "compile", lambda function, options: function)
    settings = {**SHORT, "epochs": 2, "out": str(tmp_path / "run")}

    def stop(trainer: Any, epoch: Any) -> None:
        trainer.request_stop()

    first, second = parts
    with (
        pytest.raises(Interrupted),
        prepare_train(TrainConfig(model="resnet8", data="digits", **settings, compile=first), [stop]) as run,
    ):
        run.fit()
    record = itrd.train("resnet8", "digits", **settings, compile=second, resume=True).record
    assert record.get("compile") == (True if any(parts) else None)


def test_weights_that_were_trained_on_test_images_are_refused(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8)
    data = torch.utils.data.TensorDataset(images, torch.arange(60) % 3)
    itrd.train("resnet8", data, epochs=1, val_fraction=0.1, out=str(tmp_path / "a"), device="cpu")
    itrd.train(f"resnet8:{tmp_path / 'a'}", data, epochs=1, val_fraction=0.1, device="cpu")
    with pytest.raises(UserError, match="some of these test images were trained on"):
        itrd.train(f"resnet8:{tmp_path / 'a'}", data, epochs=1, val_fraction=0.3, device="cpu")
    # Another dataset of the same class has other images.
    other = torch.utils.data.TensorDataset(images.flip(0), torch.arange(60) % 3)
    itrd.train(f"resnet8:{tmp_path / 'a'}", other, epochs=1, val_fraction=0.3, device="cpu")


def test_a_classifier_of_the_same_classes_in_another_order_starts_afresh(alone: Path) -> None:
    digits = itrd.load_dataset("digits")
    turned = replace(digits, class_names=digits.class_names[::-1])
    others = replace(digits, class_names=tuple("abcdefghij"))  # other classes: what is common helps them, too
    before = load_network(str(alone)).net.state_dict()
    for data, renumbered in ((digits, False), (turned, True), (others, False)):
        found = starting_network(f"resnet8:{alone}", 10, 0, data.class_names).net.state_dict()
        changed = {key for key, value in found.items() if not torch.equal(value, before[key])}
        assert changed == ({"fc.weight", "fc.bias"} if renumbered else set())
        record = itrd.train(f"resnet8:{alone}", data, out="", **SHORT).record
        assert record["student"].get("renumbered", False) == renumbered


def test_the_label_of_the_protocol_and_the_rate_know_of_it() -> None:
    fresh = DistillConfig(teacher="t", student="MobileNetV2", data="cifar100")
    trained = DistillConfig(teacher="t", student="MobileNetV2:w.pth", data="cifar100")
    assert (fresh.protocol(), trained.protocol()) == ("protocol", "protocol, pretrained")
    assert fresh.resolved().learning_rate == trained.resolved().learning_rate == 0.01
    assert TrainConfig(model="timm:resnet18", data="cifar100").initial_weights is None
    assert TrainConfig(model="timm:resnet18@pretrained", data="cifar100").protocol() == "protocol, pretrained"
    assert trained.run_name() == "cifar100-t-MobileNetV2_w.pth-itrd-seed0"
    assert TrainConfig(model="resnet8:runs/a", data="cifar100").run_name() == "cifar100-resnet8_a-seed0"


def test_a_resumed_run_wants_the_weights_it_began_with(alone: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    shutil.copy(alone / "last.safetensors", start)
    out = tmp_path / "run"

    def stop(trainer: Any, epoch: Any) -> None:
        trainer.request_stop()

    config = TrainConfig(model=f"resnet8:{start}", data="digits", **{**SHORT, "epochs": 2}, out=str(out))
    with pytest.raises(Interrupted), prepare_train(config, [stop]) as trainer:
        trainer.fit()
    itrd.train("resnet8", "digits", **{**SHORT, "seed": 1}, out=str(tmp_path / "other"))
    shutil.copy(tmp_path / "other" / "last.safetensors", start)
    with pytest.raises(UserError, match=r"the first weights of the run in .* changed since it began"):
        itrd.train(f"resnet8:{start}", "digits", **{**SHORT, "epochs": 2}, out=str(out), resume=True)
    shutil.copy(alone / "last.safetensors", start)
    result = itrd.train(f"resnet8:{start}", "digits", **{**SHORT, "epochs": 2}, out=str(out), resume=True)
    assert len(result.history) == 2


def test_a_comparison_is_of_one_start(alone: Path, tmp_path: Path) -> None:
    start, out = tmp_path / "start.safetensors", str(tmp_path / "compared")
    shutil.copy(alone / "last.safetensors", start)
    settings = {**SHORT, "control": True, "out": out}
    student = f"resnet8:{start}"
    result = itrd.distill(str(alone), student, "digits", "kd", **settings)
    assert result.comparison is not None
    assert result.comparison["student"]["source"] == str(start)
    itrd.train("resnet8", "digits", **{**SHORT, "seed": 1}, out=str(tmp_path / "other"))
    shutil.copy(tmp_path / "other" / "last.safetensors", start)
    with pytest.raises(UserError, match="changed"):
        itrd.distill(str(alone), student, "digits", "kd", **settings, seeds=2, resume=True)


def test_a_library_s_file_that_was_trained_here_says_its_images_too(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    images = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8)
    data = torch.utils.data.TensorDataset(images, torch.arange(60) % 3)
    name, settings = "timm:test_resnet", {"epochs": 1, "device": "cpu"}
    itrd.train(name, data, **settings, val_fraction=0.1, out=str(tmp_path / "a"))
    itrd.train(name, data, **settings, val_fraction=0.1, normalisation="imagenet", out=str(tmp_path / "b"))
    out = str(tmp_path / "e")
    assert (
        main(["export", "--model", f"{name}@{tmp_path / 'a'}", "--format", "safetensors", "--out", out]) == 0
    )
    card = (tmp_path / "e" / "README.md").read_text()
    assert 'timm.create_model("test_resnet", num_classes=3).eval()' in card
    assert "no record of training" not in card
    for start in (f"{name}@{tmp_path / 'a'}", f"{name}@{tmp_path / 'a' / 'last.safetensors'}"):
        assert load_network(start).preprocessing is None
        with pytest.raises(UserError, match="some of these test images were trained on"):
            itrd.train(start, data, **settings, val_fraction=0.3)
        with pytest.raises(UserError, match="some of these test images were trained on"):
            itrd.distill(start, "resnet8", data, "kd", **settings, val_fraction=0.3)
    with pytest.raises(UserError, match="add --normalisation imagenet"):
        itrd.train(f"{name}@{tmp_path / 'b'}", data, **settings, val_fraction=0.1)


def test_a_card_says_where_the_weights_began_and_names_no_folder(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {**SHORT, "out": str(out)}
    itrd.distill(f"resnet8:{alone}", f"resnet8:{alone / 'last.safetensors'}", "digits", "kd", **settings)
    assert main(["export", "--model", str(out), "--format", "safetensors", "--out", str(tmp_path / "e")]) == 0
    card, config = ((tmp_path / "e" / name).read_text() for name in ("README.md", "config.json"))
    assert "Started from" in card
    assert json.loads(config)["record"]["student"]["sha256"] == load_network(str(alone)).sha256
    for text in (card, config):
        assert str(tmp_path) not in text
        assert str(alone.parent) not in text


def test_a_comparison_s_folder_is_named_after_the_teacher_s_data(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    itrd.distill(str(alone), "resnet8", None, "kd", **{**SHORT, "control": True, "out": None})
    assert [path.name for path in Path("runs").iterdir()] == ["digits-alone-resnet8-kd-seed0-control"]


def test_names_of_folders(tmp_path: Path) -> None:
    named = TrainConfig(model="timm:resnet18@weights/w.safetensors", data="cifar100")
    assert named.run_name() == "cifar100-timm_resnet18_w.safetensors-seed0"
    cell = Cell("mine", "hf:ORG/NAME", "resnet8:runs/alone", "kd", 0)
    assert cell.name == "hf_ORG_NAME-resnet8_runs_alone-kd-seed0"


def test_first_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    net = itrd.create_model("resnet8", 10)
    net.fc.bias.data[3] = torch.nan
    path = tmp_path / "nan.pth"
    torch.save(net.state_dict(), path)
    for classes in (10, 5):
        with pytest.raises(CheckpointError, match=r"cannot start from .*nan.pth: fc.bias has .* not finite"):
            starting_network(f"resnet8:{path}", classes, 0)
