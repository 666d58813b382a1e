"""``itrd recipes`` and ``itrd methods`` as a user meets them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from itrd.cli import main
from itrd.methods import METHODS, create_objective, method_class
from itrd.recipes import IMAGENET_LOSSES, PAIRS, TABLE_METHODS, all_recipes


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("itrd: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def losses(text: str) -> list[str]:
    return [line.removeprefix("  loss").strip() for line in text.splitlines() if line.startswith("  loss ")]


def test_recipes_of_one_cell(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(
        capsys, "recipes", "--method", "itrd", "--teacher", "wrn_40_2", "--student", "wrn_16_2"
    ).splitlines()
    assert out[4:] == [
        "ITRD (--method itrd)",
        "  loss      1.0*ce + 1.0*itrd(alpha=1.01, lambda_corr=2.0, lambda_mutual=1.0)",
        "  variant   published",
        "  settings  command lines in the history of ITRD's published repository",
        "  note      the published code's defaults differ (variant code-default); which",
        "            produced the table is not known",
        "  accuracy  roymiles/ITRD README (BMVC 2022)",
        "    wrn_40_2 -> wrn_16_2     76.12  last",
        "",
        "ITRD (--method itrd)",
        "  loss      1.0*ce + 1.0*itrd(alpha=1.5, lambda_corr=2.0, lambda_mutual=0.05)",
        "  variant   code-default",
        "  settings  defaults of ITRD's published code",
        "  accuracy  roymiles/ITRD README (BMVC 2022)",
        "    wrn_40_2 -> wrn_16_2     76.12  last",
    ]


def test_all_recipes_are_listed_and_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "recipes")
    assert max(map(len, out.splitlines())) <= 80
    on_imagenet = {found.loss for found in IMAGENET_LOSSES.values()}
    assert set(losses(out)) == {found.loss for found in all_recipes()} | on_imagenet
    for loss in losses(out):
        create_objective(loss)
    cells = [line for line in out.splitlines() if line.startswith("    ") and " -> " in line]
    assert len(cells) == len(list(all_recipes()))
    assert sum("none published" in line for line in cells) == 2  # ReviewKD
    assert all(any(str(pair) in line for line in cells) for pair in PAIRS)
    assert all(f"(--method {name})" in out for name in TABLE_METHODS)


def test_recipes_take_other_names_of_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert losses(shown(capsys, "recipes", "--method", "fitnet")) == ["1.0*ce + 100.0*hint"]


def test_choices_of_recipes_that_do_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown method 'itdr'; did you mean 'itrd'?" in refused(capsys, "recipes", "--method", "itdr")
    line = refused(capsys, "recipes", "--method", "dkd")
    assert "no recipe for dkd" in line
    assert "wcord" in line
    line = refused(capsys, "recipes", "--teacher", "wrn40_2")
    assert "unknown teacher 'wrn40_2'; did you mean 'wrn_40_2'?" in line
    line = refused(capsys, "recipes", "--student", "resnet56")
    assert "unknown student 'resnet56'" in line
    line = refused(capsys, "recipes", "--method", "fsp", "--student", "vgg8", "--teacher", "ResNet50")
    assert "no recipe for fsp and ResNet50 and vgg8" in line


def test_methods_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "methods")
    assert max(map(len, out.splitlines())) <= 80
    assert [line.split()[0] for line in out.splitlines()[3:] if line[0] != " "] == list(METHODS)
    assert "1*ce + 100*hint(hint_layer=2); reads maps; 4,288 parameters; 73.58" in out


@pytest.mark.parametrize("name", list(METHODS))
def test_everything_about_one_method(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "methods", name)
    cls = method_class(name)
    for key, default in cls.settings().items():
        assert f"{key}={default!r}: " in out
    words = " ".join(out.split())
    assert cls.paper in words
    assert " ".join(cls.formula.split()) in words
    assert "Args:" not in out
    assert "``" not in out


def test_everything_about_itrd(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "methods", "itrd")
    assert "    c_x = (1/B) sum_b e'_bx f'_bx,        L_corr = log2 sum_x (|c_x - 1|^2)^alpha.\n" in out
    assert "  * the mutual term leaves out both logarithms" in out
    assert "16,512 (trainable parameters, for wrn_40_2 -> wrn_16_2)" in out
    assert "resnet32x4 -> resnet8x4   76.69 (last epoch)" in out


def test_other_names_and_unknown_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "methods", "ft").startswith("factor: FT\n")
    assert "unknown method 'hnit'; did you mean 'hint'?" in refused(capsys, "methods", "hnit")


def test_recipes_do_not_load_torch() -> None:
    code = "import sys; from itrd.recipes.text import listing; listing(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
