"""train_student.py: distil a student, with ITRD's flags or RepDistiller's."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from itrd.dropin.options import STUDENT_SCRIPT, fits_both, student_options
from itrd.errors import CheckpointError, UserError

# Names of our methods' settings -> the original options that set them.
_SETTINGS: dict[str, dict[str, str]] = {
    "correlation": {"feat_dim": "feat_dim"},
    "hint": {"hint_layer": "hint_layer"},
    "crd": {"feat_dim": "feat_dim", "K": "nce_k", "T": "nce_t", "momentum": "nce_m", "mode": "mode"},
    "abound": {"init_epochs": "init_epochs"},
    "factor": {"init_epochs": "init_epochs"},
    "fsp": {"init_epochs": "init_epochs"},
    "itrd": {"alpha": "alpha_it", "lambda_corr": "lambda_corr", "lambda_mutual": "lambda_mutual"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    opt = student_options(words)
    from itrd.dropin.script import guarded

    return guarded(STUDENT_SCRIPT, lambda: _distill(opt, fits_both(words)))


def objective(opt: argparse.Namespace) -> str:
    """Write the original loss r CE + a KD + b METHOD in the notation of :mod:`itrd.methods.expression`.

    A term of weight zero is left out where it changes nothing. It stays where its method does more than add
    to the loss: first stages, and calling the networks for their pre-activations.

    Raises:
        UserError: a weight that has no default is missing, or a weight is no weight.
    """
    method = getattr(opt, "distill", "itrd")
    required = ("beta",) if method == "itrd" else ("alpha", "beta")
    missing = [f"-{name[0]}" for name in required if getattr(opt, name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} must be given: the weights of the loss have no default")
    for name in ("gamma", *required):
        if not 0 <= getattr(opt, name) < math.inf:
            raise UserError(f"--{name} must be a number that is not negative, got {getattr(opt, name)}")
    terms = [f"{opt.gamma!r}*ce"]
    if method == "kd" or (method != "itrd" and opt.alpha != 0):
        terms.append(f"{opt.alpha!r}*kd(T={opt.kd_T!r})")
    if method != "kd" and (opt.beta != 0 or method in ("abound", "factor", "fsp", "itrd")):
        settings = _SETTINGS.get(method, {})
        written = ", ".join(f"{ours}={getattr(opt, theirs)!r}" for ours, theirs in settings.items())
        terms.append(f"{opt.beta!r}*{method}({written})")
    return " + ".join(terms)


def reading(opt: argparse.Namespace) -> str:
    """Say in one line whose flags a command line that fits both scripts is taken for, and what is trained."""
    read, flag, other = ("ITRD's", "the exponent of its correlation term", "--distill kd")
    if hasattr(opt, "distill"):
        read, flag, other = ("RepDistiller's", "the weight of KD", "--alpha_it")
    return (
        f"note: this command line is read as {read}, --alpha as {flag}; the loss is {objective(opt)} "
        f"(write {other} if the other script is meant)"
    )


def _distill(opt: argparse.Namespace, ambiguous: bool) -> None:
    from itrd.dropin.files import OriginalFiles
    from itrd.dropin.script import carry_out, common_settings
    from itrd.engine.config import DistillConfig
    from itrd.engine.run import prepare_distill
    from itrd.engine.trainer import Trainer
    from itrd.methods.itrd import ITRD
    from itrd.models import list_models

    is_itrd = not hasattr(opt, "distill")
    loss = objective(opt)
    if opt.model_s not in list_models():
        raise UserError(
            f"{opt.model_s} is not provided: the original script lists it, too, and cannot build it; choose another "
            "--model_s of `itrd models`"
        )
    if not Path(opt.path_t).is_file():
        raise CheckpointError(
            f"no checkpoint at {opt.path_t}; fetch the published teachers with "
            "`sh scripts/fetch_pretrained_teachers.sh`, or train one with "
            f"`python train_teacher.py --model {opt.model_t}`"
        )
    config = DistillConfig(
        **common_settings(opt),
        teacher=f"{opt.model_t}:{opt.path_t}",
        student=opt.model_s,
        method=loss,
        track="reference",
    )
    weighted = (
        {
            "train_correlation_loss": ("itrd.corr", opt.lambda_corr),
            "train_mutual_loss": ("itrd.mutual", opt.lambda_mutual),
        }
        if is_itrd
        else {}
    )
    files = OriginalFiles(opt, opt.model_s, terms=weighted, text_log=is_itrd)

    def started(trainer: Trainer) -> None:
        if ambiguous:
            print(reading(opt))
        if is_itrd:
            files.copy_sources(ITRD)
            if opt.path_s is not None:
                print("note: --path_s is not used")
        test = trainer.record["teacher"]["test"]  # None: of other classes
        print("teacher accuracy:", "unknown" if test is None else f"{test['top1']:.4f}", flush=True)

    carry_out(opt, config, files, lambda callbacks: prepare_distill(config, callbacks), started)
