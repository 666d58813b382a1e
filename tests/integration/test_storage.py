"""Disks that are full, read-only, gone or slow: one line, status 2, and the last good checkpoint stays usable."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import kill
import pytest
import torch

from itrd.cli import main
from itrd.engine import checkpoint
from itrd.engine.checkpoint import has_state, load_state, save_state
from itrd.engine.config import TrainConfig
from itrd.engine.folder import RunFolder
from itrd.engine.log import Quiet
from itrd.errors import RunFolderError
from itrd.files import create_atomically


def command(out: Path, *more: str) -> list[str]:
    small = ["--train_subset", "60", "--test_subset", "40", "--batch_size", "16", "--epochs", "3"]
    quiet = ["--tensorboard", "false", "--progress", "false", "--device", "cpu"]
    return ["train", "--model", "resnet8", "--data", "digits", "--out", str(out), *small, *quiet, *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(out)) == 0
    return out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def after_epoch(patch: pytest.MonkeyPatch, number: int, action: Any) -> None:
    """Do something when an epoch is over and not saved yet."""

    def epoch(self: Quiet, done: Any) -> None:
        if done.epoch == number:
            action()

    patch.setattr(Quiet, "epoch", epoch)


def fill(folder: Path) -> Path:
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(folder).free == 0
    return path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("itrd: error: cannot write ")
    assert error.count("\n") == 1
    return error


def test_a_full_disk(small_disk: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = small_disk / "run"
    with pytest.MonkeyPatch.context() as patch:
        after_epoch(patch, 2, lambda: fill(small_disk))
        assert main(command(out)) == 2
    error = one_line(capsys)
    assert "No space left on device" in error
    assert f"the last good checkpoint is {out / 'checkpoint.pt'}, at epoch 2, step 1" in error
    assert "--resume" in error
    assert not list(out.glob(".*.partial"))
    (small_disk / "filler").unlink()
    assert main(command(out, "--resume")) == 0
    assert kill.compare(whole, out) is None


def test_a_full_disk_under_a_teacher_table(
    small_disk: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = command(tmp_path / "run")[3:]
    distill = ["distill", "--teacher", str(whole), "--student", "resnet8", *settings, "--method", "kd"]
    table = ["--teacher_table", str(small_disk / "tables")]
    with pytest.MonkeyPatch.context() as patch:
        after_epoch(patch, 1, lambda: fill(small_disk))
        assert main([*distill, *table]) == 2
    error = one_line(capsys)
    assert "cannot write the teacher table" in error
    assert "No space left on device; make room" in error
    (small_disk / "filler").unlink()
    assert main([*distill, *table, "--resume"]) == 0
    distill[distill.index("--out") + 1] = str(tmp_path / "live")
    assert main(distill) == 0
    assert kill.compare(tmp_path / "run", tmp_path / "live") is None


def test_a_disk_that_was_full_from_the_start(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(small_disk)
    assert main(command(small_disk / "run")) == 2
    error = one_line(capsys)
    assert "No space left on device" in error


def test_a_disk_that_turns_read_only(
    small_disk: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Linux does after an error of the device; and a read-only folder is refused before anything runs."""
    out = small_disk / "run"

    def remount(how: str) -> None:
        # Detached from open files: the lock file would keep a plain remount from being read-only.
        subprocess.run(["mount", "--bind", str(small_disk), str(small_disk)], check=True)
        subprocess.run(["mount", "-o", f"remount,bind,{how}", str(small_disk)], check=True)

    with pytest.MonkeyPatch.context() as patch:
        after_epoch(patch, 2, lambda: remount("ro"))
        status = main(command(out))
    error = capsys.readouterr().err
    refused = main(command(small_disk / "other"))
    refusal = capsys.readouterr().err
    subprocess.run(["umount", str(small_disk)], check=True)
    assert (status, refused) == (2, 2)
    assert "Read-only file system" in error
    assert "at epoch 2, step 1" in error
    assert "cannot write into" in refusal
    assert main(command(out, "--resume")) == 0
    assert kill.compare(whole, out) is None


def test_a_folder_that_vanishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        after_epoch(patch, 2, lambda: shutil.rmtree(out))
        assert main(command(out)) == 2
    assert "No such file or directory" in one_line(capsys)


@pytest.mark.parametrize("tensorboard", ["false", "true"])
def test_a_full_disk_while_tensorboard_writes(
    tensorboard: str, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its writer is a thread of its own, whose errors must reach the run."""
    out = small_disk / "run"
    with pytest.MonkeyPatch.context() as patch:
        after_epoch(patch, 1, lambda: fill(small_disk))
        assert main([*command(out), "--tensorboard", tensorboard]) == 2
    assert "No space left on device" in one_line(capsys)


def test_a_slow_disk(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def slow(handle: int) -> None:
        time.sleep(0.1)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", slow)
    assert main(command(tmp_path / "run")) == 0
    assert kill.compare(whole, tmp_path / "run") is None


class Failing:
    """Lets the n-th file operation of this process fail, or raises in place of it."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        at: int,
        error: BaseException,
        which: tuple[str, ...] = ("fsync", "link", "replace", "fchmod", "fdopen"),
    ) -> None:
        self.count, self.names = 0, []
        for name in which:
            patch.setattr(os, name, self._wrapped(name, getattr(os, name), at, error))

    def _wrapped(self, name: str, function: Any, at: int, error: BaseException) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            self.names.append(name)
            if self.count == at:
                raise error
            return function(*arguments, **named)

        return call


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_whichever_operation_of_a_save_fails_two_good_states_remain(
    error: BaseException, tmp_path: Path
) -> None:
    """The latest one that was acknowledged, and one more: the previous, or the new one."""
    operations = _operations_of_a_save(tmp_path / "counted")
    assert {"fsync", "link", "replace"} <= set(operations)
    for at in range(1, len(operations) + 1):
        folder = tmp_path / f"{type(error).__name__}-{at}"
        folder.mkdir()
        path = folder / "checkpoint.pt"
        for step in (1, 2):
            save_state(path, {"step": step})
        with pytest.MonkeyPatch.context() as patch:
            Failing(patch, at, error)
            with pytest.raises(type(error)):
                save_state(path, {"step": 3})
        state, complaint = load_state(path)
        assert complaint is None
        assert state["step"] in (2, 3)
        damaged = folder / "checkpoint.pt"
        content = damaged.read_bytes()
        damaged.unlink()  # the other names, if it has any, keep their content
        damaged.write_bytes(content[:-1])
        spare, complaint = load_state(path)
        assert complaint is not None
        assert spare["step"] in (1, 2)


def _operations_of_a_save(folder: Path) -> list[str]:
    folder.mkdir()
    save_state(folder / "checkpoint.pt", {"step": 1})
    with pytest.MonkeyPatch.context() as patch:
        failing = Failing(patch, -1, OSError())
        save_state(folder / "checkpoint.pt", {"step": 2})
    return failing.names


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_folder_that_could_not_be_opened_can_be_opened_again(at: int, tmp_path: Path) -> None:
    config = TrainConfig(model="resnet8", data="digits", out=str(tmp_path))
    folder = RunFolder(tmp_path, config)
    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, at, OSError(errno.ENOSPC, "No space left on device"), ("fsync", "replace"))
        with pytest.raises(RunFolderError, match="No space left"):
            folder.open()
    resume = (tmp_path / "config.yaml").exists()
    again = RunFolder(tmp_path, replace(config, resume=resume)).open()
    again.close()


@pytest.mark.parametrize("at", [0, 1])
def test_a_folder_whose_run_died_before_its_first_epoch(at: int, tmp_path: Path) -> None:
    """In the first write, or after it."""
    config = TrainConfig(model="resnet8", data="digits", out=str(tmp_path))
    order: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        replaced = os.replace
        patch.setattr(os, "replace", lambda old, new: (order.append(Path(new).name), replaced(old, new)))
        RunFolder(tmp_path, config).open().close()
    for name in order[at:]:
        (tmp_path / name).unlink()
    (tmp_path / f".{order[at]}.x.partial").write_bytes(b"{")
    RunFolder(tmp_path, replace(config, resume=at > 0)).open().close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", *sorted(order)]


def without_links(patch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr(os, "link", refuse)


NO_LINKS = [errno.EPERM, errno.ENOTSUP, errno.ENOSYS]


@pytest.mark.parametrize("number", NO_LINKS)
def test_creating_without_hard_links(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_links(monkeypatch, number)
    path = tmp_path / "record.json"
    with monkeypatch.context() as patch:
        Failing(patch, 1, OSError(errno.EIO, "I/O error"), ("replace",))
        with pytest.raises(OSError, match="I/O error"):
            create_atomically(path, b"lost")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: create_atomically(path, b"%d" % i * 10_000), range(8)))
    assert made.count(True) == 1
    assert path.read_bytes() == b"%d" % made.index(True) * 10_000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", NO_LINKS)
def test_a_file_system_without_hard_links(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch, number)
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2, 3):
        save_state(path, {"step": step})
    assert load_state(path)[0]["step"] == 3
    path.unlink()  # as after a crash between the two renames
    assert has_state(path)
    state, complaint = load_state(path)
    assert state["step"] == 2
    assert complaint is not None
    assert "continuing from checkpoint.prev.pt" in complaint


def test_every_bit_flip_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_state(path, {"tensor": torch.arange(4)})
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(checkpoint.CheckpointError, match="no usable checkpoint"):
            load_state(path)
    for length in range(0, len(whole), 50):
        path.write_bytes(whole[:length])
        with pytest.raises(checkpoint.CheckpointError, match="no usable checkpoint"):
            load_state(path)
