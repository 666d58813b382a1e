"""Distilled against alone, over several seeds."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import itrd
from foreign_nets import TwoStages
from itrd.cli import main
from itrd.engine.config import DistillConfig, TrainConfig
from itrd.engine.control import Compared, run_seeds
from itrd.engine.record import Epoch, Result
from itrd.engine.run import prepare_distill, prepare_train
from itrd.engine.trainer import Trainer
from itrd.errors import RunFolderError, UserError
from itrd.methods.base import Batch, Method, Setup
from itrd.models.base import Outputs


def settings(teacher: Path, **more: Any) -> DistillConfig:
    return DistillConfig(
        **{
            "teacher": str(teacher),
            "student": "resnet8",
            "method": "kd",
            "data": "digits",
            "out": "",
            "train_subset": 48,
            "test_subset": 40,
            "epochs": 1,
            "batch_size": 16,
            "progress": False,
            "tensorboard": False,
            **more,
        }
    )


def test_both_begin_with_the_same_weights_and_see_the_same_batches(teacher_folder: Path) -> None:
    seen: dict[str, list[torch.Tensor]] = {}

    def spy(trainer: Trainer) -> Result:
        weights = [value.clone() for value in trainer.task.student.state_dict().values()]
        batches: list[torch.Tensor] = []
        draw = trainer.train_images.images

        def watched(drawn: Any) -> torch.Tensor:
            batches.append(draw(drawn))
            return batches[-1]

        trainer.train_images.images = watched
        result = trainer.fit()
        seen[trainer.record["kind"]] = weights + batches
        return result

    compared = run_seeds(settings(teacher_folder, control=True), fit=spy)
    assert len(seen["train"]) == len(seen["distill"]) == len(compared.alone[0].student.state_dict()) + 3
    assert all(torch.equal(a, b) for a, b in zip(seen["train"], seen["distill"], strict=True))
    alone, distilled = compared.alone[0], compared.distilled[0]
    assert len(alone.history) == len(distilled.history) == 1
    assert alone.last.learning_rate == distilled.last.learning_rate


def test_runs_are_those_of_the_single_commands(teacher_folder: Path, tmp_path: Path) -> None:
    config = settings(teacher_folder, control=True, seeds=2, seed=3, out=str(tmp_path / "c"))
    compared = run_seeds(config)
    assert list(compared.distilled) == list(compared.alone) == [3, 4]
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        "comparison.json",
        *("seed3", "seed3-alone", "seed4", "seed4-alone"),
    ]
    with prepare_distill(settings(teacher_folder, seed=4)) as trainer:
        assert trainer.fit().last.train == compared.distilled[4].last.train
    single = settings(teacher_folder, seed=4)
    shared = {
        k: getattr(single, k) for k in ("data", "train_subset", "test_subset", "epochs", "batch_size", "out")
    }
    with prepare_train(
        TrainConfig(model="resnet8", seed=4, progress=False, tensorboard=False, **shared)
    ) as trainer:
        assert trainer.fit().last.train == compared.alone[4].last.train

    document = json.loads((tmp_path / "c/comparison.json").read_text())
    assert document["difference"]["n"] == 2
    assert document["alone"]["by_seed"].keys() == {"3", "4"}
    # Finished runs stay as they are, and seeds may be added; also after a death while the comparison was written.
    (tmp_path / "c/.comparison.json.x.partial").write_text("{")
    before = (tmp_path / "c/seed3/result.json").read_bytes()
    more = run_seeds(
        settings(teacher_folder, control=True, seeds=3, seed=3, out=str(tmp_path / "c"), resume=True)
    )
    assert (tmp_path / "c/seed3/result.json").read_bytes() == before
    assert {s: r.last.test for s, r in more.distilled.items() if s < 5} == {
        s: r.last.test for s, r in compared.distilled.items()
    }
    assert json.loads((tmp_path / "c/comparison.json").read_text())["difference"]["n"] == 3
    assert not list((tmp_path / "c").glob(".*"))
    with pytest.raises(RunFolderError, match="already holds this run; continue it with --resume"):
        run_seeds(dataclasses.replace(config, seeds=3))


def test_folders_that_cannot_be_used(teacher_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds something else than a comparison"):
        run_seeds(settings(teacher_folder, control=True, out=str(teacher_folder)))
    with pytest.raises(RunFolderError, match="nothing to resume"):
        run_seeds(settings(teacher_folder, control=True, out=str(tmp_path / "new"), resume=True))
    with pytest.raises(UserError, match="seeds must be at least 1"):
        settings(teacher_folder, seeds=0)
    with pytest.raises(UserError, match="profile records one run"):
        settings(teacher_folder, control=True, profile="x.json")


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (
            {"seed": 7, "control": True, "resume": True},
            "also holds seed 0, 1, .* --resume --seed 0 --seeds 8,",
        ),
        ({"seed": 7, "control": True}, "also holds seed 0, 1, "),
        (
            {"seed": 1, "seeds": 2, "control": True, "resume": True},
            "also holds seed 0, .* --seed 0 --seeds 3,",
        ),
        ({"seeds": 2, "resume": True}, "also holds students alone, .* add --control"),
    ],
)
def test_nothing_that_a_comparison_holds_is_left_out(
    asked: dict[str, Any], complaint: str, teacher_folder: Path, tmp_path: Path
) -> None:
    for name in ("seed0", "seed0-alone", "seed1", "seed1-alone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(RunFolderError, match=complaint):
        run_seeds(settings(teacher_folder, out=str(tmp_path), **asked))
    assert (tmp_path / "comparison.json").read_text() == "{}"


# --- what is reported ------------------------------------------------------------------------------------


def finished(top1: float, first_stages: int = 0) -> Result:
    last = Epoch(1, 0.1, {}, {"top1": top1}, 1.0, 1.0)
    record = {
        "data": {},
        "teacher": {},
        "objective": "",
        "settings": {},
        "provenance": {},
        "first_stages": [{}] * first_stages,
    }
    return Result(last, last, [last], torch.nn.Identity(), record)


def test_interval_of_the_paired_difference() -> None:
    distilled, alone = [50.0, 52.5, 51.0], [49.0, 50.0, 50.5]
    found = Compared(
        {i: finished(x) for i, x in enumerate(distilled)}, {i: finished(x) for i, x in enumerate(alone)}, None
    )
    expected = stats.ttest_rel(distilled, alone)
    low, high = expected.confidence_interval(0.95)
    said = found.document()["difference"]
    assert (said["low"], said["high"], said["p"]) == pytest.approx((low, high, expected.pvalue))
    assert said["difference"] == pytest.approx(4 / 3)
    assert str(found).splitlines() == [
        "seed    alone  distilled  difference",
        "0       49.00      50.00       +1.00",
        "1       50.00      52.50       +2.50",
        "2       50.50      51.00       +0.50",
        f"distilled - alone: +1.33 points of top-1, 95% interval {low:+.2f} to {high:+.2f} "
        f"(paired t, n = 3, p = {expected.pvalue:.2g})",
    ]


def test_one_seed_has_no_interval() -> None:
    found = Compared({0: finished(50.0, first_stages=3)}, {0: finished(49.0)}, None)
    said = found.document()
    assert said["difference"] == {
        "n": 1,
        "difference": 1.0,
        "low": None,
        "high": None,
        "p": None,
        "paired": True,
    }
    assert "+1.00 points of top-1, of one seed, which tells nothing about chance; --seeds 3" in str(found)
    assert "3 epochs of its first stage on top" in str(found)
    json.dumps(said, allow_nan=False)
    equal = Compared({0: finished(5.0), 1: finished(6.0)}, {0: finished(4.0), 1: finished(5.0)}, None)
    assert "equal in all 2 seeds, so there is no interval" in str(equal)


def test_seeds_without_a_control() -> None:
    found = Compared({0: finished(50.0), 1: finished(52.0)}, {}, None)
    assert found.difference is None
    assert found.document()["alone"] is None
    half = stats.t.ppf(0.975, 1)
    assert (
        str(found).splitlines()[-1]
        == f"mean of 2: 51.00% ({51 - half:.2f} to {51 + half:.2f}, 95%, Student's t)"
    )


# --- the surfaces ----------------------------------------------------------------------------------------


def test_from_python_with_a_module_of_ones_own(tiny: dict[str, Any]) -> None:
    torch.manual_seed(0)
    teacher, student = TwoStages(), TwoStages()
    start = copy.deepcopy(student.state_dict())
    settings = {**tiny, "epochs": 1, "control": True, "seeds": 2, "learning_rate": 0.01}
    result = itrd.distill(teacher, student, "digits", "attention", **settings)
    assert result.student is student
    assert any(not torch.equal(value, start[key]) for key, value in student.state_dict().items())
    assert result.comparison["difference"]["n"] == 2
    student.load_state_dict(start)
    again = itrd.distill(teacher, student, "digits", "attention", **{**settings, "seeds": 1, "seed": 1})
    assert again.last.test["top1"] == result.comparison["distilled"]["by_seed"]["1"]
    assert itrd.distill(teacher, TwoStages(), "digits", "kd", **{**tiny, "epochs": 1}).comparison is None


STARTS: list[torch.Tensor] = []


class WithModule(Method):
    """A method whose module is made with it."""

    name = "with_module"
    reads = frozenset({"embedding"})

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(64, 64)

    def setup(self, setup: Setup) -> None:
        STARTS.append(self.head.weight.detach().clone())

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        return {"with_module": (self.head(student.embedding) - teacher.embedding).square().mean()}


def test_every_seed_begins_with_the_method_as_it_was_given(tiny: dict[str, Any]) -> None:
    STARTS.clear()
    teacher, method = itrd.create_model("resnet8", 10), WithModule()
    before = method.head.weight.detach().clone()
    settings = {**tiny, "epochs": 1, "seeds": 2, "data": "digits"}
    itrd.distill(teacher, "resnet8", method=method, **settings)
    assert len(STARTS) == 2
    assert all(torch.equal(weight, before) for weight in [*STARTS, method.head.weight])


def test_an_objective_is_not_changed_by_a_run(tiny: dict[str, Any]) -> None:
    objective = itrd.create_objective("kd")
    for smoothing in (0.1, 0.0):
        settings = {**tiny, "epochs": 1, "data": "digits", "label_smoothing": smoothing}
        itrd.distill(itrd.create_model("resnet8", 10), "resnet8", method=objective, **settings)
    assert objective.label_smoothing == 0


def test_from_the_command_line(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        "distill",
        "--teacher",
        str(teacher_folder),
        "--student",
        "resnet8",
        "--method",
        "kd",
        "--control",
    ]
    few = ["--epochs", "1", "--train_subset", "40", "--test_subset", "20", "--tensorboard", "false"]
    assert main([*command, *few, "--progress", "false", "--teacher_taps", "[layer2,layer3]"]) == 0
    out = capsys.readouterr().out
    (folder,) = Path("runs").iterdir()
    assert folder.name.endswith("-seed0-control")
    assert (folder / "comparison.json").is_file()
    assert "layer2" in out
    assert "distilled - alone: " in out
    assert f"written to {folder / 'comparison.json'}" in out


def test_given_logits_do_not_tell_their_dataset_however_many_seeds(tmp_path: Path) -> None:
    np.save(tmp_path / "logits.npy", np.zeros((1000, 10), np.float32))
    for seeds in (1, 2):
        with pytest.raises(UserError, match="does not say which dataset its rows are of"):
            itrd.distill(
                None, "resnet8", None, "kd", teacher_logits=str(tmp_path / "logits.npy"), seeds=seeds
            )
