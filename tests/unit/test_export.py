"""Exported networks: the same numbers without this package, and a card that says where they come from."""

from __future__ import annotations

import base64
import copy
import json
import logging
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import itrd
from itrd.cli import main
from itrd.data import ImageDataset, Split
from itrd.engine import zoo
from itrd.engine.checkpoint import save_weights
from itrd.engine.metrics import accuracy_text
from itrd.engine.networks import load_network
from itrd.errors import CheckpointError, RunFolderError, UserError
from itrd.export.bundle import export_trained
from itrd.export.card import _output, model_card
from itrd.export.hub import push_export
from itrd.export.lineage import published, record_of
from itrd.export.programs import Classifier, compare
from itrd.files import sha256_of
from itrd.models import create_model

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)


def net(name: str = "resnet8", classes: int = 7) -> nn.Module:
    """A network in train mode whose batch norms have seen something."""
    torch.manual_seed(0)
    made = create_model(name, classes).train()
    made(torch.randn(8, 3, 32, 32))
    return made


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def student(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short distillation."""
    folder = tmp_path_factory.mktemp("student") / "run"
    settings: dict[str, Any] = {"train_subset": 60, "test_subset": 40, "epochs": 1, "batch_size": 16}
    itrd.distill(str(teacher_folder), "resnet8", method="itrd", out=str(folder), **settings)
    return folder


@pytest.fixture(scope="module")
def exported(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student in three formats, in one folder."""
    out = tmp_path_factory.mktemp("exported") / "e"
    command = ["export", "--model", str(student), "--out", str(out)]
    assert main([*command, "--licence", "cc-by-4.0"]) == 0
    assert main([*command, "--licence", "cc-by-4.0", "--format", "torch_export"]) == 0
    onnx = ["--format", "onnx", "--opset", "18", "--normalise"]
    assert main([*command, "--licence", "cc-by-4.0", *onnx]) == 0
    return out


def test_onnx_runs_on_pixels_in_any_batch(exported: Path, student: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    config = json.loads((exported / "config.json").read_text())
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    trained = load_network(str(student)).net
    for count in (1, 3):
        (logits,) = session.run(["logits"], {"images": images(count).numpy()})
        with torch.no_grad():
            expected = trained((images(count) - mean) / std)
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)
        assert (torch.from_numpy(logits).argmax(1) == expected.argmax(1)).all()
    entry = config["files"]["model.onnx"]
    assert entry["opset"] == 18
    assert entry["input"] == "pixels in [0, 1]"
    assert entry["compared"]["same_class"] == entry["compared"]["images"] == 8


def test_program_runs_where_there_is_no_itrd(exported: Path, student: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['itrd'] = None\n"
        "import numpy, torch\n"
        "net = torch.export.load(sys.argv[1]).module()\n"
        "numpy.save(sys.argv[3], net(torch.from_numpy(numpy.load(sys.argv[2]))).detach().numpy())\n"
        "assert not [name for name in sys.modules if name.startswith('itrd.')]\n"
    )
    given, found = tmp_path / "images.npy", tmp_path / "logits.npy"
    np.save(given, images(3).numpy())
    command = [sys.executable, "-c", code, exported / "model.pt2", given, found]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    with torch.no_grad():
        expected = load_network(str(student)).net(images(3))
    torch.testing.assert_close(torch.from_numpy(np.load(found)), expected)


def test_weights_come_back_as_the_card_says(exported: Path, student: Path) -> None:
    again = create_model("resnet8", 10).eval()
    again.load_state_dict(load_file(exported / "model.safetensors"))
    trained = load_network(str(student)).net
    with torch.no_grad():
        assert torch.equal(again(images(2)), trained(images(2)))
    assert load_network(str(exported / "model.safetensors")).data == "digits[train=60,test=40]"


def test_card_and_config_tell_the_lineage(exported: Path, student: Path, teacher_folder: Path) -> None:
    record = json.loads((student / "result.json").read_text())
    text = (exported / "README.md").read_text()
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["license"] == "cc-by-4.0"
    assert "Not for model.onnx: there this is part of the program" in text
    assert matter["tags"][0] == "knowledge-distillation"
    (result,) = matter["model-index"][0]["results"]
    assert result["dataset"]["type"] == "digits"
    assert result["metrics"][0]["value"] == round(record["last"]["test"]["top1"], 2)
    card = ModelCard(text).data  # as the Hub reads it
    assert card.eval_results[0].metric_value == round(record["last"]["test"]["top1"], 2)
    for said in (
        record["teacher"]["sha256"],
        record["data"]["fingerprint"],
        record["objective"],
        record["protocol"],
        record["provenance"]["torch"],
        f"| after the last epoch (these weights) | {record['last']['test']['top1']:.2f} |",
        f"| best epoch, chosen on the test set | {record['best']['test']['top1']:.2f} |",
        "(batch, 10); the largest is the class. In order: `zero`, `one`, `two`,",
    ):
        assert said in text
    for name, entry in json.loads((exported / "config.json").read_text())["files"].items():
        assert entry["sha256"] == sha256_of(exported / name)
        assert entry["bytes"] == (exported / name).stat().st_size
    assert {path.name for path in exported.iterdir()} == {
        *("README.md", "config.json", "model.onnx", "model.pt2", "model.safetensors")
    }
    # The teacher was named by an absolute path, which is nobody's business.
    for file in ("README.md", "config.json"):
        assert str(teacher_folder.parent) not in (exported / file).read_text()
        assert "run/last.safetensors" in (exported / file).read_text()


def test_code_in_the_card_runs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported)
    blocks = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        assert tuple(names["logits"].shape) == (8, 10)


def test_which_epoch_and_whose_record(student: Path, tmp_path: Path) -> None:
    main(["export", "--model", str(student / "best.safetensors"), "--out", str(tmp_path / "best")])
    text = (tmp_path / "best" / "README.md").read_text()
    assert "best epoch, chosen on the test set (these weights)" in text
    # Another file under a run's name has no record.
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "result.json").write_bytes((student / "result.json").read_bytes())
    metadata = {"arch": "resnet8", "num_classes": "7", "top1": "99.0000"}
    save_weights(strange / "last.safetensors", net(), metadata)
    assert record_of(strange / "last.safetensors") is None
    main(["export", "--model", str(strange), "--size", "32", "--out", str(tmp_path / "s")])
    assert "no record of training was found" in (tmp_path / "s" / "README.md").read_text()


def test_run_without_labelled_test_images(tmp_path: Path) -> None:
    splits = [
        Split(np.zeros((8, 3, 32, 32), np.uint8), np.array(labels)) for labels in ([0, 1] * 4, [-1] * 8)
    ]
    data = ImageDataset("bare", 2, ("a", "b"), *splits, MEAN, STD, 0, False)
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 4, "ema": 0.9, "out": str(tmp_path / "run")}
    assert itrd.train("resnet8", data, **settings).last.test == {}
    for which in ("last", "best", "ema"):
        weights = tmp_path / "run" / f"{which}.safetensors"
        assert main(["export", "--model", str(weights), "--size", "32", "--out", str(tmp_path / which)]) == 0
        text = (tmp_path / which / "README.md").read_text()
        assert "Not measured: there were no labelled test images." in text
        assert "trained on labels alone" in text
    other = tmp_path / "run" / "last.safetensors"
    save_weights(other, net(), {"arch": "resnet8", "epoch": "1"})
    assert record_of(other) is None


def test_moving_average_and_folder_of_images() -> None:
    record = {
        "kind": "train",
        "data": {"name": "/home/somebody/pictures/photos", "test": 9},
        "last": {"epoch": 3, "test": {"top1": 50.0}, "ema": {"top1": 60.0}},
        "best": {"epoch": 2, "test": {"top1": 55.0}},
    }
    kept = published(record, "ema")
    assert kept["ema"] == {"epoch": 3, "test": {"top1": 60.0}}
    assert kept["last"] == {"epoch": 3, "test": {"top1": 50.0}}
    assert kept["data"]["name"] == "pictures/photos"
    assert "ema" not in published({**record, "last": {"test": {"top1": 50.0}, "ema": {}}}, "last")
    about = {
        "arch": "Own",
        "num_classes": 2,
        "parameters": 5,
        "image_shape": [3, 8, 8],
        "mean": None,
        "std": None,
    }
    text = model_card({**about, "weights_sha256": "0", "licence": "mit", "files": {}, "record": kept})
    assert "moving average of the weights, after the last epoch (these weights) | 60.00" in text
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["model-index"][0]["results"][0]["metrics"][0]["value"] == 60.0
    assert "datasets" not in matter  # no name that the Hub knows


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cat", "a`b\nc"], "In order: `cat`, `a'b c`."),
        (["cat"], "not recorded"),
        (list(map(str, range(30))), "`class_names` in"),
    ],
)
def test_card_names_the_classes(names: list[str], said: str) -> None:
    assert said in _output({"num_classes": max(2, len(names)), "class_names": names})


def test_accuracy_among_the_first_five_is_told_where_there_are_more_classes() -> None:
    found = {"top1": 50.0, "top5": 75.0, "loss": 1.0}
    assert accuracy_text(found, 6) == "top-1 50.00%, top-5 75.00%"
    assert accuracy_text(found, 5) == "top-1 50.00%"


def test_network_of_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    card = {"arch": "resnet8", "num_classes": 10, "data": "digits", "last": {"top1": 50.0}, "top1": 49.5}
    zoo.write("mine", create_model("resnet8", 10), card)
    assert main(["export", "--model", "mine", "--out", "e"]) == 0
    text = Path("e/README.md").read_text()
    assert "| after the last epoch (these weights) | 49.50 |" in text
    assert "trained on labels alone" in text


def test_modes_and_memory_order_do_not_leak(tmp_path: Path) -> None:
    given = net().to(memory_format=torch.channels_last)
    before = copy.deepcopy(given.state_dict())
    written = itrd.export_model(given, tmp_path / "e", "torch_export")
    assert given.training
    assert next(given.parameters()).requires_grad
    for key, value in given.state_dict().items():
        assert torch.equal(value, before[key])
        assert value.stride() == before[key].stride()
    program = torch.export.load(written.path)
    assert all(value.is_contiguous() for value in program.state_dict.values())
    with torch.no_grad():
        expected = given.eval()(images(4))
        torch.testing.assert_close(program.module()(images(4)), expected, rtol=1e-4, atol=1e-5)


class Foreign(nn.Module):
    """Returns an object with logits, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Any:
        class Out(NamedTuple):
            logits: Tensor

        return Out(self.head(x.mean((2, 3))))


class Deciding(Foreign):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x if x.sum() > 0 else -x)


def test_foreign_module_without_a_record(tmp_path: Path) -> None:
    written = itrd.export_model(
        Foreign(), tmp_path / "e", "torch_export", image_shape=(3, 8, 8), mean=MEAN, std=STD, normalise=True
    )
    assert written.agreement is not None
    assert written.agreement.largest_difference < 1e-6
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    assert (config["arch"], config["num_classes"], config["record"]) == ("Foreign", 4, None)
    as_arrays = {"mean": np.array(MEAN), "std": torch.tensor(STD, dtype=torch.float64)}
    itrd.export_model(
        Foreign(), tmp_path / "n", "torch_export", image_shape=(3, 8, 8), normalise=True, **as_arrays
    )
    again = json.loads((tmp_path / "n" / "config.json").read_text())
    assert (again["mean"], again["std"]) == (config["mean"], config["std"]) == (list(MEAN), list(STD))
    text = (tmp_path / "e" / "README.md").read_text()
    assert "Not recorded." in text
    assert (
        "pixel values divided by 255 and nothing else. The program itself normalises them: less the mean"
        in text
    )
    assert "Not for" not in text


def test_record_given_in_python(tmp_path: Path, tiny: dict[str, Any]) -> None:
    result = itrd.train("resnet8", "digits", **{**tiny, "epochs": 1})
    itrd.export_model(result.student, tmp_path / "e", record=result.record)
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    assert config["mean"] == result.record["data"]["mean"]
    assert config["record"]["last"]["test"] == result.last.test
    assert "curve" not in config["record"]


def test_record_of_another_network(tmp_path: Path, tiny: dict[str, Any]) -> None:
    result = itrd.train("resnet8", "digits", **{**tiny, "epochs": 1})
    with pytest.warns(UserWarning, match=r"of a network of 78,042 parameters, and resnet14 has 175,258:"):
        itrd.export_model(net("resnet14", 10), tmp_path / "e", record=result.record)


@pytest.mark.parametrize("name", ["resnet8", Path("runs/a")])
def test_a_name_is_no_network_to_export(name: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"names one; write that with itrd.export.export_trained\(\)"):
        itrd.export_model(name, tmp_path / "e")
    with pytest.raises(UserError, match="the network must be a network"):
        itrd.export_model(3, tmp_path / "e")  # type: ignore[arg-type]


def test_an_export_is_a_trained_network_again(exported: Path, student: Path, tmp_path: Path) -> None:
    again, trained = load_network(str(exported)), load_network(str(student))
    assert again.source == str(exported / "model.safetensors")
    for name in ("arch", "num_classes", "data", "normalisation", "image_size", "class_names", "undivided"):
        assert getattr(again, name) == getattr(trained, name)
    assert itrd.evaluate(str(exported), "digits") == itrd.evaluate(str(student), "digits")
    shutil.copytree(exported, tmp_path / "e")
    (tmp_path / "e" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"is an export without model.safetensors; add it with"):
        load_network(str(tmp_path / "e"))
    (tmp_path / "e" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_network(str(tmp_path / "e"))


def test_an_export_knows_how_its_images_were_divided(tmp_path: Path) -> None:
    rows = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8)
    folder = tmp_path / "images"
    for i, pixels in enumerate(rows):
        path = folder / ("a", "b")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    settings: dict[str, Any] = {"val_fraction": 0.5, "image_size": 32, "epochs": 1, "tensorboard": False}
    itrd.train("resnet8", str(folder), out=str(tmp_path / "run"), **settings)
    export_trained(str(tmp_path / "run"), tmp_path / "e")
    again, trained = load_network(str(tmp_path / "e")), load_network(str(tmp_path / "run"))
    assert trained.reading == {"val_fraction": 0.5}
    assert trained.undivided
    for name in ("num_classes", "image_size", "reading", "class_names", "undivided"):
        assert getattr(again, name) == getattr(trained, name)


def test_a_program_that_disagrees_is_refused() -> None:
    classifier = Classifier(net())
    agreement = compare(lambda x: classifier(x) * (1 + 1e-6), classifier, (3, 32, 32))
    assert 0 < agreement.largest_difference < 1e-4
    for wrong in (1.001, float("nan")):
        with pytest.raises(UserError, match="differ from the network's"):
            compare(lambda x, f=wrong: classifier(x) * f, classifier, (3, 32, 32))  # type: ignore[misc]


def test_packed_binary_network(tmp_path: Path) -> None:
    written = itrd.export_model(net("resnet20_1w1a"), tmp_path / "e", "packed")
    assert written.agreement is not None
    assert written.agreement.largest_difference == 0
    with pytest.raises(
        CheckpointError, match=r"packed into bits.* run it with itrd.export.packed.load_packed"
    ):
        load_network(str(written.path))
    with pytest.raises(UserError, match="no binary network"):
        itrd.export_model(net(), tmp_path / "f", "packed")
    with pytest.raises(UserError, match="no binary network"):
        itrd.export_model(Foreign(), tmp_path / "f", "packed")


def test_what_cannot_be_exported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "e"
    with pytest.raises(UserError, match="decisions on the data"):
        itrd.export_model(Deciding(), out, "torch_export")
    with pytest.raises(UserError, match="does not take images of 3x5x5"):
        itrd.export_model(net("vgg8"), out, "onnx", image_shape=(3, 5, 5))
    with pytest.raises(UserError, match="no format 'tflite'; choose one of safetensors, onnx"):
        itrd.export_model(net(), out, "tflite")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="setting of ONNX"):
        itrd.export_model(net(), out, opset=18)
    with pytest.raises(UserError, match="weights alone"):
        itrd.export_model(net(), out, mean=MEAN, std=STD, normalise=True)
    with pytest.raises(UserError, match="which must be one of last, best, ema"):
        itrd.export_model(net(), out, which="first")
    with pytest.raises(UserError, match="without mean and std"):
        itrd.export_model(net(), out, "onnx", normalise=True)
    with pytest.raises(UserError, match="size must be at least 1, got 0"):
        export_trained("none.pth", out, size=0)
    for missing in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            with pytest.raises(UserError, match=rf"needs {missing}, .*pip install 'itrd\[onnx\]'"):
                itrd.export_model(Foreign(), out, "onnx", image_shape=(3, 4, 4))
    assert not out.exists()


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "e"
    itrd.export_model(net(), out)
    with pytest.raises(RunFolderError, match="another network"):
        itrd.export_model(create_model("resnet8", 7), out)
    own = Foreign()
    itrd.export_model(own, tmp_path / "own", image_shape=(3, 8, 8))
    with pytest.raises(RunFolderError, match="images of 8x8 pixels; keep to that --size"):
        itrd.export_model(own, tmp_path / "own", "torch_export", image_shape=(3, 4, 4))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="holds no export"):
        itrd.export_model(net(), tmp_path / "full")
    with pytest.raises(RunFolderError, match="is a file"):
        itrd.export_model(net(), tmp_path / "full" / "notes.txt")


def test_an_operator_set_that_is_too_old(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The exporter logs its failed conversion with a traceback; the user sees what can be chosen."""
    with pytest.raises(UserError, match=r"no form in ONNX's operator set 9; choose --opset \d+"):
        itrd.export_model(net(), tmp_path / "e", "onnx", image_shape=(3, 32, 32), opset=9)
    assert not [record for record in caplog.records if record.name.startswith("onnxscript")]
    assert logging.getLogger("onnxscript").level == logging.NOTSET


def test_command_line_refuses_in_one_line(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(student, damaged)
    (damaged / "result.json").write_text("{}")
    out = str(tmp_path / "e")
    for words, said in (
        (["--model", str(student), "--push", "nobody"], "write ORG/NAME"),
        (["--model", str(student), "--format", "packed"], "names end in _1w1a"),
        (["--model", str(student), "--opset", "18"], "setting of ONNX"),
        (["--model", str(damaged)], "result.json is damaged"),
        (["--model", str(tmp_path / "nothing")], "no checkpoint"),
    ):
        assert main(["export", "--out", out, *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("itrd: error: ")
        assert error.count("\n") == 1
        assert said in error
    assert not Path(out).exists()


# --- the Hub, played by a server on the loopback interface -------------------------------------------------


class Hub(NamedTuple):
    endpoint: str
    asked: list[tuple[str, bytes]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    asked: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            asked.append((self.path, body))
            address = f"{endpoint}/org/name"
            if self.path.endswith("/preupload/main"):
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
                self._answer({"files": modes})
            else:
                self._answer({"url": address, "commitUrl": f"{address}/commit/0", "commitOid": "0"})

        def _answer(self, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    # The library reads HF_ENDPOINT when it is imported, which has happened.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    try:
        yield Hub(endpoint, asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_push(hub: Hub, tmp_path: Path) -> None:
    itrd.export_model(net(), tmp_path / "e")
    (tmp_path / "e" / "private.txt").write_text("not part of the export")
    assert push_export(tmp_path / "e", "org/name") == f"{hub.endpoint}/org/name"
    bodies = dict(hub.asked)
    created = json.loads(bodies["/api/repos/create"])
    assert created.get("visibility") == "private" or created.get("private") is True
    lines = [json.loads(line) for line in bodies["/api/models/org/name/commit/main"].splitlines()]
    files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert base64.b64decode(files["README.md"]) == (tmp_path / "e" / "README.md").read_bytes()


def test_push_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    itrd.export_model(net(), tmp_path / "e")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    with pytest.raises(UserError, match=r"cannot push to org/name: .*check HF_TOKEN") as caught:
        push_export(tmp_path / "e", "org/name")
    assert "\n" not in str(caught.value)
    with pytest.raises(RunFolderError, match="holds no export"):
        push_export(tmp_path, "org/name")
    for wrong in ("name", "a/b/c", "../x"):
        with pytest.raises(UserError, match="write ORG/NAME"):
            push_export(tmp_path / "e", wrong)
