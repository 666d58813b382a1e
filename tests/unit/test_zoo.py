"""The teacher zoo: by name, in half precision, verified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from itrd.engine import zoo
from itrd.engine.checkpoint import save_weights
from itrd.engine.networks import load_network
from itrd.errors import CheckpointError
from itrd.models import create_model

CARD = {"arch": "resnet8", "num_classes": 100, "data": "cifar100", "last": {"top1": 1.0}, "top1": 1.0}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_by_name_and_back_to_float32() -> None:
    net = create_model("resnet8")
    path = zoo.write("resnet8", net, CARD)
    full = Path("full.safetensors")
    save_weights(full, net, {"arch": "resnet8", "num_classes": "100"})
    assert path.stat().st_size < 0.6 * full.stat().st_size
    loaded = load_network("resnet8")
    assert (loaded.arch, loaded.num_classes, loaded.data) == ("resnet8", 100, "cifar100")
    assert loaded.source == "zoo/resnet8.safetensors"
    assert loaded.sha256 == json.loads(Path("zoo/resnet8.json").read_text())["sha256"]
    state = loaded.net.state_dict()
    assert all(value.dtype != torch.float16 for value in state.values())
    zoo.round_weights(net)
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.net(images), net.eval()(images))


def test_running_statistics_keep_their_range() -> None:
    net = create_model("resnet8")
    variance = next(value for key, value in net.state_dict().items() if key.endswith("running_var"))
    variance.fill_(1e6)  # half precision ends at 65504
    zoo.write("resnet8", net, CARD)
    assert any((value == 1e6).all() for value in load_network("resnet8").net.state_dict().values())


def test_zoo_comes_before_published_files_and_may_have_folders() -> None:
    teacher = create_model("resnet8")
    with pytest.raises(
        CheckpointError, match=r"no zoo/resnet8.safetensors, save/models/.* or runs/cifar100-resnet8-s"
    ):
        load_network("resnet8")
    trained = Path("runs/cifar100-resnet8-seed0")  # where `itrd train --model resnet8` leaves it
    trained.mkdir(parents=True)
    save_weights(trained / "last.safetensors", teacher, {"arch": "resnet8", "num_classes": "100"})
    assert load_network("resnet8").source == str(trained / "last.safetensors")
    Path("save/models/resnet8_vanilla").mkdir(parents=True)
    torch.save({"model": teacher.state_dict()}, "save/models/resnet8_vanilla/ckpt_epoch_240.pth")
    assert load_network("resnet8").source.endswith(".pth")
    zoo.write("resnet8", teacher, CARD)
    assert load_network("resnet8").source == "zoo/resnet8.safetensors"
    zoo.write("smoke/resnet8", teacher, CARD)
    assert load_network("smoke/resnet8").source == "zoo/smoke/resnet8.safetensors"
    with pytest.raises(CheckpointError, match="never overwritten"):
        zoo.write("resnet8", teacher, CARD)
    for name in ("../resnet8", "/etc/passwd", "a//b", ""):
        assert zoo.find(name) is None


def test_what_is_not_what_its_card_says_is_refused() -> None:
    path = zoo.write("resnet8", create_model("resnet8"), CARD)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="checksum differs"):
        load_network("resnet8")
    path.write_bytes(content)
    load_network("resnet8")
    card = Path("zoo/resnet8.json")
    card.write_text("{}")
    with pytest.raises(CheckpointError, match="no readable card"):
        load_network("resnet8")
    card.unlink()
    with pytest.raises(CheckpointError, match="no readable card"):
        load_network("resnet8")


@pytest.mark.slow
def test_teachers_of_this_project_have_their_recorded_accuracy() -> None:
    """Every network of zoo/, measured again with float32 on the whole test set."""
    import itrd

    root = Path(__file__).parents[2]
    cards = sorted((root / "zoo").rglob("*.json"))
    if not cards:
        pytest.skip("the zoo is empty")
    if not (root / "data" / "cifar-100-python").is_dir():
        pytest.skip("CIFAR-100 is not in data/")
    for card in cards:
        said = json.loads(card.read_text())
        found = itrd.evaluate(
            load_network(str(card.with_suffix(".safetensors"))).net,
            said["data"],
            data_root=str(root / "data"),
            normalisation=said.get("normalisation"),
        )
        assert found["top1"] == pytest.approx(said["top1"], abs=0.03), card
