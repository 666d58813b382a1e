"""Shared by all tests: helper modules importable, one thread a process, small networks and data."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if os.environ.get("ITRD_EMULATED_CUDA"):
    import emulated_cuda

    emulated_cuda.install()  # before torch is imported, and looks for a GPU

import torch

HAS_GPU = torch.cuda.is_available
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks")]

# Before the first matrix product on a GPU, or runs that are to be deterministic find that it is too late.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torchvision_ops  # noqa: E402, F401 - before anything imports torchvision
from itrd.engine.device import switches_kept  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tests run side by side; threads that outnumber the cores make each other wait."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _processor() -> Iterator[None]:
    """What is not marked ``gpu`` runs on the CPU, also where there is a GPU: many tests compare bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # of processes that a test starts
        yield


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is marked ``gpu`` sees it."""
    if request.node.get_closest_marker("gpu") is not None:
        monkeypatch.setattr(torch.cuda, "is_available", HAS_GPU)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        if VISIBLE is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", VISIBLE)
    with switches_kept():
        yield


@pytest.fixture
def tiny() -> dict[str, object]:
    """Settings of a run that takes a second or two."""
    return {"train_subset": 60, "test_subset": 40, "epochs": 2, "batch_size": 16, "tensorboard": False}


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a barely trained resnet8 on digits."""
    import itrd

    folder = tmp_path_factory.mktemp("teacher") / "run"
    itrd.train("resnet8", "digits", train_subset=60, test_subset=40, epochs=1, out=str(folder))
    return folder
