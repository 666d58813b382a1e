"""The ledger: records in, checked, never overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import synthetic_ledger as synthetic
from itrd.bench.cells import Cell, cells_of
from itrd.bench.check import check_documents, check_ledger, check_zoo
from itrd.bench.ledger import Ledger
from itrd.bench.record import compact, encode
from itrd.bench.tracks import load_track
from itrd.engine.config import DistillConfig
from itrd.errors import UserError

KD = Cell("smoke", "resnet20", "resnet8", "kd", 0)
ALONE = Cell("smoke", None, "resnet8", "none", 0)


@pytest.fixture(scope="module")
def result(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A real result.json of a distillation on a few digits."""
    import itrd

    out = tmp_path_factory.mktemp("run") / "kd"
    settings = {"train_subset": 60, "test_subset": 40, "epochs": 2, "batch_size": 16}
    itrd.distill(str(teacher_folder), "resnet8", "digits", "kd", out=str(out), **settings)
    return json.loads((out / "result.json").read_text())


def test_a_real_run_makes_a_valid_record(result: dict[str, Any], tmp_path: Path) -> None:
    cell = Cell("tiny", "resnet8", "resnet8", "kd", 0)
    ledger = Ledger(tmp_path)
    assert ledger.add(cell, result)
    before = ledger.path(cell).read_bytes()
    assert not ledger.add(cell, {**result, "seconds": 0})
    assert ledger.path(cell).read_bytes() == before
    assert check_ledger(ledger) == []
    (run,) = ledger.runs("tiny")
    assert run.cell == cell
    assert run.last == pytest.approx(result["last"]["test"]["top1"], rel=1e-5)
    assert list(run.top1) == pytest.approx([e["test"]["top1"] for e in result["curve"]], rel=1e-5)
    assert run.teacher_sha256 == result["teacher"]["sha256"]
    record = json.loads(before)
    assert record["provenance"]["hardware"]
    assert record["wall_seconds"] >= record["seconds"]


@pytest.mark.parametrize(
    "settings", [{"precision": "bf16"}, {"track": "clean"}, {"student": "resnet8:weights.pth"}]
)
def test_every_label_of_the_protocol_may_be_recorded(
    settings: dict[str, Any], result: dict[str, Any], tmp_path: Path
) -> None:
    config = DistillConfig(**{"teacher": "t", "student": "resnet8", "data": "cifar100", **settings})
    assert config.protocol().startswith("protocol, ")
    ledger = Ledger(tmp_path)
    assert ledger.add(Cell("tiny", "resnet8", "resnet8", "kd", 0), {**result, "protocol": config.protocol()})
    assert not [fault for fault in check_ledger(ledger) if "does not match" in str(fault)]
    assert ledger.add(Cell("tiny", "resnet8", "resnet8", "kd", 1), {**result, "protocol": "protocolled"})
    assert [fault for fault in check_ledger(ledger) if "does not match" in str(fault)]


def test_a_result_of_a_run_folder_is_a_record_too(result: dict[str, Any], tmp_path: Path) -> None:
    """Format 1, from before the benchmark had a runner: the settings tell the cell."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for key in ("finished", "wall_seconds", "images_per_second"):
        result = {name: value for name, value in result.items() if name != key}
    (folder / "resnet8-kd-seed0.json").write_text(json.dumps(result))
    ledger = Ledger(tmp_path)
    assert check_ledger(ledger) == []
    (run,) = ledger.runs("tiny")
    assert run.cell == Cell("tiny", "resnet8", "resnet8", "kd", 0)
    assert run.wall_seconds is None
    assert run.images_per_second > 0


def test_records_are_small(result: dict[str, Any]) -> None:
    curve = [{**result["curve"][0], "epoch": i} for i in range(1, 241)]
    assert len(encode(compact({**result, "curve": curve}))) < 30_000


def test_first_stages_are_kept(result: dict[str, Any]) -> None:
    stage = [{**result["curve"][0], "stage": "abound", "test": {}}]
    assert compact({**result, "first_stages": stage})["first_stages"]["abound"]["epoch"] == [1]


def _set(*path: str | int) -> Callable[[dict[str, Any], Any], None]:
    def change(record: dict[str, Any], value: Any) -> None:
        inner: Any = record
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


@pytest.mark.parametrize("said", [4, 9, 2])
def test_any_of_several_best_epochs_may_be_the_best(said: int, tmp_path: Path) -> None:
    record = synthetic.record(KD, 12, protocol="custom")
    curve = record["curve"]
    for epoch in (4, 9):
        curve["test"]["top1"][epoch - 1] = 99.5
    parts = {name: {k: v[said - 1] for k, v in curve[name].items()} for name in ("train", "test")}
    record["best"] |= {k: v[said - 1] for k, v in curve.items() if isinstance(v, list)} | parts
    path = tmp_path / "smoke" / f"{KD.name}.json"
    path.parent.mkdir()
    path.write_text(json.dumps(record))
    faults = check_ledger(Ledger(tmp_path))
    assert [str(fault).partition(": ")[2] for fault in faults] == (
        [] if said in (4, 9) else ["best is not epoch 4 of its curve"]
    )


@pytest.mark.parametrize(
    ("change", "value", "complaint"),
    [
        (_set("last", "test", "top1"), 99.0, "last is not epoch 12"),
        (_set("best", "test", "top1"), 99.0, "best is not epoch"),
        (_set("curve", "test", "top1", 3), 99.5, "best is not epoch 4"),
        (_set("curve", "test", "top1", 3), 101, "outside of 0..100"),
        (_set("curve", "train", "loss", 3), "many", "train.loss holds something"),
        (_set("curve", "train", "loss"), [1.0], "train.loss has another length"),
        (_set("curve", "epoch"), [2] * 12, "epochs are not 1, 2, 3"),
        (_set("settings", "epochs"), 240, "12 epochs, not the 240"),
        (_set("settings", "seed"), 7, "contradict"),
        (_set("cell", "track"), "protocol", "track protocol in the folder smoke"),
        (_set("cell", "seed"), 1, "resnet20-resnet8-kd-seed1"),
        (_set("cell", "method"), "<script>", "cell.method"),
        (_set("seconds"), -1, "seconds"),
        (_set("seconds"), 1e999, "not JSON, torn or damaged"),
        (_set("provenance"), {}, "provenance"),
        (_set("teacher", "sha256"), "abc", "teacher.sha256"),
        (_set("teacher", "arch"), "vgg13", "contradict"),
        (_set("kind"), "train", "contradict"),
        (_set("objective"), "1*ce + 1*kdsvd(k=1) + 0.5*itrd", "called kd, and its objective"),
        (_set("format"), 3, "format"),
    ],
)
def test_faulty_records(
    change: Callable[[dict[str, Any], Any], None], value: Any, complaint: str, tmp_path: Path
) -> None:
    record = synthetic.record(KD, 12, protocol="custom")
    change(record, value)
    path = tmp_path / "smoke" / f"{KD.name}.json"
    path.parent.mkdir()
    path.write_text(json.dumps(record))
    faults = check_ledger(Ledger(tmp_path))
    assert faults
    assert complaint in faults[0]


@pytest.mark.parametrize(
    ("change", "value", "complaint"),
    [
        (_set("settings", "learning_rate"), 0.1, "learning_rate (0.05, 0.1)"),
        (
            _set("settings", "label_smoothing"),
            0.1,
            "label_smoothing (0.0, 0.1)",
        ),  # younger than the other record
        (_set("objective"), "1*ce + 1*kd(T=4.0) + 0.5*itrd", "objective ("),
        (_set("data", "fingerprint"), "1" * 64, "content of the data ("),
        (_set("student"), {"sha256": "1" * 64}, "first weights (null, 1"),
        (_set("settings", "seed"), 1, None),
        (_set("settings", "teacher"), "runs/teacher", None),  # the same one from elsewhere
        (_set("settings", "flip"), None, None),  # its default, written out
        (_set("objective"), "1*ce + 1*kd", None),  # from before kd had settings
    ],
)
def test_runs_of_one_cell_differ_in_the_seed_alone(
    change: Callable[[dict[str, Any], Any], None], value: Any, complaint: str | None, tmp_path: Path
) -> None:
    for seed in (0, 1):
        cell = Cell("mine", "resnet20", "resnet8", "kd", seed)
        record = synthetic.record(cell, 3, protocol="custom")
        record["objective"] = "1*ce + 1*kd(T=4.0)"
        if seed:
            change(record, value)
        synthetic.write(tmp_path, cell, record)
    faults = check_ledger(Ledger(tmp_path))
    assert len(faults) == (complaint is not None)
    assert all("differ in more than the seed" in fault and str(complaint) in fault for fault in faults)


@pytest.mark.parametrize(
    ("cell", "change", "value", "complaint"),
    [
        (KD, _set("settings", "data"), "digits", "data digits, not cifar100"),
        (KD, _set("data", "name"), "digits", "data digits, not cifar100"),
        (KD, _set("data", "name"), "cifar100[train=50000,test=10000]", None),
        (KD, _set("settings", "batch_size"), 128, "batch_size 128, not 64"),
        (KD, _set("settings", "train_subset"), 60, "train_subset 60, not null"),
        (KD, _set("objective"), "0.1*ce + 0.9*kd(T=2.0)", "objective 0.1*ce + 0.9*kd(T=2.0), not 0.1*ce"),
        (ALONE, _set("settings", "precision"), "fp32", "precision fp32, not bf16"),
        (Cell("smoke", "resnet56", "resnet8", "kd", 0), _set("seconds"), 1.0, "no such cell"),
        (Cell("smoke", "resnet20", "resnet8", "magic", 0), _set("seconds"), 1.0, "no such cell"),
        (Cell("smoke", None, "resnet20", "none", 0), _set("seconds"), 1.0, "no such cell"),
        (Cell("smoke", None, "resnet8", "teacher", 0), _set("seconds"), 1.0, "no such cell"),
        (Cell("smoke", "resnet20", "resnet8", "kd", 7), _set("seconds"), 1.0, None),  # a further seed
    ],
)
def test_records_of_the_packages_tracks_are_what_these_say(
    cell: Cell,
    change: Callable[[dict[str, Any], Any], None],
    value: Any,
    complaint: str | None,
    tmp_path: Path,
) -> None:
    record = synthetic.record(cell, 12, protocol="custom")
    change(record, value)
    path = synthetic.write(tmp_path, cell, record)
    faults = check_ledger(Ledger(tmp_path))
    assert len(faults) == (complaint is not None)
    assert all(f"{path}: not a run of track smoke: " in fault and str(complaint) in fault for fault in faults)


def test_a_shorter_run_is_none_of_the_packages_tracks(tmp_path: Path) -> None:
    path = synthetic.write(tmp_path, KD, synthetic.record(KD, 1, protocol="custom"))
    assert check_ledger(Ledger(tmp_path)) == [f"{path}: not a run of track smoke: epochs 1, not 12"]


def test_faulty_ledgers(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    path = synthetic.write(tmp_path, KD, synthetic.record(KD, 12, protocol="custom"))
    assert check_ledger(ledger) == []
    (tmp_path / "smoke" / ".claims").mkdir()
    (tmp_path / "smoke" / ".claims" / "x.json").write_text("")
    assert check_ledger(ledger) == []
    twin = path.with_name("twin.json")
    twin.write_bytes(path.read_bytes())
    assert any("resnet20-resnet8-kd-seed0" in fault for fault in check_ledger(ledger))
    twin.write_bytes(path.read_bytes()[:500])
    assert "torn or damaged" in check_ledger(ledger)[0]
    assert [run.path for run in ledger.runs("smoke")] == [path]
    assert twin in ledger.unreadable
    twin.unlink()
    path.with_name("notes.txt").write_text("")
    assert "not a record" in check_ledger(ledger)[0]
    path.with_name("notes.txt").unlink()
    assert check_ledger(ledger) == []
    other = synthetic.record(Cell("smoke", "resnet20", "resnet8", "kd", 1), 12, protocol="custom")
    other["teacher"]["sha256"] = "1" * 64
    synthetic.write(tmp_path, Cell("smoke", "resnet20", "resnet8", "kd", 1), other)
    assert "2 different teachers" in check_ledger(ledger)[0]
    (tmp_path / "zoo").mkdir()  # unless one is the other, rounded
    (tmp_path / "zoo" / "t.json").write_text(json.dumps({"trained_sha256": "1" * 64, "sha256": "0" * 64}))
    assert not any("different teachers" in fault for fault in check_ledger(ledger, tmp_path / "zoo"))
    assert "no such folder" in check_ledger(Ledger(tmp_path / "none"))[0]


@pytest.mark.parametrize(("track", "label"), [("protocol", "protocol"), ("protocol-bf16", "protocol, bf16")])
def test_unpublished_schedules_do_not_pass_as_published(tmp_path: Path, track: str, label: str) -> None:
    cell = next(c for c in cells_of(load_track(track)) if c.method == "kd")
    for other in {"custom", "protocol", "protocol, bf16"}:
        synthetic.write(tmp_path / other, cell, synthetic.record(cell, 240, protocol=other))
        refused = [fault for fault in check_ledger(Ledger(tmp_path / other)) if "published schedule" in fault]
        assert bool(refused) == (other != label)


def test_rewritten_records_are_noticed(tmp_path: Path) -> None:
    import subprocess

    path = synthetic.write(tmp_path, KD, synthetic.record(KD, 12, protocol="custom"))
    git = [
        "git",
        "-C",
        str(tmp_path),
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@t",
        "-c",
        "commit.gpgsign=false",
    ]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "records"]):
        subprocess.run([*git, *words], check=True)
    assert check_ledger(Ledger(tmp_path)) == []
    path.write_bytes(encode({**synthetic.record(KD, 12, protocol="custom"), "command": "another"}))
    assert "never rewritten" in check_ledger(Ledger(tmp_path))[0]


def test_documents_follow_the_ledger(tmp_path: Path) -> None:
    from itrd.bench.documents import markdown_files, update_documents

    ledger, zoo = Ledger(tmp_path / "results"), tmp_path / "zoo"
    document = tmp_path / "README.md"
    document.write_text("# A\n<!-- ledger:smoke -->\n<!-- /ledger -->\nSee `<!-- ledger:x -->`.\n")
    documents = markdown_files(str(tmp_path))
    assert documents == [document]
    assert "itrd report --update" in check_documents(documents, ledger, zoo)[0]
    assert update_documents(documents, ledger, zoo) == documents
    assert check_documents(documents, ledger, zoo) == []
    assert update_documents(documents, ledger, zoo) == []
    assert "No runs yet." in document.read_text()
    synthetic.write(ledger.root, KD, synthetic.record(KD, 12, protocol="custom"))
    assert check_documents(documents, ledger, zoo)
    update_documents(documents, ledger, zoo)
    text = document.read_text()
    assert synthetic.HARDWARE in text
    assert "| ITRD |  |  |  |  |  |  |" in text  # not run: an empty cell is empty
    assert text.endswith("<!-- /ledger -->\nSee `<!-- ledger:x -->`.\n")
    document.write_text(text.replace("| KD | 1 | **", "| KD | 1 | **9"))
    assert check_documents(documents, ledger, zoo)
    for broken in (
        "<!-- /ledger -->\n",
        "<!-- ledger:smoke -->\n",
        "<!-- ledger:nothing -->\n<!-- /ledger -->\n",
    ):
        document.write_text(broken)
        assert len(check_documents(documents, ledger, zoo)) == 1
    with pytest.raises(UserError, match="no document"):
        markdown_files("nothing.md")


def test_zoo_is_checked(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x")
    (tmp_path / "b.json").write_text("{}")
    faults = check_zoo(tmp_path)
    assert len(faults) == 2
    assert "no readable card" in faults[0]
    assert "a card without its network" in faults[1]
