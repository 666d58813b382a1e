"""Several processes compute what one computes with the same global batch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from itrd.cli import main
from itrd.data.plan import pieces, plan_epoch
from itrd.engine.checkpoint import load_state, read_weights
from itrd.engine.config import TrainConfig
from itrd.engine.distributed import Division
from itrd.engine.launch import Launch, launched
from itrd.engine.log import Quiet
from itrd.engine.team import own_device
from itrd.errors import UserError
from team_worker import LAYOUTS, LOSSES, outcomes, work

PROCESSES = 2
SMALL = ["--train_subset", "60", "--test_subset", "40", "--batch_size", "16", "--epochs", "2"]
QUIET = ["--tensorboard", "false", "--progress", "false", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("team")


@pytest.fixture(scope="module")
def found(folder: Path, teacher_folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["distill", "--teacher", str(teacher_folder), "--student", "resnet8", "--method", "itrd"]
    arguments = (PROCESSES, port, folder, [*command, *SMALL, *QUIET])
    torch.multiprocessing.spawn(work, arguments, nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, str], dict[str, Any]]:
    """The same runs in one process."""
    torch.set_default_dtype(torch.float64)
    try:
        return outcomes()
    finally:
        torch.set_default_dtype(torch.float32)


def check_close(ours: Tensor, expected: Tensor) -> None:
    assert ours.shape == expected.shape
    if not expected.is_floating_point():
        assert torch.equal(ours, expected)
        return
    assert (ours - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_gradients_and_memories_are_those_of_one_process(
    loss: str, layout: str, found: list[dict[str, Any]], alone: dict[tuple[str, str], dict[str, Any]]
) -> None:
    expected = alone[loss, layout]
    for each in found:
        ours = each["outcomes"][loss, layout]
        assert len(ours["gradients"]) == len(expected["gradients"]) > 3
        for a, b in zip(ours["gradients"], expected["gradients"], strict=True):
            check_close(a, b)
        for a, b in zip(ours["losses"], expected["losses"], strict=True):
            assert a == pytest.approx(b, rel=1e-10)
        for name, value in expected["state"].items():
            check_close(ours["state"][name], value)


def test_weights_and_memories_have_the_same_bits_in_every_process(found: list[dict[str, Any]]) -> None:
    first, second = (each["outcomes"]["crd", "9"]["state"] for each in found)
    assert {"objective.methods.0.memory.student", "objective.methods.0.embed_s.weight"} <= set(first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_networks_draw_for_themselves_and_methods_together(found: list[dict[str, Any]]) -> None:
    first, second = (each["random"] for each in found)
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    assert torch.equal(first["generator"], second["generator"])


def test_a_signal_to_one_process_stops_all_and_the_run_resumes(
    found: list[dict[str, Any]], folder: Path
) -> None:
    assert [each["stopped"] for each in found] == [{"statuses": [0, 143, 0], "steps": 6}] * PROCESSES
    whole, parts = (json.loads((folder / name / "result.json").read_text()) for name in ("whole", "parts"))
    assert [e["train"] for e in whole["curve"]] == [e["train"] for e in parts["curve"]]
    a, b = (read_weights(folder / name / "last.safetensors")[0] for name in ("whole", "parts"))
    for name, value in a.items():  # running statistics were averaged once more
        assert torch.equal(value, b[name]) or ("running" in name and torch.allclose(value, b[name])), name
    assert whole["processes"] == PROCESSES
    assert [p["processes"] for p in parts["provenances"]] == [PROCESSES]


def test_a_stop_that_one_process_asks_for_is_for_all(found: list[dict[str, Any]]) -> None:
    assert [each["requested"] for each in found] == [3, 3]


def test_a_bad_step_of_one_process_is_one_of_all(found: list[dict[str, Any]]) -> None:
    for each in found:
        text = each["nonfinite"]["stop"]["error"]
        assert text.startswith("epoch 1, step 2: the loss is not finite (term ce)")
        assert each["nonfinite"]["skip"]["skipped"] == [1, 0]
    first, second = (each["nonfinite"]["skip"]["state"] for each in found)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_what_the_first_process_refuses_ends_all(found: list[dict[str, Any]]) -> None:
    first, second = (each["taken"] for each in found)
    assert first.startswith("RunFolderError")
    assert "holds no run; choose another folder" in first
    assert second == "PeerError: another process of this run has ended; it said why"


def test_what_one_process_reads_for_its_machine_and_cannot_ends_all(found: list[dict[str, Any]]) -> None:
    first, second = (each["absent"] for each in found)
    assert "absent" in first
    assert second == "PeerError: another process of this run has ended; it said why"


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_image_counts_once(size: int, accumulate: int) -> None:
    """The processes' parts of the micro-batches, in order, are the batch; nobody is without images."""
    plan = plan_epoch(100, 7, 17, seed=0, epoch=1)
    divisions = [Division(rank, size, accumulate) for rank in range(size)]
    parts = [list(division.own(plan)) for division in divisions]
    for number, (indices, views) in enumerate(plan):
        read = [0] * size
        seen: list[tuple[Tensor, Tensor]] = []
        for start, count in divisions[0].micro_batches(0, len(indices)):
            for rank, division in enumerate(divisions):
                first, last = division.part(start, count)
                rows = slice(read[rank], read[rank] + last - first)
                read[rank] = rows.stop
                if division.sizes(count)[rank]:
                    seen.append((parts[rank][number][0][rows], parts[rank][number][1][rows]))
        assert read == [len(part[number][0]) for part in parts]
        assert min(read) >= 2
        assert torch.equal(torch.cat([i for i, _ in seen]), indices)
        assert torch.equal(torch.cat([v for _, v in seen]), views)


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(16, 4, [4, 4, 4, 4]), (10, 4, [3, 3, 2, 2]), (5, 4, [3, 2]), (3, 2, [3]), (2, 8, [2]), (1, 2, [1])],
)
def test_pieces_are_equal_and_never_a_single_image(count: int, most: int, expected: list[int]) -> None:
    assert pieces(count, most) == expected


def test_devices_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(rank=3, size=4, local_rank=1, local_size=2)
    assert own_device("cpu", launch) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("auto", launch) == own_device("cuda", launch) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="use --device cuda instead of cuda:0"):
        own_device("cuda:0", launch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="2 processes on this machine and 1 GPUs"):
        own_device("cuda", launch)


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")  # of something else
    assert launched() == Launch()


def test_batch_norms_over_processes_need_gpus() -> None:
    settings = ["--model", "resnet8", "--data", "digits", "--out", "", "--sync_batch_norm", "true"]
    assert main(["train", *settings, *SMALL, *QUIET]) == 2


def test_the_label_of_a_run_in_several_processes() -> None:
    assert TrainConfig(model="resnet8", data="cifar100", accumulate=2).protocol() == "custom"


def test_torchrun_and_a_signal_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The documented command; one process goes on with what several saved."""
    out = tmp_path / "run"
    shown = ["train", "--model", "resnet8", "--data", "digits", "--out", str(out), "--device", "cpu"]
    command = [*shown, *SMALL[:-1], "200", "--tensorboard", "false"]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={PROCESSES}",
    ]
    process = subprocess.Popen(
        [*torchrun, "-m", "itrd", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    watch = threading.Timer(120, process.kill)
    watch.start()
    assert process.stderr is not None
    while not process.stderr.readline().startswith("epoch   2/200"):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    watch.cancel()
    assert output.count("resnet8 on digits") == 1
    assert errors.count("itrd: stopped") == errors.count("continue with --resume") == 1
    state, _ = load_state(out / "checkpoint.pt")
    position = state["position"]
    assert (position["epoch"], position["step"]) > (2, 0)
    monkeypatch.setattr(Quiet, "step", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert main([*command, "--progress", "false", "--resume"]) == 143
    assert f"resuming at epoch {position['epoch']}, step {position['step'] + 1}" in capsys.readouterr().err
