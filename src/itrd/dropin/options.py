"""The flags of the original scripts, parsed to the same options.

Three parsers: ITRD's train_student.py, RepDistiller's train_student.py and RepDistiller's train_teacher.py.
Flags, types, defaults, derived values and folder names are the originals'. Abbreviated flags work as they
did there: flags that only we have are taken out first and cannot be abbreviated, so they collide with nothing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import zlib
from collections.abc import Sequence
from typing import NoReturn

from itrd.engine.config import SLOW_LEARNERS
from itrd.methods import list_methods
from itrd.models import BENCHMARK_MODELS

STUDENT_SCRIPT = "train_student.py"
TEACHER_SCRIPT = "train_teacher.py"

# Options that the original scripts do not have.
OWN = ("seed", "device", "precision", "resume", "data_root", "deterministic", "on_nonfinite")

# ITRD's script lists three networks that it cannot build; of these, we have the last one.
_ITRD_EXTRA_MODELS = ["resnet34", "resnet18", "resnet20_1w1a"]
# RepDistiller's --distill, and two that have no script there.
_DISTILL = (
    "kd",
    "hint",
    "attention",
    "similarity",
    "correlation",
    "vid",
    "crd",
    "kdsvd",
    "fsp",
    "rkd",
    "pkt",
    "abound",
    "factor",
    "nst",
    "reviewkd",
    "wcord",
)
# Shortest forms of RepDistiller's flags that ITRD's script does not know: -a, --feat_dim, --nce_..., --hint_layer.
# (--alpha and --mode are abbreviations of --alpha_it and --model_s there.)
_ONLY_REPDISTILLER = ("-a", "--f", "--nc", "--hi")
# Shortest forms of ITRD's flags that RepDistiller's script does not know.
_ONLY_ITRD = ("--la", "--alpha_", "--path_s")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def student_options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line of either train_student.py; ``distill`` is there for RepDistiller's alone."""
    return repdistiller_options(argv) if wants_repdistiller(argv) else itrd_options(argv)


def wants_repdistiller(argv: Sequence[str]) -> bool:
    """Tell whose train_student.py a command line was written for.

    With ``--distill``: ITRD's if its value is ``itrd``, else RepDistiller's. Without: RepDistiller's if there
    is a flag that ITRD's script does not know, not even as an abbreviation. A line that fits both, see
    :func:`fits_both`, is RepDistiller's if its ``--beta`` is 0 or missing: ITRD's method would have no weight.
    Anything else is ITRD's.
    """
    method = _distill_value(argv)
    if method is not None:
        return method != "itrd"
    return _knows(argv, _ONLY_REPDISTILLER) or (fits_both(argv) and not _beta(argv))


def fits_both(argv: Sequence[str]) -> bool:
    """Tell whether both train_student.py could be meant, and read the command line differently.

    ``--alpha`` is the weight of KD in RepDistiller's, whose default method is KD, and the exponent in ITRD's, where
    it is an abbreviation of ``--alpha_it``. Every other flag that tells the two apart settles it.
    """
    names = [word.partition("=")[0] for word in argv]
    told = _distill_value(argv) is not None or _knows(argv, (*_ONLY_REPDISTILLER, *_ONLY_ITRD))
    return not told and any(len(name) >= len("--a") and "--alpha".startswith(name) for name in names)


def _distill_value(argv: Sequence[str]) -> str | None:
    """Return what follows --distill, which may be abbreviated; None where it is not given."""
    for word, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if len(name) >= len("--di") and "--distill".startswith(name):
            return value if equals else following
    return None


def _knows(argv: Sequence[str], flags: tuple[str, ...]) -> bool:
    """Whether one of the flags is there; they are given by their shortest forms."""
    return any(word.startswith(flags) for word in argv)


def _beta(argv: Sequence[str]) -> float:
    """Return the value of -b or --beta, before anything else is parsed; 0 where it is missing."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-b", "--beta", nargs="?")
    given = parser.parse_known_args(argv)[0].beta
    try:
        return float(given or 0)
    except ValueError:
        return 1.0  # no number: the script's own parser says so


def itrd_options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the flags of ITRD's train_student.py. ``--distill itrd`` of its early instructions is ignored."""
    own = _own_parser(STUDENT_SCRIPT, distill=True)
    parser = _parser(STUDENT_SCRIPT, "ITRD's train_student.py", own)
    _add_common(parser)
    _add_student(parser, [*BENCHMARK_MODELS, *_ITRD_EXTRA_MODELS])
    parser.add_argument("--path_s", help="accepted, not used")
    parser.add_argument("--kd_T", type=float, default=4.0, help="accepted, not used")
    parser.add_argument("--lambda_corr", type=float, default=2.0, help="weight of the correlation term")
    parser.add_argument("--lambda_mutual", type=float, default=0.05, help="weight of the mutual term")
    parser.add_argument("--alpha_it", type=float, default=1.50, help="exponent of the correlation term")
    opt = _parse(parser, own, argv)
    _derive_student(parser, opt)
    name = (
        f"S:{opt.model_s}_T:{opt.model_t}_{opt.dataset}_r:{opt.gamma}_b:{opt.beta}_{opt.trial}"
        f"_l_corr:{opt.lambda_corr}_l_mutual:{opt.lambda_mutual}_alpha:{opt.alpha_it}"
    )
    return _name_folders(opt, name.replace(":", "-"))


def repdistiller_options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the flags of RepDistiller's train_student.py; ``--distill`` also takes our other methods."""
    own = _own_parser(STUDENT_SCRIPT)
    parser = _parser(STUDENT_SCRIPT, "RepDistiller's train_student.py", own)
    _add_common(parser)
    _add_student(parser, [*BENCHMARK_MODELS])
    later = [name for name in list_methods() if name not in (*_DISTILL, "none", "itrd")]
    parser.add_argument("--distill", default="kd", choices=[*_DISTILL, *later], help="method")
    parser.add_argument("-a", "--alpha", type=float, help="weight of KD; required")
    parser.add_argument("--kd_T", type=float, default=4, help="temperature of KD")
    parser.add_argument("--feat_dim", type=int, default=128, help="width of CRD's embeddings")
    parser.add_argument("--mode", default="exact", choices=["exact", "relax"], help="CRD's positives")
    parser.add_argument("--nce_k", type=int, default=16384, help="CRD's negatives per sample")
    parser.add_argument("--nce_t", type=float, default=0.07, help="CRD's temperature")
    parser.add_argument("--nce_m", type=float, default=0.5, help="momentum of CRD's memory")
    parser.add_argument("--hint_layer", type=int, default=2, choices=range(5), help="FitNet's layer")
    opt = _parse(parser, own, argv)
    _derive_student(parser, opt)
    name = (
        f"S:{opt.model_s}_T:{opt.model_t}_{opt.dataset}_{opt.distill}"
        f"_r:{opt.gamma}_a:{opt.alpha}_b:{opt.beta}_{opt.trial}"
    )
    return _name_folders(opt, name)


def teacher_options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the flags of RepDistiller's train_teacher.py; ``--model`` also takes ResNet50."""
    own = _own_parser(TEACHER_SCRIPT)
    parser = _parser(TEACHER_SCRIPT, "RepDistiller's train_teacher.py", own)
    _add_common(parser)
    parser.add_argument("--model", default="resnet110", choices=BENCHMARK_MODELS, help="network to train")
    parser.add_argument("-t", "--trial", type=int, default=0, help="number of this repetition")
    opt = _parse(parser, own, argv)
    _derive(parser, opt, opt.model)
    opt.model_path, opt.tb_path = "./save/models", "./save/tensorboard"
    return _name_folders(
        opt,
        f"{opt.model}_{opt.dataset}_lr_{opt.learning_rate}_decay_{opt.weight_decay}_trial_{opt.trial}",
    )


# --- parsers ---------------------------------------------------------------------------------------------


def _own_parser(prog: str, *, distill: bool = False) -> _Parser:
    parser = _Parser(prog=prog, usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False)
    own = parser.add_argument_group("flags of ours, to be written in full")
    own.add_argument("--seed", type=int, help="seed of the run (default: made from --trial)")
    own.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    own.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"], help="default: fp32")
    own.add_argument("--resume", action="store_true", help="continue the run of this command line")
    own.add_argument("--deterministic", action="store_true", help="equal bits from run to run, also on a GPU")
    own.add_argument("--on_nonfinite", default="stop", choices=["stop", "skip"], help="default: stop")
    own.add_argument("--data_root", default="./data", help="folder of the dataset (default: ./data)")
    if distill:
        own.add_argument("--distill", choices=["itrd"], help="accepted, not used")
    return parser


def _parser(prog: str, description: str, own: _Parser) -> _Parser:
    return _Parser(
        prog=prog,
        description=f"The flags of {description}.",
        epilog=own.format_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _parse(parser: _Parser, own_parser: _Parser, argv: Sequence[str]) -> argparse.Namespace:
    own, rest = own_parser.parse_known_args(argv)
    opt = parser.parse_args(rest)
    for name in OWN:
        setattr(opt, name, getattr(own, name))
    return opt


def _add_common(parser: _Parser) -> None:
    def add(flag: str, kind: type, default: object, text: str) -> None:
        parser.add_argument(flag, type=kind, default=default, help=f"{text} (default: {default})")

    add("--print_freq", int, 100, "accepted, not used")
    add("--tb_freq", int, 500, "accepted, not used")
    add("--save_freq", int, 40, "epochs between two checkpoints")
    add("--batch_size", int, 64, "images per step")
    add("--num_workers", int, 8, "accepted, not used: there are no loader processes")
    add("--epochs", int, 240, "passes over the training set")
    add("--learning_rate", float, 0.05, "initial rate; MobileNetV2 and Shuffle networks always take 0.01")
    add("--lr_decay_epochs", str, "150,180,210", "epochs after which the rate decays, with commas")
    add("--lr_decay_rate", float, 0.1, "factor of a decay")
    add("--weight_decay", float, 5e-4, "L2 penalty")
    add("--momentum", float, 0.9, "SGD momentum")
    parser.add_argument("--dataset", default="cifar100", choices=["cifar100"], help="dataset")


def _add_student(parser: _Parser, models: list[str]) -> None:
    parser.add_argument(
        "--init_epochs", type=int, default=30, help="epochs of a first stage, where there is one"
    )
    parser.add_argument("--model_s", default="resnet8", choices=models, help="student")
    parser.add_argument("--path_t", help="checkpoint of the teacher, in a folder named after it; required")
    parser.add_argument("--trial", default="1", help="name of this repetition")
    parser.add_argument("-r", "--gamma", type=float, default=1, help="weight of the cross-entropy")
    parser.add_argument("-b", "--beta", type=float, help="weight of the method; required")


# --- derived options -------------------------------------------------------------------------------------


def _derive(parser: _Parser, opt: argparse.Namespace, trained: str) -> None:
    if opt.save_freq < 1:
        parser.error(f"argument --save_freq: must be at least 1, got {opt.save_freq}")
    if trained in SLOW_LEARNERS:
        opt.learning_rate = 0.01
    try:
        opt.lr_decay_epochs = [int(epoch) for epoch in opt.lr_decay_epochs.split(",")]
    except ValueError:
        parser.error(f"argument --lr_decay_epochs: not numbers with commas: {opt.lr_decay_epochs!r}")
    if opt.seed is None:
        opt.seed = _seed(opt.trial)


def _derive_student(parser: _Parser, opt: argparse.Namespace) -> None:
    from itrd.engine.networks import architecture_from_path

    if opt.path_t is None:
        parser.error("--path_t is missing: the teacher's checkpoint")
    opt.model_t = architecture_from_path(opt.path_t)
    if opt.model_t is None:
        parser.error(
            f"argument --path_t: {opt.path_t} does not tell the teacher's network; "
            "its folder's name must start with it, as in wrn_40_2_vanilla/ckpt_epoch_240.pth"
        )
    _derive(parser, opt, opt.model_s)
    opt.model_path, opt.tb_path = "./save/student_model", "./save/student_tensorboards"


def _name_folders(opt: argparse.Namespace, name: str) -> argparse.Namespace:
    opt.model_name = name
    opt.tb_folder = os.path.join(opt.tb_path, name)
    opt.save_folder = os.path.join(opt.model_path, name)
    return opt


def _seed(trial: str | int) -> int:
    """Make a seed of --trial, so that trials differ; the originals seed nothing."""
    try:
        return int(trial)
    except ValueError:
        return zlib.crc32(str(trial).encode())
