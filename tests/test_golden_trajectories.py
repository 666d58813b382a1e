"""Six steps of the reference training loop, with our networks, task and optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adapters import BaseAdapter, adapter_for
from golden_recipe import fill, golden_files, images, l2, labels, load_json, recipe_tensor
from itrd.engine.task import DistillTask
from itrd.methods import Batch, Method
from itrd.models import create_model

DTYPES = {"float64": torch.float64, "float32": torch.float32}
FILES = golden_files("trajectories")


class Checker:
    """Compares values with the tolerances that the reference folder states."""

    def __init__(self, run: dict[str, Any], precision: str) -> None:
        self.precision = precision
        self.float32_error = run["total_abs_err_float32_per_step"]
        self.sensitivity = run["float64_sensitivity_to_relative_input_noise_1e-13"]

    def step(self, t: int, what: str, ours: float, expected: float) -> None:
        if self.precision == "float64":
            allowed = 1e-9 * max(1, abs(expected)) + 10 * self.sensitivity["total_abs_diff_per_step"][t]
        elif t <= 1:
            allowed = 1e-5 * max(1, abs(expected)) + 20 * max(self.float32_error[: t + 1])
        else:
            return  # float32 runs drift apart: informative only
        assert ours == pytest.approx(expected, abs=allowed, rel=0), f"step {t}: {what}"

    def final(self, what: str, ours: float, expected: float, sensitivity: float) -> None:
        if self.precision == "float64":
            allowed = 1e-8 * max(1, abs(expected)) + 10 * sensitivity
            assert ours == pytest.approx(expected, abs=allowed, rel=0), what


def calibrated(net: nn.Module, expected: dict[str, Any], precision: str) -> nn.Module:
    """Give the teacher plausible batch-norm statistics: one train-mode pass with momentum 1."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    where = expected["images"]
    dtype = next(net.parameters()).dtype
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(images(where["seed"], where["n"], where["step"]).to(dtype))
    for norm in norms:
        norm.momentum = 0.1
    for stored, norm in (("bn_first", norms[0]), ("bn_last", norms[-1])):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        ours = [l2(norm.running_mean), l2(norm.running_var)]
        assert ours == pytest.approx(expected[stored], rel=1e-10 if precision == "float64" else 1e-5)
    return net.eval()


def fill_extras(run: dict[str, Any], adapter: BaseAdapter, method: Method) -> None:
    state = method.state_dict()
    ours = {adapter.trajectory_key(key): key for key in state}
    for module, extra in run.get("extra_modules", {}).items():
        for key, shape, index in extra["keys"]:
            assert (module, key) in ours, f"our {method.name} has no counterpart of {module}/{key}"
            target = state[ours[module, key]]
            assert list(target.shape) == shape
            if target.is_floating_point() and not key.endswith("log_scale"):
                target.copy_(torch.from_numpy(recipe_tensor(key, shape, extra["seed"], index, 1.0)))


def num_classes(run: dict[str, Any]) -> int:
    return run.get("num_classes", 100)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_trajectory(path: Path, precision: str) -> None:
    run = load_json(path)
    adapter = adapter_for(run["method"])
    if adapter is None:
        pytest.fail(f"there is no method {run['method']!r} yet")
    dtype = DTYPES[precision]
    seeds, gains = run["seeds"], run["bn_gain"]
    student = fill(create_model(run["student"], num_classes(run)), seeds["student"], gains["student"]).to(
        dtype
    )
    teacher = None
    if run.get("teacher"):
        filled = fill(create_model(run["teacher"], num_classes(run)), seeds["teacher"], gains["teacher"])
        teacher = calibrated(filled.to(dtype), run[precision]["teacher_calibration"], precision)
    objective, method = adapter.objective(run)
    task = DistillTask(student, teacher, objective, track="reference")
    task.setup(images(seeds["data"], 2, 0).to(dtype), num_classes(run), adapter.train_labels(run))
    task.to(dtype)
    fill_extras(run, adapter, method)
    adapter.begin(run, method, dtype)
    if run.get("teacher_bn_mode") == "train":
        assert teacher is not None
        teacher.train()

    first_stage = run["stage"] == "init"
    if first_stage:
        stage = method.first_stage()
        assert stage is not None
        parameters = task.first_stage_mode(stage)
    else:
        task.train()
        parameters = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, **run["optimizer"])
    check = Checker(run, precision)
    for t in range(run["steps"]):
        n = run["batch_size"]
        x = images(seeds["data"], n, t).to(dtype)
        batch = Batch(labels(seeds["data"], n, t, num_classes(run)), adapter.indices(run, method, t))
        expected = run[precision]["per_step"][t]
        if "epoch" in expected:
            objective.start_epoch(expected["epoch"] + 1)
        seen = task.observe(x)
        output = task.first_stage_loss(method, *seen, batch) if first_stage else task.loss(*seen, batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        ours = adapter.step_values(output.terms)
        assert "total" in ours
        for what, value in expected.items():
            if what in ("epoch", "warmup_factor") or what.endswith("_terms"):
                continue
            check.step(t, what, ours[what], value)
        for what in (key for key in expected if key.endswith("_terms")):
            whole = ours.get(what.removesuffix("_terms"), ours["total"])
            check.step(t, what, whole, sum(expected[what]))

    after = run[precision]
    state = student.state_dict()
    noise = check.sensitivity
    for key, stored in after["params_after"].items():
        check.final(key, l2(state[key]), stored["l2"], noise["params_after_first_max_abs_diff"])
        first = state[key].flatten()[: len(stored["first"])].tolist()
        for a, b in zip(first, stored["first"], strict=True):
            check.final(key, a, b, noise["params_after_first_max_abs_diff"])
    total = sum(l2(p.detach()) ** 2 for p in student.parameters()) ** 0.5
    check.final(
        "all parameters",
        total,
        after["student_param_l2_total_after"],
        noise["params_after_first_max_abs_diff"],
    )
    for name, stored in after["bn_after"].items():
        norm = student.get_submodule(name)
        assert int(norm.num_batches_tracked) == stored["num_batches_tracked"], name
        check.final(
            name, l2(norm.running_mean), stored["running_mean_l2"], noise["eval_logits_after_max_abs_diff"]
        )
        check.final(
            name, l2(norm.running_var), stored["running_var_l2"], noise["eval_logits_after_max_abs_diff"]
        )
    extra = {"/".join(adapter.trajectory_key(k)): v for k, v in method.state_dict().items()}
    for key, stored in after["extra_params_after"].items():
        sensitivity = noise.get("extra_params_after_first_max_abs_diff", 0.0)
        check.final(key, l2(extra[key]), stored["l2"], sensitivity)
        for a, b in zip(extra[key].flatten()[: len(stored["first"])].tolist(), stored["first"], strict=True):
            check.final(key, a, b, sensitivity)
    with torch.no_grad():
        logits = student.eval()(images(seeds["data"], 2, 99).to(dtype))
    for row, stored_row in zip(logits, after["eval_logits_after"], strict=True):
        for a, b in zip(row[: len(stored_row)].tolist(), stored_row, strict=True):
            check.final("evaluated logits", a, b, noise["eval_logits_after_max_abs_diff"])
    finals = adapter.finals(run, method)
    if "teacher_bn_after" in after:
        assert teacher is not None
        norms = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
        for name, stored in after["teacher_bn_after"].items():
            norm = teacher.get_submodule(name)
            assert norm in norms
            assert int(norm.num_batches_tracked) == stored["num_batches_tracked"], name
            for ours, key in ((norm.running_mean, "running_mean_l2"), (norm.running_var, "running_var_l2")):
                check.final(name, l2(ours), stored[key], noise["eval_logits_after_max_abs_diff"])
    known = {
        "per_step",
        "params_after",
        "student_param_l2_total_after",
        "bn_after",
        "extra_params_after",
        "eval_logits_after",
        "teacher_calibration",
        "teacher_bn_after",
    }
    unread = set(after) - known - set(finals)
    assert not unread, f"values that nothing checks: {unread}"
    for key, value in finals.items():
        check.final(key, value, after[key], 0.0)
