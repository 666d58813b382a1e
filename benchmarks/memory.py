"""Peak memory of a call on a CPU, from what torch.profiler records."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def peak_on_cpu(function: Callable[[], object]) -> int:
    """Highest running sum, in bytes, of the allocations and releases of tensors during a call."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with tempfile.TemporaryDirectory() as folder, no_stderr():
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            function()
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    level = highest = 0
    for _, change in sorted(changes, key=lambda entry: entry[0]):
        level += change
        highest = max(highest, level)
    return highest


@contextmanager
def no_stderr() -> Iterator[None]:
    """Drop what the profiler's C++ code writes, a line for every start and stop."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
