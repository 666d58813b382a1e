"""The examples run as they stand, and learn something."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST = 75  # lines: an example is read in one go
NO_ACCELERATE = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="transformers.Trainer needs accelerate"
)


@pytest.mark.parametrize(
    ("command", "least"),
    [
        ("plain_pytorch", 60),
        ("lightning_module", 30),
        ("timm_on_a_folder", 30),
        ("timm_on_a_folder --train 40 --epochs 1 --seeds 1", -1),
        ("transformers_to_cnn", 30),
        pytest.param("transformers_trainer", 60, marks=NO_ACCELERATE),
    ],
)
def test_example_runs(command: str, least: float, tmp_path: Path) -> None:
    name, *arguments = command.split()
    script = ROOT / "examples" / f"{name}.py"
    code = (
        "import inspect, runpy, sys, torchvision_ops, typing\n"
        f"made = runpy.run_path({str(script)!r}, None, '__main__')\n"
        "for own in filter(inspect.isfunction, made.values()): typing.get_type_hints(own)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"student (?:distilled )?(\d+\.\d)%", done.stdout)
    assert found is not None
    assert float(found.group(1)) > least  # guessing names one in ten
    assert not list(tmp_path.iterdir())


def test_examples_are_short_and_all_tested() -> None:
    scripts = sorted((ROOT / "examples").glob("*.py"))
    assert [script.stem for script in scripts] == [
        "lightning_module",
        "plain_pytorch",
        "timm_on_a_folder",
        "transformers_to_cnn",
        "transformers_trainer",
    ]
    assert all(len(script.read_text().splitlines()) <= LONGEST for script in scripts)
