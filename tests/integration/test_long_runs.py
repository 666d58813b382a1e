"""Memory, open files and logs of a long run; `make reliability` prints the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import endurance
import pytest


def check_flat(found: dict[str, Any]) -> None:
    assert found["open_files"][0] == found["open_files"][1]
    assert found["metrics_bytes_per_epoch"] < 1000
    assert found["event_bytes_per_epoch"] < 1000
    assert found["memory_bytes_per_epoch"] < 20_000  # its record is kept


def test_a_thousand_steps(tmp_path: Path) -> None:
    found = endurance.endure(1000, tmp_path / "run")
    assert found["open_files"][0] == found["open_files"][1]
    assert found["memory_mb_at_the_end"] - found["memory_mb_at_a_fifth"] < 8
    assert found["folder_bytes"] < 200_000


@pytest.mark.slow
def test_ten_thousand_steps(tmp_path: Path) -> None:
    check_flat(endurance.endure(10_000, tmp_path / "run"))


def test_what_is_written_grows_with_epochs_only(tmp_path: Path) -> None:
    found = endurance.disk("resnet8", tmp_path / "run")
    assert found["measured_mb_per_epoch"] <= found["checkpoint_mb"] + found["weights_mb"] + 0.01
    assert found["kept_mb"] < 2 * (found["checkpoint_mb"] + found["weights_mb"]) + 0.1
