"""A CUDA device that is emulated, so that tests marked ``gpu`` run without a GPU: ``make test-emulated``.

The code for GPUs makes promises that no test on a CPU sees broken: that tensors which meet are on one device,
that a step never waits for the device, that what a graph has captured can be replayed. This device keeps its
memory in the host's and computes with CPU kernels, but it is one of its own, and refuses what a GPU refuses:

- Its tensors report ``cuda:0``. An operator that mixes them with the CPU's raises, except where CUDA accepts that:
  numbers without dimensions, indices, copies.
- A graph captures calls instead of making them, and ``replay`` makes them. Waiting in a capture raises
  (``.item()``, shapes that depend on values, copies that are not pinned, ``synchronize``), and so does drawing
  from a generator that is not the device's own. ``torch.cuda.set_sync_debug_mode("error")`` refuses the former
  everywhere.
- Random numbers, the current device, pinned memory and uninitialised memory are the device's, not the host's.
- NCCL is gloo, which is given copies, and refuses tensors on the CPU.

What it cannot show: races between streams (there is one, and it is always done), CUDA's kernels and their numbers
(which types they take, which of them are deterministic), how much memory is used and the allocator's state after
a failed capture, NCCL itself, synchronised batch norm, torch.compile, speed.

It leans on what torch does not promise, and was built with torch 2.13.0 (CPU), g++ 12 and Python 3.11, with no
other. It has to be there before torch is imported. tests/conftest.py switches it on where ITRD_EMULATED_CUDA is
set, to the number of devices; any other module runs on it as

    export ITRD_EMULATED_CUDA=2 PYTHONPATH=tests
    torchrun --nproc_per_node 2 -m emulated_cuda itrd distill --device cuda ...

``device.cpp`` is the device, ``frontend.py`` its ``torch.cuda``; ``build.py`` compiles the former into ``build/``.
"""

import ctypes
import sys

from .build import build


def install() -> None:
    """Make torch see the device; compiles it where that has not been done."""
    if "torch" in sys.modules:
        raise RuntimeError("torch has been imported already, and has looked for a GPU")
    ctypes.CDLL(str(build()), ctypes.RTLD_GLOBAL)  # torch finds it as it would find its own CUDA library
    from . import frontend

    frontend.install()
