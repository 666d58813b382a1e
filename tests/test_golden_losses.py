"""Every reference loss, its value and all its gradients, in float64 and float32."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from adapters import Case, adapter_for
from golden_recipe import GOLDEN, golden_files, l2, load_json

DTYPES = {"float64": torch.float64, "float32": torch.float32}


@cache
def arrays(method: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "losses" / f"{method}.npz") as file:
        return {key: file[key] for key in file.files}


@cache
def content(method: str) -> dict[str, Any]:
    return load_json(GOLDEN / "losses" / f"{method}.json")


def cases() -> list[tuple[str, str]]:
    found = []
    for path in golden_files("losses"):
        assert set(content(path.stem)) == {"method", "cases"}
        assert content(path.stem)["method"] == path.stem
        found += [(path.stem, case) for case in content(path.stem)["cases"]]
    return found


def make_case(method: str, name: str, precision: str) -> Case:
    info = content(method)["cases"][name]
    source = info.get("inputs_and_params_from", name)
    dtype = DTYPES[precision]

    def group(case: str, kind: str) -> dict[str, torch.Tensor]:
        prefix = f"{case}/{kind}/"
        picked = {k[len(prefix) :]: v for k, v in arrays(method).items() if k.startswith(prefix)}
        tensors = {k: torch.from_numpy(np.array(v)) for k, v in picked.items()}
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}

    outputs = group(name, "out")
    if precision == "float64":
        outputs |= group(name, "out64")
    case = Case(name, info, group(source, "in"), group(source, "param"), outputs, dtype)
    for key in info["grad_wrt"]:
        case.inputs[key].requires_grad_()
    return case


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("method", "name"), cases())
def test_golden_loss(method: str, name: str, precision: str) -> None:
    adapter = adapter_for(method)
    if adapter is None:
        pytest.fail(f"there is no method {method!r} yet")
    case = make_case(method, name, precision)
    computed = adapter.compute(case)
    computed.loss.backward()
    info = case.info

    value = computed.loss.item()
    if precision == "float64":
        assert value == pytest.approx(
            info["loss_float64"], abs=1e-9 * max(abs(info["loss_float64"]), 1e-3), rel=0
        )
    else:
        allowed = 10 * info["loss_abs_err_float32"] + 2e-6 * abs(info["loss"]) + 1e-7
        assert value == pytest.approx(info["loss"], abs=allowed, rel=0)

    errors = info["grad_l2_and_float32_error"]
    largest = max(norm for norm, _ in errors.values())
    prefix = f"{name}/grad64_" if precision == "float64" else f"{name}/grad_"
    expected = {k[len(prefix) :]: v for k, v in arrays(method).items() if k.startswith(prefix)}
    assert {f"grad_{key}" for key in expected} | set(info["unused"]) >= set(errors)
    for key, gradient in expected.items():
        leaf = computed.leaves[key]
        ours = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        difference = l2(ours.double() - torch.from_numpy(np.array(gradient)).double())
        stored = errors.get(f"grad_{key}", (0.0, 0.0))[1]
        allowed = 1e-9 * largest + 1e-12 if precision == "float64" else 10 * stored + 1e-5 * largest + 1e-7
        assert difference <= allowed, f"gradient of {key}: off by {difference:g}, allowed {allowed:g}"

    for key, (ours, theirs) in computed.others.items():
        stored_in_float64 = f"{name}/out64/{key}" in arrays(method)
        scale = 1e-4 if precision == "float32" else 1e-9 if stored_in_float64 else 1e-6
        difference = l2(ours.double() - theirs.double())
        assert difference <= scale * max(1.0, l2(theirs)), f"{key}: off by {difference:g}"
