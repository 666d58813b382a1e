"""The table gives what the live teacher gives, survives a crash, and is refused when it does not match."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Timeout  # not the built-in one before Python 3.11
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

import itrd
from itrd.data import load_dataset
from itrd.data.device import DeviceImages
from itrd.data.plan import EpochPlan, plan_epoch
from itrd.engine.device import autocast
from itrd.engine.launch import Launch
from itrd.engine.table import DeviceRows, TeacherTable
from itrd.engine.team import Team
from itrd.errors import DataError
from itrd.models import create_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Any:
    return load_dataset("digits").subset(train=48, test=20)


@pytest.fixture(scope="module")
def images(data: Any) -> DeviceImages:
    return DeviceImages(data.train, data.mean, data.std, padding=data.padding, flip=data.flip, device=CPU)


def teacher(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return create_model("resnet8", 10).eval().requires_grad_(False)


def open_table(
    root: Path, data: Any, images: DeviceImages, net: Any, precision: str = "fp32", taps: Any = None
) -> TeacherTable:
    return TeacherTable(root, net.observe, net, data, images, precision, batch_size=16, taps=taps)


def plan(epoch: int, images: DeviceImages) -> EpochPlan:
    return plan_epoch(len(images), images.num_views, 16, seed=1, epoch=epoch)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_are_the_live_teachers_bits(
    tmp_path: Path, data: Any, images: DeviceImages, precision: str
) -> None:
    net = teacher()
    table = open_table(tmp_path, data, images, net, precision)
    for epoch in (1, 2):
        rows = table.epoch(plan(epoch, images))
        for step, (indices, views) in enumerate(plan(epoch, images)):
            with torch.no_grad(), autocast(CPU, precision):
                live = net.observe(images.batch(indices, views))
            known = rows.slice(16 * step, 16)
            assert torch.equal(known.logits, live.logits)
            assert torch.equal(known.embedding, live.embedding)


def test_rows_are_computed_once_and_shared_by_later_runs(
    tmp_path: Path, data: Any, images: DeviceImages
) -> None:
    net = teacher()
    first = open_table(tmp_path, data, images, net)
    before = first.epoch(plan(1, images))
    assert (first.computed, first.looked_up) == (48, 48)
    later = open_table(tmp_path, data, images, net)
    after = later.epoch(plan(1, images))
    assert (later.computed, later.looked_up) == (0, 48)
    assert torch.equal(before.logits, after.logits)


def test_every_view_can_be_filled(tmp_path: Path, data: Any, images: DeviceImages) -> None:
    table = open_table(tmp_path, data, images, teacher())
    for view in range(images.num_views):
        table.epoch(EpochPlan(torch.arange(48), torch.full((48,), view), 16))
    assert table.file.filled.all()


def test_the_table_can_be_filled_ahead(tmp_path: Path, data: Any, images: DeviceImages) -> None:
    lazily = open_table(tmp_path / "lazily", data, images, teacher())
    ahead = open_table(tmp_path / "ahead", data, images, teacher())
    everything = len(images) * images.num_views
    assert ahead.fill(most=100) == everything - 100
    assert ahead.file.filled.sum() == 100
    assert ahead.fill() == 0
    assert ahead.file.filled.all()
    for epoch in (1, 2):
        mine, theirs = (table.epoch(plan(epoch, images)) for table in (ahead, lazily))
        assert torch.equal(mine.logits, theirs.logits)
        assert torch.equal(mine.embedding, theirs.embedding)
    assert ahead.computed == everything


def test_the_processes_of_a_run_fill_a_part_each(tmp_path: Path, data: Any, images: DeviceImages) -> None:
    tables = [open_table(tmp_path, data, images, teacher()) for _ in range(3)]
    everything = len(images) * images.num_views
    waited = Barrier(3)

    class Member(Team):
        def most(self, number: int) -> int:
            waited.wait(timeout=300)
            return number

    teams = [Member(Launch(rank=rank, size=3)) for rank in range(3)]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda table, team: table.fill(team=team), tables, teams)) == [0, 0, 0]
    assert [table.computed for table in tables] == [everything / 3] * 3
    assert all(table.file.filled.all() for table in tables)


@pytest.mark.parametrize("shared", [True, False])
def test_processes_that_find_different_tables_fill_all_of_it(
    tmp_path: Path, data: Any, images: DeviceImages, shared: bool
) -> None:
    class Member(Team):
        def most(self, number: int) -> int:
            return number

    for rank in range(2):  # the second opens what the first has filled, or a folder of another machine
        table = open_table(tmp_path / ("" if shared else str(rank)), data, images, teacher())
        assert table.fill(team=Member(Launch(rank=rank, size=2))) == 0
        assert table.file.filled.all()


def test_runs_that_commit_at_once_lose_no_rows(tmp_path: Path, data: Any, images: DeviceImages) -> None:
    first, second = (open_table(tmp_path, data, images, teacher()) for _ in range(2))
    bits = first.file.folder / "filled.bin"
    unseen = EpochPlan(torch.arange(48), torch.zeros(48, dtype=torch.int64), 16)
    with ThreadPoolExecutor(1) as thread:
        with FileLock(first.file.folder / "filled.lock"):
            waiting = thread.submit(first.epoch, unseen)
            with pytest.raises(Timeout):
                waiting.result(timeout=2)
            second.file.filled[1] = True  # another run, which holds the lock, commits a row
            bits.write_bytes(np.packbits(second.file.filled).tobytes())
        waiting.result(timeout=60)
    found = np.unpackbits(np.fromfile(bits, dtype=np.uint8))
    assert found.sum() == 49
    assert found[1]


def test_a_lock_that_is_never_released_is_named(
    tmp_path: Path, data: Any, images: DeviceImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("itrd.engine.table_file.PATIENCE", 0.1)
    table = open_table(tmp_path, data, images, teacher())
    with (
        FileLock(table.file.folder / "filled.lock"),
        pytest.raises(DataError, match=r"filled\.lock for 0\.1 sec"),
    ):
        table.fill(most=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_kept_on_a_device_are_those_of_the_file(
    tmp_path: Path, data: Any, images: DeviceImages, precision: str
) -> None:
    table = open_table(tmp_path, data, images, teacher(), precision)
    table.fill(most=3000)
    columns = {name: (row.shape[1], row.dtype) for name, row in table.file.read(np.array([0])).items()}
    kept = DeviceRows(columns, len(images) * images.num_views, CPU)
    rng = np.random.default_rng(0)
    for _ in range(3):  # rows that are new, that were there, and both
        rows = rng.integers(0, 3000, 200)
        found, expected = kept.get(rows, table.file), table.file.read(rows)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_teacher_precision_or_embedding_has_another_table(
    tmp_path: Path, data: Any, images: DeviceImages
) -> None:
    folders = {
        open_table(tmp_path, data, images, teacher(seed), precision, taps).file.folder
        for seed, precision, taps in (
            (0, "fp32", None),
            (1, "fp32", None),
            (0, "bf16", None),
            (0, "fp32", ["embedding=fc"]),
        )
    }
    assert len(folders) == 4


def test_rows_that_were_written_but_not_committed_are_not_trusted(
    tmp_path: Path, data: Any, images: DeviceImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = teacher()
    table = open_table(tmp_path, data, images, net)
    with monkeypatch.context() as patch:
        patch.setattr(table.file, "commit", lambda: None)  # the process dies before the commit
        table.epoch(plan(1, images))
    again = open_table(tmp_path, data, images, net)
    assert not again.file.filled.any()
    again.epoch(plan(1, images))
    assert again.computed == 48


def test_a_table_that_does_not_agree_is_refused(tmp_path: Path, data: Any, images: DeviceImages) -> None:
    net = teacher()
    table = open_table(tmp_path, data, images, net)
    table.epoch(plan(1, images))
    folder = table.file.folder
    logits = np.memmap(folder / "logits.bin", dtype=np.float32, mode="r+")
    logits[:] += 1
    logits.flush()
    with pytest.raises(DataError, match="does not agree with the teacher; delete that folder"):
        open_table(tmp_path, data, images, net)
    (folder / "filled.bin").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"damaged \(filled.bin\)"):
        open_table(tmp_path, data, images, net)
    (folder / "table.json").write_text("{")
    with pytest.raises(DataError, match="another teacher, dataset or precision, or is damaged"):
        open_table(tmp_path, data, images, net)


@pytest.mark.parametrize("method", ["kd", "itrd", "crd(K=16)", "kd + rkd"])
def test_training_with_the_table_is_training_with_the_live_teacher(
    method: str, tmp_path: Path, teacher_folder: Path
) -> None:
    settings = {"train_subset": 64, "test_subset": 40, "epochs": 2, "batch_size": 16}
    live = itrd.distill(str(teacher_folder), "resnet8", method=method, **settings)
    looked_up = itrd.distill(
        str(teacher_folder), "resnet8", method=method, teacher_table=str(tmp_path), **settings
    )
    for a, b in zip(live.student.state_dict().values(), looked_up.student.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_methods_that_read_maps_use_the_live_teacher(
    tmp_path: Path, teacher_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"train_subset": 20, "test_subset": 20, "epochs": 1, "batch_size": 10}
    itrd.distill(str(teacher_folder), "resnet8", method="attention", teacher_table=str(tmp_path), **settings)
    assert "reads feature maps: the teacher is run at every step" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
