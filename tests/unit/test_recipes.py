"""The published tables and the settings behind them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from itrd.cli.parser import build_parser
from itrd.engine.config import DistillConfig
from itrd.engine.rates import rate_of
from itrd.errors import UserError
from itrd.methods import create_objective, method_class
from itrd.models import list_models
from itrd.recipes import (
    IMAGENET_LOSSES,
    PAIRS,
    TABLE_METHODS,
    Pair,
    all_recipes,
    published,
    published_results,
    recipe,
    settings_file,
)


def test_the_published_table_is_read_whole() -> None:
    assert {p.pair for p in published_results()} == set(PAIRS)
    assert all(name in list_models() for pair in PAIRS for name in pair)
    cell = published("ITRD", Pair("wrn_40_2", "wrn_16_2"))
    assert cell is not None
    assert (cell.top1, cell.epoch) == (76.12, "last")
    assert published("ITRD", Pair("resnet8", "resnet8")) is None


def test_every_published_cell_of_the_sixteen_methods_has_a_recipe() -> None:
    assert len(TABLE_METHODS) == 16
    have = {(r.row, r.pair) for r in all_recipes()}
    for cell in published_results():
        if cell.row in TABLE_METHODS.values() and cell.top1 is not None:
            assert (cell.row, cell.pair) in have, cell
    assert len(have) == 16 * 13 - 7  # FSP needs equal widths


@pytest.mark.parametrize(
    "found", list(all_recipes()), ids=lambda r: f"{r.method}-{r.pair.student}-{r.variant}"
)
def test_recipes_can_be_built_and_say_where_they_come_from(found) -> None:
    objective = create_objective(found.loss)
    assert create_objective(objective.describe()).describe() == objective.describe()
    assert found.source
    assert method_class(found.method).title == found.row
    config = found.config(seed=2)
    assert config.protocol() == "protocol"
    assert (config.teacher, config.student, config.seed) == (*found.pair, 2)


def test_itrd_per_family_and_variant() -> None:
    same = recipe("itrd", "wrn_40_2", "wrn_16_2")
    cross = recipe("itrd", "ResNet50", "vgg8")
    default = recipe("itrd", "ResNet50", "vgg8", variant="code-default")
    assert "alpha=1.01, lambda_corr=2.0, lambda_mutual=1.0" in same.loss
    assert "alpha=1.5, lambda_corr=2.0, lambda_mutual=1.0" in cross.loss
    assert "alpha=1.5, lambda_corr=2.0, lambda_mutual=0.05" in default.loss


def test_missing_cells_are_named() -> None:
    with pytest.raises(UserError, match="no recipe 'published' for fsp on ResNet50 -> vgg8"):
        recipe("fsp", "ResNet50", "vgg8")


@pytest.mark.parametrize("row", IMAGENET_LOSSES)
def test_losses_for_imagenet_can_be_built_and_say_where_they_come_from(row: str) -> None:
    found = IMAGENET_LOSSES[row]
    objective = create_objective(found.loss)
    assert create_objective(objective.describe()).describe() == objective.describe()
    assert found.source
    (method,) = objective.methods
    assert method.title == row


def test_the_published_figures_for_imagenet_are_there() -> None:
    known = {row: found.top1 for row, found in IMAGENET_LOSSES.items() if found.top1 is not None}
    assert known == {
        "KD": 70.66,
        "CRD": 71.17,
        "ReviewKD": 71.61,
        "ITRD": 71.68,
        "DKD": 71.70,
        "DIST": 72.07,
        "WTTM": 72.19,
    }


def test_the_imagenet_recipe_is_the_schedule_of_the_literature() -> None:
    settings = dict(build_parser().parse_args(["distill", "--config", "imagenet", "--method", "kd"]).distill)
    assert settings.pop("config")
    config = DistillConfig(**settings)
    assert (config.teacher, config.student) == ("torchvision:resnet34", "torchvision:resnet18")
    assert config.method == "kd"  # a flag after the file
    rates = [rate_of(config, epoch) for epoch in (1, 30, 31, 60, 61, 90, 91, 100)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])
    assert (config.batch_size, config.momentum, config.weight_decay) == (256, 0.9, 1e-4)
    assert (config.image_size, config.augment, config.normalisation) == (224, "resized_crop", "imagenet")
    written = yaml.safe_load(Path(settings_file("imagenet")).read_text())
    assert written["method"] == IMAGENET_LOSSES["ITRD"].loss
