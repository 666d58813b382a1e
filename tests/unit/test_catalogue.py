"""The catalogue's facts, its page, and the guide to adding a method."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import itrd
from itrd.catalogue import EXAMPLE, all_facts, facts, make_page, measurements
from itrd.catalogue.docstrings import to_markdown, to_text
from itrd.catalogue.overhead import _read
from itrd.methods import METHODS, Method, create_objective

DOCS = Path(__file__).parents[2] / "docs"


def test_the_committed_page_is_what_the_generator_prints() -> None:
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == make_page(), (
        "docs/methods.md is out of date; run: python -m itrd.catalogue docs/methods.md"
    )


def test_the_page_has_a_section_for_each_method_and_every_published_number() -> None:
    page = make_page()
    assert re.findall(r"^## (.*)$", page, re.MULTILINE)[: len(METHODS)] == list(METHODS)
    assert "[arXiv 2112.00459](https://arxiv.org/abs/2112.00459)" in page
    assert "| ITRD | 76.12 | 75.18 | 71.47 | 71.99 | 74.26 | 76.69 | 74.93 |" in page
    assert "| DKD | 76.24 b | 74.81 b | 71.97 b |  | 74.11 b | 76.32 b | 74.68 b |" in page
    assert ":class:" not in page
    assert ":meth:" not in page


def test_facts() -> None:
    found = facts("ft")
    assert (found.name, found.aliases, found.arxiv) == ("factor", ("ft",), "1802.04977")
    paraphraser = 2 * (128 * 128 * 9 + 128 * 64 * 9 + 64 * 64 * 9) + (128 + 64 + 64) + (64 + 128 + 128)
    translator = (128 * 128 + 128 * 64 + 64 * 64) * 9 + 3 * (128 + 64 + 64)
    assert found.first_stage_parameters == paraphraser
    assert found.parameters == paraphraser + translator
    assert [s.name for s in found.settings] == ["k", "init_epochs"]
    assert "the first stage runs at learning rate 0.01" in found.deviations[0]
    assert not any("Args:" in text for text in (*found.description, *found.deviations))
    cell = found.published(EXAMPLE)
    assert cell is not None
    assert cell.top1 == 73.25


def test_every_method_is_described() -> None:
    before = torch.get_rng_state()
    for found in all_facts():
        assert found.description
        assert all(setting.about for setting in found.settings), found.name
        assert create_objective(found.loss).describe() == found.loss
    assert torch.equal(torch.get_rng_state(), before)


def test_paragraphs() -> None:
    text = "With ``a`` < b of\n:class:`~itrd.x.Y`:\n    * one\n      more;\n    * two."
    assert to_markdown(text) == "With `a` &lt; b of `Y`:\n\n* one more;\n* two."
    assert to_text(text, 15) == "With `a` < b of\n`Y`:\n  * one more;\n  * two."
    assert to_markdown("    L = a\n      + b") == "```text\nL = a\n  + b\n```"


def test_measured_overhead_ships() -> None:
    """Of all methods there were when it was measured."""
    assert measurements()
    for measurement in measurements():
        assert measurement.pair == str(EXAMPLE)
        assert {"kd", "itrd", "crd", "reviewkd"} < {cost.method for cost in measurement.costs} < set(METHODS)
        assert all(cost.percent is not None and cost.percent > 0 for cost in measurement.costs)


def test_overheads_are_relative_to_the_step() -> None:
    line = {"method": "kd", "stage": "main", "reason": "", "median_ms": 1.0, "peak_mib": 3.0}
    other = {"method": "fsp", "stage": "first", "reason": "no"}
    head = {"machine": "m", "precision": "fp32", "batch_size": 64, "pair": "p"}
    head |= {"versions": {}, "repeats": 9, "other_load": 1.5}
    found = _read({**head, "step": {"median_ms": 50.0, "peak_mib": 6.0}, "methods": [line, other]})
    assert found.where == "m, fp32, batch 64"
    (cost,) = found.of("kd")
    assert (cost.percent, cost.peak_percent) == (2.0, 50.0)
    (cost,) = found.of("fsp")
    assert (cost.percent, cost.reason) == (None, "no")


def guide() -> str:
    """The method in docs/add-a-method.md, its first block."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "add-a-method.md").read_text(encoding="utf-8"), re.S)
    return blocks[0]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> type[Method]:
    """The guide's method, as step 2 registers it."""
    module = ModuleType("itrd.methods.logits")
    exec(compile(guide(), "add-a-method.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "itrd.methods.logits", module)
    monkeypatch.setitem(METHODS, "logits", "logits:LogitMatching")
    return module.LogitMatching


def test_the_guides_method_has_ten_lines() -> None:
    assert sum(bool(line.strip()) for line in guide().splitlines()) == 10


def test_the_guides_method_trains(registered: type[Method], tiny: dict) -> None:
    torch.manual_seed(0)
    teacher = itrd.create_model("resnet8", 10)
    settings = {**tiny, "epochs": 1}
    named = itrd.distill(teacher, "resnet8", "digits", "logits", **settings)
    given = itrd.distill(teacher, "resnet8", "digits", registered(), **settings)
    assert set(named.last.train) == {"loss", "ce", "logits", "top1", "top5"}
    assert named.last.train["logits"] > 0
    assert named.last.train == given.last.train


@pytest.mark.usefixtures("registered")
def test_the_guides_method_is_in_the_catalogue() -> None:
    assert "## logits\n\n**Logit matching**. Ba, Caruana, NeurIPS 2014, [arXiv 1312.6184]" in make_page()
