"""The notation for losses and its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from itrd.errors import UnknownNameError, UserError
from itrd.methods import Batch, create_method, create_objective
from itrd.methods.expression import Term, parse
from itrd.methods.objective import Objective
from itrd.models.base import Outputs


def test_parse() -> None:
    assert parse("kd") == [Term("kd")]
    assert parse("0.1*ce + 0.9*kd(T=2)") == [Term("ce", 0.1), Term("kd", 0.9, {"T": 2})]
    assert parse("kd + 0.8 * itrd(alpha=1.5, lambda_corr=2)") == [
        Term("kd"),
        Term("itrd", 0.8, {"alpha": 1.5, "lambda_corr": 2}),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kd +",
        "kd - itrd",
        "kd*0.5",
        "kd(4)",
        "kd(**x)",
        "kd(T=f())",
        "__import__('os')",
        "kd.x",
        "kd; itrd",
        "1",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not understood"):
        parse(text)


@pytest.mark.parametrize("text", ["kd - 0.5*itrd", "-1*kd", "-kd", "itrd + -0.5*kd", "kd - itrd + rkd"])
def test_negative_weights_are_named(text: str) -> None:
    with pytest.raises(UserError, match="is not understood: weights are not negative"):
        create_objective(text)


@pytest.mark.parametrize("text", ["kd(T={[]:1})", "kd(T={{}})", f"1{'0' * 400}*kd", "kd(T=1+'a')"])
def test_what_python_cannot_evaluate_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"is not understood|not finite"):
        create_objective(text)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1, 10**400])
def test_weights_are_finite_and_not_negative(weight: float) -> None:
    for make in (
        lambda: create_objective("kd", weight),
        lambda: create_objective(create_method("kd"), weight),
        lambda: create_objective(create_objective("kd"), weight),
        lambda: Objective([(weight, create_method("kd"))]),
    ):
        with pytest.raises(UserError, match="must be a finite number that is not negative"):
            make()


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(UnknownNameError, match="unknown method 'itdr'; did you mean 'itrd'"):
        create_objective("kd + itdr")
    with pytest.raises(UserError, match="names a term twice"):
        create_objective("kd + kd")
    with pytest.raises(UserError, match="two weights"):
        create_objective("0.5*ce + kd", ce_weight=1.0)
    with pytest.raises(UserError, match="no setting 'tau'"):
        create_objective("kd(tau=3)")
    for text, message in (
        ("itrd(alpha='x')", "alpha must be a finite number, got 'x'"),
        ("crd(K=1.5)", "K must be a whole number, got 1.5"),
        ("kd(T=1e999)", "T must be a finite number"),
        ("1e999*kd", "weight that is not finite"),
        ("logit_std(base=3)", "base must be a string"),
    ):
        with pytest.raises(UserError, match=message):
            create_objective(text)


def test_maps_before_and_after_the_activation_do_not_mix() -> None:
    """A method computes the same alone and in a sum, or the sum is refused."""
    assert create_objective("itrd").preact("reference") == (True, True)
    assert create_objective("itrd").preact("clean") == (False, False)
    assert create_objective("abound").preact("reference") == (True, True)
    assert create_objective("abound").preact("clean") == (False, False)
    assert create_objective("abound").preact("clean", first_stage=True) == (True, True)
    assert create_objective("attention + itrd").preact("reference") == (False, False)
    assert create_objective("reviewkd + itrd").preact("reference") == (False, True)
    with pytest.raises(UserError, match=r"reviewkd reads the teacher's maps before .* and hint after"):
        create_objective("hint + reviewkd").preact("reference")


def test_an_objective_is_not_changed_by_making_another_from_it() -> None:
    first = create_objective("kd")
    second = create_objective(first, ce_weight=0.5)
    assert (first.ce_weight, second.ce_weight) == (0.1, 0.5)
    assert "0.123456789*kd" in create_objective("0.123456789*kd").describe()


@pytest.mark.parametrize(
    ("text", "described"),
    [
        ("none", "1*ce"),
        ("kd", "0.1*ce + 0.9*kd(T=4.0)"),
        ("itrd", "1*ce + 1*itrd(alpha=1.01, lambda_corr=2.0, lambda_mutual=1.0)"),
        ("kd + itrd", "1*ce + 1*kd(T=4.0) + 1*itrd(alpha=1.01, lambda_corr=2.0, lambda_mutual=1.0)"),
        ("0.5*kd", "0.1*ce + 0.5*kd(T=4.0)"),
        ("2*ce + 0.5*kd", "2*ce + 0.5*kd(T=4.0)"),
    ],
)
def test_weights(text: str, described: str) -> None:
    objective = create_objective(text)
    assert objective.describe() == described
    assert create_objective(described).describe() == described


def test_the_loss_is_the_weighted_sum_of_the_terms_it_shows() -> None:
    torch.manual_seed(0)
    z_s, z_t = torch.randn(6, 5), torch.randn(6, 5)
    objective = create_objective("0.3*ce + 0.7*kd(T=3)")
    total, terms = objective(Outputs(z_s), Outputs(z_t), Batch(torch.arange(6) % 5, torch.arange(6)))
    assert set(terms) == {"ce", "kd"}
    assert total.item() == pytest.approx(0.3 * terms["ce"].item() + 0.7 * terms["kd"].item(), rel=1e-6)


@pytest.mark.parametrize("weight", ["0.5", None, True, torch.tensor([0.5, 1.0])])
def test_weights_that_are_no_numbers_are_refused(weight: object) -> None:
    with pytest.raises(UserError, match="the weight of the cross-entropy must be a number, not"):
        Objective([(1, create_method("kd"))], ce_weight=weight)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the weight of kd must be a number, not"):
        Objective([(weight, create_method("kd"))])  # type: ignore[list-item]
    if isinstance(weight, str):
        with pytest.raises(UserError, match="the weight of the cross-entropy must be a number"):
            create_objective(create_method("kd"), weight)  # type: ignore[arg-type]


def test_weights_of_numpy_are_written_as_numbers() -> None:
    described = Objective([(np.float64(0.5), create_method("kd"))], np.float64(0.25)).describe()
    assert described == "0.25*ce + 0.5*kd(T=4.0)"


def test_what_a_method_reads_must_be_there() -> None:
    method = create_method("itrd")
    with pytest.raises(UserError, match="'itrd' reads embedding, and the student does not provide"):
        method(
            Outputs(torch.zeros(2, 3)),
            Outputs(torch.zeros(2, 3)),
            Batch(torch.zeros(2).long(), torch.arange(2)),
        )
