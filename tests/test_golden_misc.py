"""Reference values beside the losses: schedules, parsed command lines, folder names, accuracies."""

from __future__ import annotations

import os
import re

import pytest
import torch

from golden_recipe import GOLDEN, load_json
from itrd.dropin.options import (
    OWN,
    itrd_options,
    repdistiller_options,
    student_options,
    teacher_options,
)
from itrd.engine.metrics import accuracies
from itrd.engine.networks import architecture_from_path
from itrd.engine.rates import milestone_rate

FILE = GOLDEN / "misc.json"
MISC = load_json(FILE) if FILE.is_file() else {}
PARSERS = {
    "repdistiller_train_student": repdistiller_options,
    "itrd_train_student": itrd_options,
    "repdistiller_train_teacher": teacher_options,
}
COMMAND_LINES = [
    pytest.param(parser, case["argv"], case["result"], id=f"{parser}-{number}")
    for parser, cases in MISC.get("parsed_options", {}).items()
    for number, case in enumerate(cases)
]


def accepted_by_us(argv: list[str]) -> bool:
    """Refused by the original's parser although its own published script trains that network."""
    return "--model" in argv and "ResNet50" in argv


pytestmark = pytest.mark.skipif(not MISC, reason=f"{FILE} is not there")


def test_golden_misc_holds_nothing_unknown() -> None:
    known = {
        "lr_schedule_epoch_first_last_value",
        "teacher_name_from_path",
        "parsed_options",
        "topk_accuracy",
    }
    assert set(MISC) <= known
    assert set(MISC.get("parsed_options", {})) <= set(PARSERS)


@pytest.mark.parametrize("name", MISC.get("lr_schedule_epoch_first_last_value", {}))
def test_golden_schedule(name: str) -> None:
    stretches = MISC["lr_schedule_epoch_first_last_value"][name]
    base = float(re.search(r"base_([\d.]+)", name)[1])
    # A stretch starts in the epoch after a milestone, whether epochs are counted from 0 or from 1.
    milestones = [first - 1 for first, _, _ in stretches[1:]]
    decay = 0.1
    for first, last, value in stretches:
        for epoch in range(first, last + 1):
            assert milestone_rate(base, decay, milestones, epoch) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(("path", "name"), MISC.get("teacher_name_from_path", []))
def test_golden_teacher_name(path: str, name: str) -> None:
    assert architecture_from_path(path) == name


@pytest.mark.parametrize(("parser", "argv", "expected"), COMMAND_LINES)
def test_golden_command_line(parser: str, argv: list[str], expected: dict, capsys) -> None:
    if "error" in expected and not accepted_by_us(argv):
        # A missing --path_t ends the originals with an AttributeError; ours says so in one line.
        assert expected["error"] in ("SystemExit", "AttributeError")
        with pytest.raises(SystemExit) as stopped:
            PARSERS[parser](argv)
        assert stopped.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
        return
    options = vars(PARSERS[parser](argv))
    if "error" in expected:
        return
    options = {key: value for key, value in options.items() if key not in OWN}
    for folder in ("tb_folder", "save_folder"):  # the originals' separators, wherever this runs
        options[folder] = options[folder].replace(os.sep, "/")
    assert options == expected
    kinds = {key: type(value) for key, value in options.items()}
    assert kinds == {key: type(value) for key, value in expected.items()}


@pytest.mark.parametrize(
    ("parser", "argv", "expected"), [case for case in COMMAND_LINES if "student" in case.values[0]]
)
def test_golden_command_line_is_recognised(parser: str, argv: list[str], expected: dict) -> None:
    told = [word for word in argv if word in ("--distill", "-a")] or parser.startswith("itrd")
    if "error" not in expected and told:  # a line that fits both scripts is ITRD's
        assert vars(student_options(argv)) == vars(PARSERS[parser](argv))


@pytest.mark.skipif("topk_accuracy" not in MISC, reason="no accuracies there")
def test_golden_topk_accuracy() -> None:
    case = MISC["topk_accuracy"]
    found = accuracies(torch.tensor(case["logits"]), torch.tensor(case["target"]))
    for k in (1, 5):
        assert float(found[f"top{k}"]) == pytest.approx(case[f"top{k}_percent"], rel=1e-6)
