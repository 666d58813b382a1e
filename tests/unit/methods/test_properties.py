"""What every method promises, on any finite input: finite value and gradient, and nothing for the teacher.

Generic over METHODS: a new method is tested by being listed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from itrd.errors import UserError
from itrd.methods import METHODS, Method, method_class
from itrd.models.base import Outputs
from method_examples import example_batch, random_outputs, ready

DISTILLING = [name for name in METHODS if name != "none"]

# Settings for a training set of 40 samples.
SETTINGS = {"crd": {"K": 8, "feat_dim": 6}, "wcord": {"K": 8, "feat_dim": 6}}

# Losses that sum squares over whole maps leave float32's range (3e38) before the others do.
LARGEST = {"ofd": 1e16, "abound": 1e16}

# Batch norm over a single number has no variance.
SMALLEST_BATCH = {"reviewkd": 2}


INPUTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "normal": lambda x, largest: x,
    "rectified": lambda x, largest: x.clamp(min=0),
    "zeros": lambda x, largest: x * 0,
    "constant": lambda x, largest: x * 0 + 0.1,
    "duplicates": lambda x, largest: x[:1].expand_as(x).clone(),
    "a zero sample": lambda x, largest: torch.cat([x[:1] * 0, x[1:]]),
    "opposites": lambda x, largest: torch.cat([x[:1], -x[:1], x[2:]])[: len(x)],
    "tiny": lambda x, largest: x * 1e-20,
    "large": lambda x, largest: x * (largest / x.abs().max()),
    "one large sample": lambda x, largest: torch.cat([x[:1] * (largest / x.abs().max()), x[1:]]),
}


def leaves(outputs: Outputs) -> list[Tensor]:
    assert outputs.embedding is not None
    assert outputs.stem is not None
    return [outputs.logits, outputs.embedding, *outputs.maps, outputs.stem]


def stages(method: Method) -> list[bool]:
    """Values of ``first_stage`` that the method can be called with."""
    return [False] if method.first_stage() is None else [False, True]


def total(method: Method, terms: dict[str, Tensor]) -> Tensor | None:
    """The loss, or None for methods that have no term in this stage."""
    return method.loss(terms) if terms else None


def check_finite(method: Method, terms: dict[str, Tensor], student: Outputs, teacher: Outputs) -> None:
    loss = total(method, terms)
    if loss is None:
        return
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.isfinite(), f"loss {loss.item()}"
    if loss.requires_grad:
        loss.backward()
    assert all(t.grad is None for t in leaves(teacher))
    for what, tensor in (*zip(Outputs._fields, student, strict=True), *method.named_parameters()):
        for t in tensor if isinstance(tensor, tuple) else (tensor,):
            assert t.grad is None or t.grad.isfinite().all(), f"gradient of {what}"


@pytest.mark.parametrize("name", DISTILLING)
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    student_kind=st.sampled_from(list(INPUTS)),
    teacher_kind=st.sampled_from(list(INPUTS)),
    batch=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 10**6),
)
def test_finite_and_nothing_for_the_teacher(
    name: str, student_kind: str, teacher_kind: str, batch: int, dtype: torch.dtype, seed: int
) -> None:
    largest = LARGEST.get(name, 1e18)
    batch = max(batch, SMALLEST_BATCH.get(name, 1))

    def make(kind: str, seed: int) -> Outputs:
        return random_outputs(seed, batch, dtype=dtype, transform=lambda x: INPUTS[kind](x, largest))

    student, teacher = make(student_kind, seed), make(teacher_kind, seed + 1)
    method = ready(
        name, *(random_outputs(s, batch, dtype=torch.float32) for s in (1, 2)), **SETTINGS.get(name, {})
    )
    method.start_epoch(1)
    for first_stage in stages(method):
        for tensor in (*leaves(student), *leaves(teacher)):
            tensor.requires_grad_()
            tensor.grad = None
        reduced = (
            torch.autocast("cpu", torch.bfloat16) if dtype == torch.bfloat16 else contextlib.nullcontext()
        )
        with reduced:
            terms = method(student, teacher, example_batch(batch), first_stage=first_stage)
        check_finite(method, terms, student, teacher)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", DISTILLING)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    student_kind=st.sampled_from(list(INPUTS)),
    teacher_kind=st.sampled_from(list(INPUTS)),
    batch=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_losses_are_finite_in_half_precision(
    name: str, autocast: bool, student_kind: str, teacher_kind: str, batch: int, seed: int
) -> None:
    """Up to the largest half, 65,504; where connectors run in half precision, up to what they do not push past it.

    The loss only: gradients of networks in half precision take the scaling that such training has.
    """
    largest = 1000.0 if autocast else 65_504.0
    batch = max(batch, SMALLEST_BATCH.get(name, 1))

    def make(kind: str, seed: int) -> Outputs:
        return random_outputs(
            seed,
            batch,
            dtype=torch.float16,
            transform=lambda x: INPUTS[kind](x, largest).clamp(-largest, largest),
        )

    shapes = (random_outputs(s, batch, dtype=torch.float32) for s in (1, 2))
    method = ready(name, *shapes, **SETTINGS.get(name, {}))
    method.start_epoch(1)
    student, teacher = make(student_kind, seed), make(teacher_kind, seed + 1)
    for first_stage in stages(method):
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            loss = total(method, method(student, teacher, example_batch(batch), first_stage=first_stage))
        if loss is not None:
            assert loss.dtype == torch.float32
            assert loss.isfinite(), f"loss {loss.item()}"


@pytest.mark.parametrize("name", DISTILLING)
def test_finite_where_wide_features_are_large(name: str) -> None:
    """Sums over many large entries; the squares of single ones still fit."""
    largest, wide = LARGEST.get(name, 1e18), ((256, 4, 4), (256, 4, 4), (512, 2, 2))

    def make(seed: int) -> Outputs:
        return random_outputs(seed, 3, wide, 2048, torch.float32, lambda x: x.sign() * largest)

    student, teacher = make(1), make(2)
    method = ready(name, student, teacher, **SETTINGS.get(name, {}))
    for tensor in (*leaves(student), *leaves(teacher)):
        tensor.requires_grad_()
    check_finite(method, method(student, teacher, example_batch(3)), student, teacher)


@pytest.mark.parametrize("name", DISTILLING)
def test_the_student_learns_what_the_method_reads(name: str) -> None:
    """A gradient for what ``reads`` names and for nothing else."""
    student, teacher = random_outputs(1), random_outputs(2)
    method = ready(name, student, teacher, **SETTINGS.get(name, {}))
    for tensor in leaves(student):
        tensor.requires_grad_()
    for first_stage in stages(method):
        loss = total(method, method(student, teacher, example_batch(), first_stage=first_stage))
        if loss is not None and loss.requires_grad:
            loss.backward()
    touched = {
        what
        for what, value in zip(Outputs._fields, student, strict=True)
        if any(t.grad is not None for t in (value if isinstance(value, tuple) else (value,)))
    }
    assert touched == method.reads


@pytest.mark.parametrize("name", DISTILLING)
def test_no_step_waits_for_the_device(name: str) -> None:
    """Fake tensors have shapes and no numbers: whatever needs a number on the host raises."""
    student, teacher = (random_outputs(s, dtype=torch.float32) for s in (1, 2))
    method = ready(name, student, teacher, **SETTINGS.get(name, {}))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [Outputs(*(_fake(mode, value) for value in o)) for o in (student, teacher)]
        batch = example_batch()
        for first_stage in stages(method):
            loss = total(method, method(*fake, batch, first_stage=first_stage))
            if loss is not None and loss.requires_grad:
                loss.backward()


def _fake(mode: FakeTensorMode, value: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    if isinstance(value, tuple):
        return tuple(mode.from_tensor(v).requires_grad_() for v in value)
    return mode.from_tensor(value).requires_grad_()


@pytest.mark.parametrize(
    ("name", "setting"),
    [(n, s) for n in METHODS for s in method_class(n).settings() if "epochs" in s or "warmup" in s],
)
def test_a_number_of_epochs_is_not_negative(name: str, setting: str) -> None:
    with pytest.raises(UserError, match=f"{name}: {setting} must be 0 or a number of epochs, got -1"):
        method_class(name)(**{setting: -1})


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_describes_itself(name: str) -> None:
    cls = method_class(name)
    assert cls.name == name
    assert cls.title
    assert cls.paper
    assert "L = " in cls.formula
    assert cls.reads <= set(Outputs._fields)
    assert cls.reads or name == "none"
    assert cls.weight >= 0
    assert cls.ce_weight >= 0
    assert cls.__doc__
