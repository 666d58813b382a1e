"""The quickstart: does distillation help? A teacher and small students on handwritten digits.

Every student has the same network, epochs, data order and augmentation; only the loss differs. Seeds are
shared between the losses, so differences are taken seed by seed.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from itrd.api import distill, train
from itrd.engine.device import fast_precision, resolve_device
from itrd.engine.provenance import provenance
from itrd.engine.record import Result
from itrd.errors import RunFolderError, UserError
from itrd.files import write_json
from itrd.stats import Summary, paired_difference, summarize

TEACHER, STUDENT = "resnet20", "resnet8"
TEACHER_EPOCHS, STUDENT_EPOCHS = 12, 10
METHODS = {"none": "student alone", "kd": "KD", "itrd": "ITRD"}
_MARKER = "quickstart.json"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    title: str
    top1: Summary
    gain: Summary | None


def run_quickstart(out: Path, *, seeds: int, epochs: int | None = None) -> None:
    """Train, compare, print the table, draw the curves.

    Args:
        out: folder for runs, ``results.md``, ``curves.png`` and ``quickstart.json``.
        seeds: students per method.
        epochs: epochs per student.

    Raises:
        RunFolderError: the folder holds something else.
        UserError: fewer than one seed.
    """
    if seeds < 1 or (epochs is not None and epochs < 1):
        raise UserError(f"seeds and epochs must be at least 1, got {seeds} and {epochs}")
    console = Console(highlight=False, soft_wrap=True)
    started = time.perf_counter()
    _clear(out)
    epochs = STUDENT_EPOCHS if epochs is None else epochs
    precision = fast_precision(resolve_device("auto"))
    console.print(
        f"Digits from scikit-learn: 1,000 training and 797 test images. Teacher {TEACHER}, student {STUDENT}, "
        f"{seeds} seed{'s' * (seeds > 1)}, {epochs} epoch{'s' * (epochs > 1)} each, {precision}."
    )
    teacher = train(TEACHER, "digits", epochs=TEACHER_EPOCHS, precision=precision, out=str(out / "teacher"))
    console.print(
        f"  teacher  {teacher.last.test['top1']:6.2f}%  {sum(e.seconds for e in teacher.history):.0f} s"
    )
    results: dict[str, list[Result]] = {name: [] for name in METHODS}
    for seed in range(seeds):
        for name in METHODS:
            results[name].append(_student(name, seed, epochs, precision, out))
        shown = "  ".join(f"{METHODS[n]} {results[n][-1].last.test['top1']:.2f}%" for n in METHODS)
        console.print(f"  seed {seed}   {shown}")
    rows = _rows(results)
    console.print(_table(rows))
    console.print(_reading(rows, teacher.last.test["top1"]))
    _write(out, rows, results, teacher, precision, time.perf_counter() - started)
    console.print(f"Table, curves and every run: {out}/results.md, {out}/curves.png, {out}/*/result.json")
    console.print(f"{time.perf_counter() - started:.0f} s in all.")


def _clear(out: Path) -> None:
    if out.exists():
        names = {p.name for p in out.iterdir()} if out.is_dir() else {""}
        ours = re.compile(rf"{_MARKER}|results\.md|curves\.png|teacher|({'|'.join(METHODS)})-seed\d+")
        if not all(ours.fullmatch(name) for name in names) or (names and _MARKER not in names):
            raise RunFolderError(f"{out} holds something else; choose another folder with --out")
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True)
        (out / _MARKER).write_text("{}\n")
    except OSError as error:
        raise RunFolderError(f"cannot write into {out}: {error.strerror}; choose another --out") from None


def _student(name: str, seed: int, epochs: int, precision: str, out: Path) -> Result:
    settings = {
        "seed": seed,
        "epochs": epochs,
        "precision": precision,
        "out": str(out / f"{name}-seed{seed}"),
    }
    if name == "none":
        return train(STUDENT, "digits", **settings)
    return distill(str(out / "teacher"), STUDENT, "digits", name, **settings)


def _rows(results: dict[str, list[Result]]) -> list[Row]:
    scores = {name: [r.last.test["top1"] for r in runs] for name, runs in results.items()}
    rows = []
    for name, title in METHODS.items():
        gain = None if name == "none" else paired_difference(scores[name], scores["none"])
        rows.append(Row(title, summarize(scores[name]), gain))
    return rows


_HEADER = ("", "n", "top-1, last epoch", "std", "against student alone (95% interval)")


def _cells(row: Row) -> tuple[str, ...]:
    gain = ""
    if row.gain is not None:
        interval = f" ({row.gain.low:+.2f} to {row.gain.high:+.2f})" if row.gain.n > 1 else ""
        gain = f"{row.gain.mean:+.2f}{interval}"
    std = f"{row.top1.std:.2f}" if row.top1.n > 1 else "-"
    return row.title, str(row.top1.n), f"{row.top1.mean:.2f}%", std, gain


def _table(rows: list[Row]) -> Table:
    table = Table()
    for column in _HEADER:
        table.add_column(column)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _reading(rows: list[Row], teacher: float) -> str:
    parts = []
    for row in rows:
        if row.gain is None:
            continue
        if row.gain.n == 1:
            parts.append(f"{row.title} {row.gain.mean:+.2f} points with one seed, which shows nothing yet")
        elif row.gain.low > 0:
            parts.append(f"{row.title} helped in this run")
        elif row.gain.high < 0:
            parts.append(f"{row.title} hurt in this run")
        else:
            parts.append(f"{row.title}: no difference that {row.gain.n} seeds can show")
    return f"{'; '.join(parts)}. The teacher has {teacher:.2f}%."


def _write(
    out: Path,
    rows: list[Row],
    results: dict[str, list[Result]],
    teacher: Result,
    precision: str,
    seconds: float,
) -> None:
    lines = ["| " + " | ".join(_HEADER) + " |", "|" + "---|" * len(_HEADER)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    where = provenance(str(resolve_device("auto")))
    lines += ["", _reading(rows, teacher.last.test["top1"]), ""]
    lines += [
        f"Digits, teacher {TEACHER}, student {STUDENT}, {precision}, {where['hardware']}, torch {where['torch']}."
    ]
    (out / "results.md").write_text("\n".join(lines) + "\n")
    _draw(out / "curves.png", results, teacher.last.test["top1"])
    content = {
        "seconds": seconds,
        "precision": precision,
        "provenance": where,
        "teacher": teacher.last.test,
        "top1": {name: [r.last.test["top1"] for r in runs] for name, runs in results.items()},
    }
    write_json(out / _MARKER, content)


def _draw(path: Path, results: dict[str, list[Result]], teacher: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    # Blue, orange, green of the Okabe-Ito palette: distinct without colour vision, as are the markers.
    styles = {"none": ("#0072B2", "o"), "kd": ("#E69F00", "s"), "itrd": ("#009E73", "^")}
    for name, runs in results.items():
        colour, marker = styles[name]
        curves = [[epoch.test["top1"] for epoch in run.history] for run in runs]
        epochs = range(1, len(curves[0]) + 1)
        mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
        for curve in curves:
            axes.plot(epochs, curve, color=colour, alpha=0.25, linewidth=1)
        axes.plot(epochs, mean, color=colour, marker=marker, label=f"{METHODS[name]} (mean of {len(runs)})")
    axes.axhline(teacher, color="0.4", linestyle="--", linewidth=1, label="teacher")
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"{STUDENT} learns handwritten digits from {TEACHER}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)
