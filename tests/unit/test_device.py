"""Settings of the process that devices need."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Where the first block of some megabytes lies: on the heap, or mapped for itself and given back when it is freed.
PLACE = """
import re, sys, torch
from itrd.engine.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
address = torch.ones(2 << 20).data_ptr()
heap = re.search(r"^(\\w+)-(\\w+) .*\\[heap\\]$", open("/proc/self/maps").read(), re.MULTILINE)
print("heap" if int(heap[1], 16) <= address < int(heap[2], 16) else "mapped")
"""


def place(how: str, **chosen: str) -> str:
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PLACE, how]
    done = subprocess.run(command, capture_output=True, text=True, env={**usual, **chosen}, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of glibc")
def test_memory_that_a_step_frees_stays_with_the_process() -> None:
    assert (place("leave"), place("keep")) == ("mapped", "heap")
    assert place("keep", MALLOC_MMAP_THRESHOLD_="131072") == "mapped"  # what the user has chosen stays
    assert place("keep", MALLOC_TRIM_THRESHOLD_="131072") == "mapped"
