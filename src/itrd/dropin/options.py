"""The flags of the original scripts, parsed to the same options.

Three parsers: ITRD's train_student.py, RepDistiller's train_student.py and RepDistiller's train_teacher.py.
Flags, types, defaults, derived values and folder names are the originals'. Abbreviated flags work as they
did there: flags that only we have are taken out first and cannot be abbreviated, so they collide with nothing.
"""

from __future__ import annotations

import argparse
import os
import zlib
from collections.abc import Sequence
from typing import NoReturn

from itrd.methods import list_methods
from itrd.models import list_models

# The networks that the original scripts train at 0.01, whatever --learning_rate says.
_SLOW_LEARNERS = ("MobileNetV2", "ShuffleV1", "ShuffleV2")
# ITRD's script lists three networks that it cannot build.
_ITRD_EXTRA_MODELS = ("resnet34", "resnet18", "resnet20_1w1a")
_PUBLISHED_METHODS = "kd hint attention similarity correlation vid crd kdsvd fsp rkd pkt abound factor nst reviewkd wcord".split()
_ONLY_REPDISTILLER = (
    "--alpha --feat_dim --mode --nce_k --nce_t --nce_m --hint_layer".split()
)  # beside --distill, and -a
_STUDENT, _TEACHER = "train_student.py", "train_teacher.py"

# Names of the options that the original scripts do not have.
OWN = ("seed", "device", "precision", "resume", "data_root")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def wants_repdistiller(argv: Sequence[str]) -> bool:
    """Tell whose train_student.py a command line was written for.

    With ``--distill``: ITRD's if its value is ``itrd``, RepDistiller's otherwise. Without: RepDistiller's if
    there is a flag that ITRD's script does not know, not even as an abbreviation (``-a``, ``--feat_dim``,
    ``--nce_k`` ...), else ITRD's.
    """
    first = _Parser(prog=_STUDENT, add_help=False)  # with abbreviations: --dist kd is --distill kd
    first.add_argument("--distill")
    first.add_argument("--dataset")  # keeps --d what it was: ambiguous, hence no --distill
    words = [word for word in argv if not word.split("=")[0] == "--d"]
    distill = first.parse_known_args([w for w in words if not _is_short(w)])[0].distill
    if distill is not None:
        return bool(distill != "itrd")
    known = [flag for action in _itrd_parser()._actions for flag in action.option_strings]
    for word in argv:
        name = word.split("=")[0]
        if word.startswith("--"):
            ours = any(flag.startswith(name) for flag in known)
            if len(name) > 2 and not ours and any(flag.startswith(name) for flag in _ONLY_REPDISTILLER):
                return True
        elif word.startswith("-a"):
            return True
    return False
