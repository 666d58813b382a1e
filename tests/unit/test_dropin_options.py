"""Command lines of the original scripts: what is parsed, whose script is meant, which loss results."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from itrd.dropin import student, teacher
from itrd.dropin.options import (
    fits_both,
    itrd_options,
    repdistiller_options,
    student_options,
    teacher_options,
    wants_repdistiller,
)
from itrd.errors import UserError

ROOT = Path(__file__).parents[2]
PATH_T = ["--path_t", "save/models/wrn_40_2_vanilla/ckpt_epoch_240.pth"]


@pytest.mark.parametrize(
    ("line", "repdistiller"),
    [
        ("-b 1.0 -r 1.0 --lambda_corr 2.0 --alpha_it 1.01", False),
        ("--distill itrd -b 1", False),
        ("--distill=itrd -b 1", False),
        ("--distill kd -b 0 -a 0.9", True),
        ("--dist=kd", True),
        ("--distill", True),
        ("--d cifar100", False),
        ("-b 1", False),
        ("-b 1 --alpha 1.01", False),  # an abbreviation of --alpha_it
        ("--gamma 0.1 --alpha 0.9 --beta 0", True),  # nothing of ITRD's would be trained
        ("-r 0.1 --alpha=0.9 -b0", True),
        ("-r 0.1 --al 0.9 --be=0.0", True),
        ("-r 0.1 --alpha 0.9", True),
        ("-b 0 --beta 1 --alpha 0.9", False),
        ("-b 0 --alpha_it 0.9", False),
        ("-b 0 --alpha 0.9 --lambda_corr 1", False),
        ("-b 0 --alpha 0.9 --distill itrd", False),
        ("-b x --alpha 0.9", False),
        ("-b 1 --mode wrn_16_2", False),  # an abbreviation of --model_s
        ("-b 1 -a 0", True),
        ("-b 1 -a0", True),
        ("-b 1 --nce_k 4096", True),
        ("-b 1 --feat 64", True),
        ("-b 1 --hint_layer=1", True),
        ("--help", False),
        ("", False),
    ],
)
def test_whose_script_is_meant(line: str, repdistiller: bool) -> None:
    assert wants_repdistiller(line.split()) is repdistiller


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--gamma 0.1 --alpha 0.9 --beta 0", ["RepDistiller's", "0.1*ce + 0.9*kd(T=4)", "--alpha_it"]),
        ("-b 1 --alpha 1.01", ["ITRD's", "1*ce + 1.0*itrd(alpha=1.01", "--distill kd"]),
    ],
)
def test_a_line_that_fits_both_scripts_is_told(line: str, words: list[str]) -> None:
    assert fits_both(line.split())
    said = student.reading(student_options([*PATH_T, *line.split()]))
    assert "\n" not in said
    assert all(word in said for word in words)


@pytest.mark.parametrize(
    "line", ["-b 1", "-b 1 -a 0.9", "--distill kd --alpha 0.9 -b 0", "--alpha_it 1 -b 0"]
)
def test_other_lines_fit_one_script(line: str) -> None:
    assert not fits_both(line.split())


def test_abbreviations_work_as_in_the_originals() -> None:
    opt = itrd_options(
        [*PATH_T, "--alpha", "1.2", "--pr", "7", "--s", "5", "--d", "cifar100", "--mode", "vgg8"]
    )
    assert (opt.alpha_it, opt.print_freq, opt.save_freq, opt.model_s) == (1.2, 7, 5, "vgg8")
    with pytest.raises(SystemExit):  # flags of ours must be written in full
        itrd_options([*PATH_T, "--see", "1"])


def test_our_flags() -> None:
    line = "--seed 9 --device cpu --precision bf16 --resume --data_root elsewhere"
    opt = itrd_options([*PATH_T, *line.split(), "--distill", "itrd"])
    assert (opt.seed, opt.device, opt.precision) == (9, "cpu", "bf16")
    assert (opt.resume, opt.data_root) == (True, "elsewhere")
    assert not hasattr(opt, "distill")


def test_trials_have_different_seeds() -> None:
    seeds = [itrd_options([*PATH_T, "--trial", trial]).seed for trial in ("1", "2", "a", "b")]
    assert seeds[:2] == [1, 2]
    assert len(set(seeds)) == 4
    assert teacher_options(["-t", "3"]).seed == 3


def test_help_names_our_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        student_options(["--help"])
    assert stopped.value.code == 0
    assert "--data_root" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "loss"),
    [
        ("-b 1", "1*ce + 1.0*itrd(alpha=1.5, lambda_corr=2.0, lambda_mutual=0.05)"),
        ("-b 0", "1*ce + 0.0*itrd(alpha=1.5, lambda_corr=2.0, lambda_mutual=0.05)"),
        ("--distill kd -r 0.1 -a 0.9 -b 0", "0.1*ce + 0.9*kd(T=4)"),
        ("--distill kd -r 0.1 -a 0.9 -b 5 --kd_T 2", "0.1*ce + 0.9*kd(T=2.0)"),
        ("--distill kd -a 0 -b 0", "1*ce + 0.0*kd(T=4)"),
        ("--gamma 0.1 --alpha 0.9 --beta 0", "0.1*ce + 0.9*kd(T=4)"),
        ("--distill attention -a 0 -b 1000", "1*ce + 1000.0*attention()"),
        ("--distill attention -a 1 -b 0", "1*ce + 1.0*kd(T=4)"),
        ("--distill hint -a 0 -b 100 --hint_layer 3", "1*ce + 100.0*hint(hint_layer=3)"),
        ("--distill fsp -a 0 -b 0 --init_epochs 2", "1*ce + 0.0*fsp(init_epochs=2)"),
        (
            "--distill crd -a 1 -b 0.8 --mode relax --nce_k 99",
            "1*ce + 1.0*kd(T=4) + 0.8*crd(feat_dim=128, K=99, T=0.07, momentum=0.5, mode='relax')",
        ),
    ],
)
def test_loss(line: str, loss: str) -> None:
    assert student.objective(student_options([*PATH_T, *line.split()])) == loss


@pytest.mark.parametrize(
    "name",
    [
        "hint",
        "attention",
        "similarity",
        "correlation",
        "vid",
        "rkd",
        "pkt",
        "abound",
        "factor",
        "fsp",
        "nst",
        "kdsvd",
        "crd",
        "wcord",
    ],
)
def test_every_method_parses(name: str) -> None:
    assert repdistiller_options([*PATH_T, "--distill", name]).distill == name


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "-b must be given"),
        ("--distill kd -b 0", "-a must be given"),
        ("--distill crd", "-a and -b must be given"),
        ("-b nan", "--beta must be"),
        ("-r -1 -b 1", "--gamma must be"),
    ],
)
def test_weights_are_checked(line: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        student.objective(student_options([*PATH_T, *line.split()]))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("-b 1", "--path_t is missing"),
        ("-b 1 --path_t nowhere.pth", "does not tell the teacher's network"),
        ("-b 1 --path_t wrn_40_2_vanilla/nowhere.pth", "fetch_pretrained_teachers.sh"),
        ("-b 1 --path_t vgg8/x.pth --lr_decay_epochs 1,x", "--lr_decay_epochs"),
        ("-b 1 --path_t vgg8/x.pth --save_freq 0", "--save_freq"),
        ("-b 1 --path_t vgg8/x.pth --model_s nope", "nope"),
        ("-b 1 --path_t vgg8/x.pth --nonsense", "--nonsense"),
        ("--path_t vgg8/x.pth", "-b must be given"),
    ],
)
def test_errors_are_one_line(
    line: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = student.main(line.split())
    except SystemExit as stopped:
        status = stopped.code
    said = capsys.readouterr()
    assert status == 2
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("train_student.py: error: ")
    assert complaint in said.err
    assert list(tmp_path.iterdir()) == []


def test_dataset_that_cannot_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ITRD_DATA_URL", "http://127.0.0.1:1")
    assert teacher.main(["--model", "resnet8"]) == 2
    said = capfd.readouterr().err.splitlines()
    assert said[-1].startswith("train_teacher.py: error: cannot download")
    assert "itrd datasets --download cifar100" in said[-1]


def test_published_command_lines_parse() -> None:
    text = (ROOT / "scripts" / "run_cifar_distill.sh").read_text()
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("python")]
    assert all(words[:2] == ["python", "train_student.py"] for words in lines)
    parsed = [student_options(words[2:]) for words in lines]
    assert all(student.objective(opt) for opt in parsed)
    itrd = [opt for opt in parsed if not hasattr(opt, "distill")]
    assert len({(opt.model_t, opt.model_s) for opt in itrd}) == 13
    assert len({opt.save_folder for opt in parsed}) == len(parsed)
