"""Shared by all tests: helper modules importable, one thread a process, small networks and data."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks")]

import torchvision_ops  # noqa: E402, F401 - before anything imports torchvision


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


@pytest.fixture(autouse=True)
def _processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is not marked ``gpu`` runs on the CPU, also where there is a GPU: many tests compare bits."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of processes that the test starts
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


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
