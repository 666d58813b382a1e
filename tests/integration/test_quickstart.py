"""The quickstart end to end, shortened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import itrd.quickstart
from itrd.cli import main


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(itrd.quickstart, "TEACHER", "resnet8")
    monkeypatch.setattr(itrd.quickstart, "TEACHER_EPOCHS", 1)
    monkeypatch.chdir(tmp_path)


def test_quickstart(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the second replaces the first
        assert main(["quickstart", "--seeds", "2", "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    content = json.loads(Path("quickstart/quickstart.json").read_text())
    assert set(content["top1"]) == {"none", "kd", "itrd"}
    assert all(len(values) == 2 for values in content["top1"].values())
    mean = sum(content["top1"]["itrd"]) / 2
    assert f"{mean:.2f}%" in out
    assert "2 seeds, 1 epoch each" in out
    assert f"| ITRD | 2 | {mean:.2f}% |" in Path("quickstart/results.md").read_text()
    assert Path("quickstart/curves.png").read_bytes().startswith(b"\x89PNG")


def test_quickstart_does_not_touch_another_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("quickstart").mkdir()
    Path("quickstart/mine.txt").write_text("precious")
    assert main(["quickstart"]) == 2
    assert "holds something else" in capsys.readouterr().err
    Path("quickstart/quickstart.json").write_text("{}")
    assert main(["quickstart"]) == 2
    assert Path("quickstart/mine.txt").read_text() == "precious"
