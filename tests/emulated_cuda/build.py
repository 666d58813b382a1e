"""Compiles the device: ``python -m emulated_cuda.build``, ten seconds with g++."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")
BUILD = Path(__file__).parents[2] / "build"


def build() -> Path:
    """The library, compiled anew where it is older than its source; without importing torch."""
    library = BUILD / f"emulated_cuda-torch{version('torch')}.so"
    if library.exists() and library.stat().st_mtime > SOURCE.stat().st_mtime:
        return library
    torch = Path(importlib.util.find_spec("torch").origin).parent
    BUILD.mkdir(exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}")  # several processes may build at a time
    command = ["g++", "-std=c++20", "-O1", "-w", "-fPIC", "-shared", str(SOURCE), "-o", str(unfinished)]
    command += [f"-I{torch}/include", f"-L{torch}/lib", f"-Wl,-rpath,{torch}/lib", "-ltorch_cpu", "-lc10"]
    subprocess.run(command, check=True)
    return unfinished.replace(library)


if __name__ == "__main__":
    print(build())
