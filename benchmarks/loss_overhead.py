"""What each method's loss costs beside the student's own training step: time and peak memory.

    python benchmarks/loss_overhead.py --device cpu cuda --batch 64 256 --precision fp32 bf16 --out FILE.json

Measured for wrn_40_2 -> wrn_16_2 on images of 32 x 32, 100 classes, a training set of 50,000 (CRD: K = 16384):

* The step of the student alone: forward, cross-entropy, backward, SGD with momentum. It is taken twice as often
  as anything else, one half before and one half after the methods, so that a drift of the machine shows in its spread.
* A method's loss: its own modules and terms, forward and backward, from outputs that lie ready. Gradients go to the
  student's outputs and to the method's own parameters. Not in it: the teacher's forward pass (shown beside), the
  gradient's way through the student (the step has it already), the update of the method's own parameters.
* Methods with a first stage: its terms are a line of their own, relative to the same step although that stage has
  no cross-entropy. AB and FSP have no term in the main stage.

Times: on CUDA between two events, so including the time to launch kernels where that is longer than they run; on a
CPU by the clock, with one thread by that of the processor, which other processes do not stop. Peak memory: the most
that was allocated at any moment beyond what lay there before the call. On CUDA ``torch.cuda.max_memory_allocated``;
on a CPU the highest running sum of the allocations and releases of tensors that ``torch.profiler`` records, which
leaves out the scratch memory inside libraries such as oneDNN.

``--out`` replaces measurements of the same machine, precision and batch size in the file, and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from memory import peak_on_cpu
from torch import Tensor

import itrd
from itrd.engine.device import autocast, resolve_device, set_float32
from itrd.engine.provenance import provenance
from itrd.errors import UserError, first_line
from itrd.methods import Batch, Method, Setup, create_method, list_methods, method_class
from itrd.models import FeatureNet, Outputs, create_model

TEACHER, STUDENT = "wrn_40_2", "wrn_16_2"
CLASSES, TRAIN_SIZE = 100, 50_000
WARM_UP = 3
MIB = 2**20


def goal(method: Method) -> float:
    """Percent of the step that the loss is to stay below on CUDA."""
    if method.name in ("itrd", "kd"):
        return 5.0
    return 40.0 if "maps" in method.reads else 15.0


class Bench:
    """Networks, images and outputs under one condition."""

    def __init__(self, device: torch.device, precision: str, batch_size: int) -> None:
        torch.manual_seed(0)
        self.device = device
        if device.type == "cuda":
            torch.cuda.set_device(device.index or 0)  # where events are recorded
            set_float32(precision)
        self.precision = precision
        self.teacher = self._place(create_model(TEACHER, CLASSES)).eval().requires_grad_(False)
        self.student = self._place(create_model(STUDENT, CLASSES)).train()
        images = torch.randn(batch_size, 3, 32, 32, device=device)
        self.images = images.to(memory_format=torch.channels_last)
        self.train_labels = torch.arange(TRAIN_SIZE, device=device) % CLASSES
        indices = torch.randperm(TRAIN_SIZE)[:batch_size].to(device)
        self.batch = Batch(self.train_labels[indices], indices)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def _place(self, net: FeatureNet) -> FeatureNet:
        return net.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def step(self) -> None:
        """One training step of the student alone."""
        with autocast(self.device, self.precision):
            logits = self.student(self.images)
        loss = F.cross_entropy(logits.float(), self.batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def outputs(self, net: FeatureNet, preact: bool) -> Outputs:
        """One forward pass."""
        with autocast(self.device, self.precision):
            return net.observe(self.images, preact)

    def loss_of(self, method: Method, *, first_stage: bool) -> Callable[[], None] | None:
        """Prepare a function that computes a method's loss and its gradients; None if this stage has no term."""
        student = self.outputs(self.student, method.student_preact)
        teacher = self.outputs(self.teacher, method.teacher_preact)
        method.setup(Setup(student, teacher, self.student, self.teacher, CLASSES, self.train_labels))
        method.to(self.device).train()
        method.start_epoch(100)  # past all warm-ups
        if first_stage:
            for module in method.first_stage_only():
                module.train().requires_grad_(True)
        assert student.embedding is not None
        assert student.stem is not None
        leaves = [student.logits, student.embedding, *student.maps, student.stem]
        for leaf in leaves:
            leaf.requires_grad_()
        targets: list[Tensor] = [*leaves, *method.parameters()]

        def terms() -> dict[str, Tensor]:
            with autocast(self.device, self.precision):
                return method(student, teacher, self.batch, first_stage=first_stage)

        def compute() -> None:
            for target in targets:
                target.grad = None
            found = terms()
            (torch.stack(list(found.values())).sum() if first_stage else method.loss(found)).backward()

        return compute if terms() else None

    def times(self, function: Callable[[], object], repeats: int) -> list[float]:
        """Milliseconds of each call, after a warm-up."""
        for _ in range(WARM_UP):
            function()
        if self.device.type == "cuda":
            event = partial(torch.cuda.Event, enable_timing=True)
            events = [(event(), event()) for _ in range(repeats)]
            torch.cuda.synchronize(self.device)
            for begin, end in events:
                begin.record()
                function()
                end.record()
            torch.cuda.synchronize(self.device)
            return [begin.elapsed_time(end) for begin, end in events]
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        ticks = [clock()]
        for _ in range(repeats):
            function()
            ticks.append(clock())
        return [1000 * (after - before) for before, after in pairwise(ticks)]

    def peak(self, function: Callable[[], object]) -> float:
        """MiB allocated at the fullest moment of a call, beyond what was allocated before it."""
        if self.device.type != "cuda":
            return peak_on_cpu(function) / MIB
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        function()
        torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / MIB


def summary(times: Sequence[float], peak: float) -> dict[str, Any]:
    """Median, quartiles and peak as they are written to the file."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    values = {"median_ms": median, "quartile_1_ms": low, "quartile_3_ms": high, "peak_mib": peak}
    return {key: round(value, 4) for key, value in values.items()}


def measure(
    device: torch.device, precision: str, batch_size: int, repeats: int, names: Sequence[str]
) -> dict[str, Any]:
    """Measure all methods under one condition."""
    load = round(os.getloadavg()[0], 1)  # processes that wanted a core in the minute before
    bench = Bench(device, precision, batch_size)
    steps = bench.times(bench.step, repeats)
    teach = partial(bench.outputs, bench.teacher, False)
    teacher = summary(bench.times(teach, repeats), bench.peak(teach))
    lines: list[dict[str, Any]] = []
    for name in names:
        two_stages = method_class(name).first_stage_terms is not Method.first_stage_terms
        for stage in ("main", "first") if two_stages else ("main",):
            method = create_method(name)
            line: dict[str, Any] = {
                "method": name,
                "stage": stage,
                "reason": "",
                "goal_percent": goal(method),
            }
            try:
                compute = bench.loss_of(method, first_stage=stage == "first")
                if compute is None:
                    continue
                line |= summary(bench.times(compute, repeats), bench.peak(compute))
            except (UserError, RuntimeError) as error:
                line["reason"] = first_line(error)
            lines.append(line)
    steps += bench.times(bench.step, repeats)
    return {
        "machine": machine(device),
        "device": device.type,
        "pair": f"{TEACHER} -> {STUDENT}",
        "versions": versions(device),
        "precision": precision,
        "batch_size": batch_size,
        "repeats": repeats,
        "other_load": load,
        "step": summary(steps, bench.peak(bench.step)),
        "teacher_forward": teacher,
        "methods": lines,
    }


def machine(device: torch.device) -> str:
    """Name the processor; of a CPU also the number of threads."""
    where = provenance(str(device))
    threads = where["threads"]
    return str(where["hardware"]) + (
        f", {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else ""
    )


def versions(device: torch.device) -> dict[str, str]:
    """Versions that decide the speed."""
    found = {"itrd": itrd.__version__, "python": platform.python_version(), "torch": torch.__version__}
    return found | ({"cuda": str(torch.version.cuda)} if device.type == "cuda" else {})


def show(found: dict[str, Any]) -> None:
    """Print one condition as a table."""
    step, teacher = found["step"], found["teacher_forward"]
    print(f"\n{found['machine']}, {found['precision']}, batch {found['batch_size']}, {found['pair']}")
    print(
        ", ".join(f"{k} {v}" for k, v in found["versions"].items())
        + f", n = {found['repeats']}, load {found['other_load']}"
    )
    line = "{:24}{:>11}{:>20}{:>9}{:>7}{:>5}{:>11}{:>9}"
    print(line.format("", "median ms", "quartiles ms", "% step", "goal", "met", "peak MiB", "% step"))

    def row(name: str, of: dict[str, Any], goal_percent: float | None) -> None:
        percent = 100 * of["median_ms"] / step["median_ms"]
        wanted = "" if goal_percent is None else f"<{goal_percent:g}"
        met = "" if goal_percent is None else "yes" if percent < goal_percent else "NO"
        spread = f"{of['quartile_1_ms']:.2f}-{of['quartile_3_ms']:.2f}"
        times = f"{of['median_ms']:.2f}", spread, f"{percent:.2f}", wanted, met
        print(
            line.format(
                name, *times, f"{of['peak_mib']:.1f}", f"{100 * of['peak_mib'] / step['peak_mib']:.1f}"
            )
        )

    row("the student's step", step, None)
    row("teacher's forward", teacher, None)
    for method in found["methods"]:
        name = method["method"] + (" (first stage)" if method["stage"] == "first" else "")
        if method["reason"]:
            print(f"{name:24} cannot run: {method['reason']}")
        else:
            row(name, method, method["goal_percent"])
    if found["device"] != "cuda":
        print("The goals are for CUDA; here they are shown for comparison only.")


def save(measured: list[dict[str, Any]], path: Path) -> None:
    """Put measurements into a file, in the place of earlier ones of the same condition."""

    def condition(entry: dict[str, Any]) -> tuple[Any, ...]:
        return entry["machine"], entry["precision"], entry["batch_size"]

    old = json.loads(path.read_text(encoding="utf-8"))["measurements"] if path.exists() else []
    new = {condition(entry) for entry in measured}
    kept = [entry for entry in old if condition(entry) not in new]
    path.write_text(json.dumps({"measurements": kept + measured}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    here = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument(
        "--device", nargs="+", default=here, help="cpu, cuda or cuda:N (default: what is here)"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[64, 256], help="batch sizes")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--methods", nargs="+", default=list_methods(), help="default: all")
    parser.add_argument("--repeats", type=int, default=30, help="how often each time is taken, at least 2")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = [name for name in arguments.methods if method_class(name).reads]
    measured = []
    for device in map(resolve_device, arguments.device):
        for precision in arguments.precision:
            for batch_size in arguments.batch:
                measured.append(measure(device, precision, batch_size, arguments.repeats, names))
                show(measured[-1])
                if arguments.out:
                    save(measured, arguments.out)


if __name__ == "__main__":
    main()
