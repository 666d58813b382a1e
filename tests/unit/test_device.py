"""Settings of the process that devices need."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from itrd.engine.device import keep_freed_memory
if {kept}:
    keep_freed_memory()
for _ in range(50):
    torch.ones(2 << 20)  # the heap grows until a block fits wherever another one was
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    torch.ones(2 << 20)  # 8 MiB, written and freed
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of glibc")
def test_memory_that_was_freed_is_used_again_without_asking_the_kernel():
    def faults(kept: bool, **environment: str) -> int:
        code = FAULTS.format(kept=kept)
        clean = {"PATH": "/usr/bin:/bin", **environment}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    pages = (8 << 20) // 4096
    assert faults(kept=True) < pages  # fewer, in fifty tensors, than one of them has pages
    chosen = {"MALLOC_MMAP_THRESHOLD_": "131072"}
    assert faults(kept=True, **chosen) > 20 * pages  # what the user has chosen stays
