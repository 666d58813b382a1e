"""Imports go down the table of docs/design.md and nowhere else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "itrd"


def layers() -> dict[str, int]:
    """Package -> its row in the table, from the top."""
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`itrd\.[^|]*) \|", text, re.MULTILINE)
    return {name: number for number, row in enumerate(rows) for name in re.findall(r"`(itrd\.\w+)`", row)}


def packages() -> list[str]:
    """Everything that can be imported from ``itrd``, packages and single modules."""
    return sorted(p.stem for p in PACKAGE.iterdir() if (p.suffix == ".py" or p.is_dir()) and p.stem[0] != "_")


def imported(package: str) -> Iterator[tuple[str, str]]:
    """What the modules of a package import of the others, wherever in a module, and where."""
    folder = PACKAGE / package
    for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path} imports by a relative name"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] == "itrd" and parts[1:2] not in ([package], ["__version__"]):
                    yield ".".join(parts[:2]), str(path.relative_to(ROOT))


def test_every_package_is_in_the_table() -> None:
    assert sorted(layers()) == [f"itrd.{package}" for package in packages()]


@pytest.mark.parametrize("package", packages())
def test_a_package_imports_what_is_below_it(package: str) -> None:
    rows = layers()
    wrong = [
        f"{where} imports {name}"
        for name, where in imported(package)
        if rows.get(name, -1) <= rows[f"itrd.{package}"]
    ]
    assert wrong == []
