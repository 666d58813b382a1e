"""Networks of timm, torchvision and transformers by name; whatever is fetched comes from this machine."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

import itrd
from itrd.engine import hubs
from itrd.engine.networks import load_network, starting_network
from itrd.errors import CheckpointError, UnknownNameError, UserError
from itrd.files import sha256_of

TORCHVISION = "shufflenet_v2_x0_5"
TIMM = "test_resnet"
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def make(library: str, classes: int) -> nn.Module:
    if library == "timm":
        return timm.create_model(TIMM, num_classes=classes)
    if library == "torchvision":
        return torchvision.models.get_model(TORCHVISION, weights=None, num_classes=classes)
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=classes, architectures=[], **VIT)
    return transformers.AutoModelForImageClassification.from_config(config)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model as the Hugging Face hub has it, in a folder."""
    folder = tmp_path / "org" / "vit"
    make("hf", 7).save_pretrained(folder)
    normalised = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "do_normalize": True}
    prepared = {"size": {"height": 32, "width": 32}, **normalised}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    return folder


def name_of(library: str, repository: Path) -> str:
    return {"timm": f"timm:{TIMM}", "torchvision": f"torchvision:{TORCHVISION}", "hf": f"hf:{repository}"}[
        library
    ]


def same(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in a.state_dict().items())


# --- weights from files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["timm", "torchvision", "hf"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_of_a_file(library: str, suffix: str, tmp_path: Path, repository: Path) -> None:
    torch.manual_seed(1)
    net = make(library, 7)
    file = tmp_path / f"w.{suffix}"
    save_file(net.state_dict(), file) if suffix == "safetensors" else torch.save(
        {"model": net.state_dict()}, file
    )
    spec = f"{name_of(library, repository)}@{file}"
    loaded = load_network(spec)
    assert same(loaded.net, net)
    assert not loaded.net.training
    assert (loaded.num_classes, loaded.sha256, loaded.data) == (7, sha256_of(file), None)
    assert loaded.arch == name_of(library, repository)
    assert str(file) in loaded.source
    # A student takes the same weights, and a classifier for its own classes.
    student = starting_network(spec, 10, seed=3).net
    if library == "hf":
        assert student.eval()(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 10)
    body = [key for key, value in net.state_dict().items() if value.shape == student.state_dict()[key].shape]
    assert len(net.state_dict()) - len(body) == 2
    assert all(torch.equal(net.state_dict()[key], student.state_dict()[key]) for key in body)
    assert same(starting_network(spec, 10, seed=3).net, student)


@pytest.mark.parametrize("library", ["timm", "torchvision", "hf"])
def test_files_that_do_not_fit(library: str, tmp_path: Path, repository: Path) -> None:
    spec = name_of(library, repository)
    save_file(nn.Linear(3, 2).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is not a checkpoint of") as refused:
        load_network(f"{spec}@{tmp_path / 'other.safetensors'}")
    assert len(str(refused.value).removeprefix(str(tmp_path))) < 300
    if library != "torchvision":  # whose files are compared by the same function as our own
        missing = dict(list(make(library, 7).state_dict().items())[1:])
        save_file(missing, tmp_path / "less.safetensors")
        with pytest.raises(CheckpointError, match="is not a checkpoint of"):
            load_network(f"{spec}@{tmp_path / 'less.safetensors'}")
    with pytest.raises(CheckpointError, match="no weights at"):
        load_network(f"{spec}@{tmp_path / 'none.pth'}")

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="refused"):
        load_network(f"{spec}@{tmp_path / 'evil.pth'}")
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"neither a \.safetensors nor a \.pth"):
        load_network(f"{spec}@{tmp_path / 'raw.npz'}")
    assert not (tmp_path / "executed").exists()


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["timm", "torchvision", "hf"])
def test_fresh_students_follow_data_and_seed(library: str, repository: Path) -> None:
    spec = name_of(library, repository)
    first, again, other = (starting_network(spec, 10, seed).net for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)
    assert hubs.build(spec, 10).num_classes == 10
    assert hubs.build(spec, 10).sha256 is None


def test_wrong_names() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown timm network 'test_resnt'; did you mean 'test_resnet'"
    ):
        hubs.check("timm:test_resnt")
    with pytest.raises(UnknownNameError, match=r"unknown timm weights 'test_resnet.r161'; .*r160_in1k"):
        hubs.check("timm:test_resnet.r161")
    with pytest.raises(
        UnknownNameError, match=r"unknown torchvision network 'resnet51'; did you mean 'resnet"
    ):
        hubs.check("torchvision:resnet51")
    with pytest.raises(UnknownNameError, match=r"unknown torchvision weights 'V9'.*IMAGENET1K_V1"):
        hubs.check("torchvision:resnet18.V9")
    with pytest.raises(UnknownNameError, match="unknown torchvision network"):
        hubs.check("torchvision:fasterrcnn_resnet50_fpn")
    with pytest.raises(UserError, match="names no network"):
        hubs.check("timm:")
    assert not hubs.is_hub("resnet8:file.pth")
    assert not hubs.is_hub("timm")


@pytest.mark.parametrize(
    ("spec", "extra"),
    [("timm:resnet18", "timm"), ("torchvision:resnet18", "torchvision"), ("hf:a/b", "transformers")],
)
def test_a_missing_library_names_the_extra(spec: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("timm", "torchvision.models", "transformers.models.auto"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'itrd\[{extra}\]'"):
        hubs.check(spec)


def test_what_images_a_pretrained_network_expects(repository: Path) -> None:
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    said = {library: hubs._LIBRARIES[library].preprocessing for library in ("timm", "torchvision", "hf")}
    assert said["timm"]("resnet18.a1_in1k") == hubs.Preprocessing(224, *imagenet)
    assert said["torchvision"]("resnet50") == hubs.Preprocessing(224, *imagenet)
    assert said["torchvision"]("inception_v3").size == 299
    assert said["hf"](str(repository)) == hubs.Preprocessing(32, (0.5,) * 3, (0.25,) * 3)
    (repository / "preprocessor_config.json").write_text('{"do_normalize": false, "size": 40}')
    assert said["hf"](str(repository)) == hubs.Preprocessing(40, (0.0,) * 3, (1.0,) * 3)
    (repository / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 48}, "crop_size": 40}')
    assert said["hf"](str(repository)) == hubs.Preprocessing(40, None, None)
    (repository / "preprocessor_config.json").write_text('{"image_mean": 3}')
    with pytest.raises(UserError, match="damaged"):
        said["hf"](str(repository))
    (repository / "preprocessor_config.json").unlink()
    assert said["hf"](str(repository)) == hubs.Preprocessing(32)


# --- in a run --------------------------------------------------------------------------------------------


def test_distil_from_a_hub_to_a_hub(repository: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    """A ViT of 7 classes with images of its own teaches a timm network, which then is a teacher itself."""
    student = f"timm:{TIMM}"
    out = tmp_path / "run"
    result = itrd.distill(
        f"hf:{repository}", student, "digits", "attention + itrd", **{**tiny, "epochs": 1}, out=str(out)
    )
    teacher = result.record["teacher"]
    assert teacher["sha256"] == sha256_of(repository / "model.safetensors")
    assert teacher["images"] == {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    assert teacher["test"] is None
    assert "student" not in result.record  # its weights are fresh
    assert [row["teacher_shape"] for row in result.record["taps"]] == [[16, 4, 4]] * 2
    trained = load_network(str(out))
    assert (trained.arch, trained.num_classes) == (student, 10)
    assert same(trained.net, result.student)
    again = itrd.distill(str(out), "resnet8", method="kd", **{**tiny, "epochs": 1})
    assert again.record["teacher"]["test"]["top1"] == pytest.approx(result.last.test["top1"])


def test_a_trained_network_of_transformers_names_itself(repository: Path, tmp_path: Path) -> None:
    """A file must not make its reader fetch something: the user says the name."""
    net = make("hf", 10)
    save_file(net.state_dict(), tmp_path / "w.safetensors", {"arch": "hf:org/vit", "num_classes": "10"})
    with pytest.raises(UserError, match=r"or hf:org/vit@.*w\.safetensors"):
        load_network(str(tmp_path / "w.safetensors"))
    assert same(load_network(f"hf:{repository}@{tmp_path / 'w.safetensors'}").net, net)
    save_file(make("timm", 3).state_dict(), tmp_path / "t.safetensors", {"arch": f"timm:{TIMM}"})
    with pytest.raises(CheckpointError, match="does not say how many classes"):
        load_network(str(tmp_path / "t.safetensors"))


# --- fetching, from this machine -------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An address on the loopback interface, and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    with _serving(partial(_Files, directory=str(folder))) as address:
        yield address, folder


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


class _Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as its client needs to fetch a file."""

    root: Path

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        repository, _, file = self.path.lstrip("/").partition("/resolve/main/")
        path = self.root / repository / file
        if not file or not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        pass


class _serving:
    def __init__(self, handler: Any) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_a_fetched_file_is_what_its_name_says(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = server
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    torch.manual_seed(0)
    state: dict[str, Tensor] = make("torchvision", 1000).state_dict()
    torch.save(state, folder / "net.pth")
    digest = sha256_of(folder / "net.pth")[:8]
    (folder / "net.pth").rename(folder / f"net-{digest}.pth")
    (folder / "net-00000000.pth").write_bytes(b"something else")

    class Weights:
        url = f"{address}/net-{digest}.pth"
        transforms = staticmethod(lambda: torchvision.transforms._presets.ImageClassification(crop_size=64))

    monkeypatch.setattr(hubs.Torchvision, "_weights", lambda self, name: Weights)
    for _ in range(2):  # the second time from the cache
        loaded = load_network(f"torchvision:{TORCHVISION}")
        assert all(torch.equal(value, state[key]) for key, value in loaded.net.state_dict().items())
        assert loaded.preprocessing is not None
        assert loaded.preprocessing.size == 64
        assert (loaded.num_classes, loaded.sha256[:8]) == (1000, digest)
        (folder / f"net-{digest}.pth").unlink(missing_ok=True)
    Weights.url = f"{address}/net-00000000.pth"
    with pytest.raises(UserError, match="cannot fetch"):
        load_network(f"torchvision:{TORCHVISION}")
    (tmp_path / "cache/checkpoints/net-00000000.pth").write_bytes(b"altered in the cache")
    with pytest.raises(CheckpointError, match="is not what its name says; delete it"):
        load_network(f"torchvision:{TORCHVISION}")
    Weights.url = f"{address}/nothing-11111111.pth"
    with pytest.raises(UserError, match=r"cannot fetch .*NAME@FILE"):
        load_network(f"torchvision:{TORCHVISION}")


def test_fetch_from_a_hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    own = tmp_path / "timm" / "test_resnet.r160_in1k"
    own.mkdir(parents=True)
    save_file(make("timm", 1000).state_dict(), own / "model.safetensors")
    monkeypatch.setattr(_Hub, "root", tmp_path, raising=False)
    with _serving(_Hub) as address:
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        for module in (huggingface_hub.constants, huggingface_hub.file_download):  # older clients hold a copy
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        found = load_network("hf:org/vit")
        assert (found.arch, found.num_classes) == ("hf:org/vit", 7)
        assert found.sha256 == sha256_of(repository / "model.safetensors")
        assert found.preprocessing == hubs.Preprocessing(32, (0.5,) * 3, (0.25,) * 3)
        found = load_network("timm:test_resnet.r160_in1k")
        assert (found.num_classes, found.sha256) == (1000, sha256_of(own / "model.safetensors"))
        found = starting_network("timm:test_resnet@pretrained", 10, 0)
        assert (found.num_classes, found.net.num_classes) == (1000, 10)
        with pytest.raises(UserError, match=r"org/none has no model\.safetensors"):
            load_network("hf:org/none")
        with pytest.raises(
            UserError, match=r"test_vit.r160_in1k has no model\.safetensors or pytorch_model\.bin"
        ):
            load_network("timm:test_vit.r160_in1k")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot fetch .*NAME@FILE"):  # not reached is not absent
        load_network("timm:test_vit.r160_in1k")
