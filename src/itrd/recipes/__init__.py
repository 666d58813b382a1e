"""The published benchmark: its thirteen pairs, its numbers, and the settings behind them.

A run is a function that returns typed settings: :func:`recipe` gives the loss of one cell of the published
tables with its provenance, and :meth:`Recipe.config` a :class:`itrd.engine.config.DistillConfig`. Importing
this package does not import torch.
"""

from itrd.recipes.imagenet import IMAGENET_LOSSES, ImagenetLoss, settings_file
from itrd.recipes.published import PAIRS, Pair, Published, published, published_results
from itrd.recipes.settings import TABLE_METHODS, Recipe, all_recipes, recipe

__all__ = [
    "IMAGENET_LOSSES",
    "PAIRS",
    "TABLE_METHODS",
    "ImagenetLoss",
    "Pair",
    "Published",
    "Recipe",
    "all_recipes",
    "published",
    "published_results",
    "recipe",
    "settings_file",
]
