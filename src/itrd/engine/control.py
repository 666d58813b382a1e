"""Distilled against alone: the same student, once with the teacher and once without, on equal terms.

Seed by seed both runs have the same initial weights, order of the data, augmentation and number of epochs, so their
difference is what the method does. Several seeds give the difference an interval.

A comparison's folder holds a run folder for each run, ``seed0`` and ``seed0-alone`` and so on, and
``comparison.json``, which is of all of them.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from itrd.engine.config import DistillConfig, RunConfig, TrainConfig
from itrd.engine.inputs import check_named, find_teacher, get_data
from itrd.engine.networks import TrainedNetwork
from itrd.engine.record import Result
from itrd.engine.run import prepare_distill, prepare_train
from itrd.engine.team import join
from itrd.engine.trainer import Trainer
from itrd.errors import RunFolderError, UserError
from itrd.files import PARTIAL, remove_partial_files, write_json
from itrd.methods.objective import Objective
from itrd.stats import Comparison, compare, summarize

COMPARISON = "comparison.json"
COMPARISON_FORMAT = 1
_RUN = re.compile(r"seed([0-9]+)(-alone)?")


@dataclass(frozen=True)
class Compared:
    """Finished runs of one student.

    Attributes:
        distilled: seed -> run with the teacher.
        alone: seed -> run without it; empty if there was no control.
        folder: where they are; None if nothing was written.
    """

    distilled: dict[int, Result]
    alone: dict[int, Result]
    folder: Path | None

    @property
    def difference(self) -> Comparison | None:
        """Of the accuracies, distilled less alone, seed by seed; None if there was no control."""
        return compare(_top1(self.distilled), _top1(self.alone))

    @property
    def first_stage_epochs(self) -> int:
        """Epochs that the method trained before the student's own, which the student alone did not have."""
        first = next(iter(self.distilled.values()))
        return len(first.record["first_stages"])

    def document(self) -> dict[str, Any]:
        """Return what ``comparison.json`` holds: accuracies by seed, their means, the difference."""
        first = next(iter(self.distilled.values())).record
        difference = self.difference
        return {
            "format": COMPARISON_FORMAT,
            "metric": "top-1 on the test set after the last epoch, percent",
            "data": first["data"],
            "teacher": first["teacher"],
            **({"student": first["student"]} if "student" in first else {}),
            "objective": first["objective"],
            "settings": first["settings"],
            "first_stage_epochs": self.first_stage_epochs,
            "distilled": _group(self.distilled),
            "alone": _group(self.alone) if self.alone else None,
            "difference": None if difference is None else _plain(vars(difference)),
            "confidence": 0.95,
            "provenance": first["provenance"],
        }

    def __str__(self) -> str:
        """A table of the seeds, and the means or their difference in a sentence."""
        distilled, alone = _top1(self.distilled), _top1(self.alone)
        lines = ["seed    alone  distilled  difference" if alone else "seed  distilled"]
        for seed, value in distilled.items():
            if alone:
                lines.append(f"{seed:<4}  {alone[seed]:7.2f}  {value:9.2f}  {value - alone[seed]:+10.2f}")
            else:
                lines.append(f"{seed:<4}  {value:9.2f}")
        difference = self.difference
        if difference is not None:
            lines.append(
                f"distilled - alone: {difference.difference:+.2f} points of top-1, "
                f"{_certainty(difference, self.folder)}"
            )
        else:
            found = summarize(list(distilled.values()))
            spread = f" ({found.low:.2f} to {found.high:.2f}, 95%, Student's t)" if found.std else ""
            lines.append(f"mean of {found.n}: {found.mean:.2f}%{spread}")
        if self.first_stage_epochs and alone:
            lines.append(
                f"the method had {self.first_stage_epochs} epochs of its first stage on top, the student alone had not"
            )
        return "\n".join(lines)


def run_seeds(
    config: DistillConfig,
    *,
    teacher: TrainedNetwork | None = None,
    student: nn.Module | None = None,
    data: Any = None,
    objective: Objective | None = None,
    fit: Callable[[Trainer], Result] = Trainer.fit,
) -> Compared:
    """Distil with each of ``config.seeds`` seeds, with ``config.control`` also train the student alone with each.

    Args:
        config: settings. With ``resume`` finished runs are left as they are, and seeds may be added; none that the
            folder holds may be left out, nor its controls.
        teacher, student, data, objective: given instead of named. Every run gets a copy of a given student, but the
            first distilled one, which trains the student itself; the seeds then differ in the data's order alone.
        fit: carries out a prepared run.

    Raises:
        UserError: anything that cannot work.
    """
    team, _ = join(config)
    check_named(config, data)
    with team.one_by_machine():
        if config.teacher_logits is None:
            config, teacher = find_teacher(config, teacher, data)
    folder = _folder(config)  # whose name has the data's
    with team.one_by_machine():
        data = get_data(config.resolved(), data, config.student if student is None else None)
    if data.reading is not None:  # the data is given to every run as it was read here
        config = replace(config, image_size=data.reading.image_size)
    if not len(data.test) or not data.labelled:
        raise UserError(
            f"{data.name} has no labels to train the student alone with, or to compare accuracies on; leave control "
            "and seeds out"
        )
    initial = copy.deepcopy(student)
    distilled: dict[int, Result] = {}
    alone: dict[int, Result] = {}
    for seed in range(config.seed, config.seed + config.seeds):
        single = replace(config, seed=seed, seeds=1, control=False, **_place(config, folder, f"seed{seed}"))
        net = student if not distilled else copy.deepcopy(initial)
        with prepare_distill(single, teacher=teacher, student=net, data=data, objective=objective) as trainer:
            distilled[seed] = fit(trainer)
        if config.control:
            shared = {field.name: getattr(single, field.name) for field in fields(RunConfig)}
            place = _place(config, folder, f"seed{seed}-alone")
            control = TrainConfig(model=config.student, **{**shared, **place})
            with prepare_train(control, model=copy.deepcopy(initial), data=data) as trainer:
                alone[seed] = fit(trainer)
    starts = {
        (result.record.get("student") or {}).get("sha256")
        for result in (*distilled.values(), *alone.values())
    }
    if len(starts) > 1:
        raise UserError(
            f"the weights in {config.initial_weights} changed between the runs of {folder}; restore them, and repeat "
            "those that began with others"
        )
    found = Compared(distilled, alone, folder)
    if folder is not None and team.leads:
        remove_partial_files(folder)
        write_json(folder / COMPARISON, found.document())
    return found


def _folder(config: DistillConfig) -> Path | None:
    if config.out == "":
        return None
    name = f"{config.run_name()}{f'-and{config.seeds - 1}' if config.seeds > 1 else ''}{'-control' * config.control}"
    folder = Path(config.out or Path("runs") / name)
    held = [path.name for path in folder.iterdir() if path.suffix != PARTIAL] if folder.is_dir() else []
    if any(name != COMPARISON and not name.startswith("seed") for name in held):
        raise RunFolderError(
            f"{folder} holds something else than a comparison; choose another folder with --out"
        )
    if config.resume and not held:
        raise RunFolderError(f"nothing to resume: {folder} holds no run; leave out --resume to start one")
    _check_nothing_is_dropped(config, folder, held)
    return folder


def _check_nothing_is_dropped(config: DistillConfig, folder: Path, held: Iterable[str]) -> None:
    """Refuse to compare fewer runs than a folder holds: whoever leaves some out chooses by the result.

    Raises:
        RunFolderError: seeds or controls that are there were not asked for.
    """
    begun = [
        found
        for name in held
        if (found := _RUN.fullmatch(name)) and (folder / name / "config.yaml").is_file()
    ]
    seeds = sorted({int(found[1]) for found in begun})
    missing = [str(seed) for seed in seeds if not config.seed <= seed < config.seed + config.seeds]
    if missing:
        first, last = min(seeds[0], config.seed), max(seeds[-1], config.seed + config.seeds - 1)
        raise RunFolderError(
            f"{folder} also holds seed {', '.join(missing)}, and the comparison is of all its seeds: ask for them, "
            f"too, with --resume --seed {first} --seeds {last - first + 1}, or choose another folder with --out"
        )
    if not config.control and any(found[2] for found in begun):
        raise RunFolderError(
            f"{folder} also holds students alone, and the comparison is with them: add --control, or choose another "
            "folder with --out"
        )


def _place(config: DistillConfig, folder: Path | None, name: str) -> dict[str, Any]:
    """Where a run goes, and whether it goes on: the stop may have come before it began."""
    if folder is None:
        return {"out": "", "resume": False}
    return {"out": str(folder / name), "resume": config.resume and (folder / name / "config.yaml").is_file()}


def _top1(results: Mapping[int, Result]) -> dict[int, float]:
    return {seed: result.last.test["top1"] for seed, result in results.items()}


def _group(results: Mapping[int, Result]) -> dict[str, Any]:
    values = _top1(results)
    return {
        "by_seed": {str(k): v for k, v in values.items()},
        **_plain(vars(summarize(list(values.values())))),
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers that do not exist as None: JSON has no NaN."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def _certainty(difference: Comparison, folder: Path | None) -> str:
    if difference.n == 1:
        more = "" if folder is None else f" (with --resume --out {folder} the finished runs are kept)"
        return f"of one seed, which tells nothing about chance; --seeds 3 gives an interval{more}"
    if math.isnan(difference.low):
        return f"equal in all {difference.n} seeds, so there is no interval"
    interval = f"95% interval {difference.low:+.2f} to {difference.high:+.2f}"
    return f"{interval} (paired t, n = {difference.n}, p = {difference.p:.2g})"
