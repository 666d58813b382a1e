"""train_teacher.py: train a network on labels alone, with RepDistiller's flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from itrd.dropin.options import TEACHER_SCRIPT, teacher_options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit status."""
    opt = teacher_options(sys.argv[1:] if argv is None else argv)
    from itrd.dropin.script import guarded

    return guarded(TEACHER_SCRIPT, lambda: _train(opt))


def _train(opt: argparse.Namespace) -> None:
    from itrd.dropin.files import OriginalFiles
    from itrd.dropin.script import carry_out, common_settings
    from itrd.engine.config import TrainConfig
    from itrd.engine.run import prepare_train

    config = TrainConfig(**common_settings(opt), model=opt.model)
    files = OriginalFiles(opt, opt.model, teacher=True)
    carry_out(opt, config, files, lambda callbacks: prepare_train(config, callbacks))
