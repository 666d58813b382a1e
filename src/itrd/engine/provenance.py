"""Where a number comes from: code, versions, machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


@cache
def provenance(device: str = "cpu") -> dict[str, Any]:
    """Describe the code and the machine of a run, as plain values for its record."""
    return {
        "itrd": _version("itrd"),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": _version("numpy"),
        "platform": f"{platform.system()} {platform.machine()}",
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
    }


def with_provenance(
    earlier: list[dict[str, Any]], device: str, processes: int = 1, *, compiled: bool = False
) -> list[dict[str, Any]]:
    """Append this process's provenance to those of a run, unless it is the same as the last."""
    now = {
        **provenance(device),
        **({"processes": processes} if processes > 1 else {}),
        **({"compile": True} if compiled else {}),
    }
    return earlier if earlier and earlier[-1] == now else [*earlier, now]


def hardware(device: str) -> str:
    """Name the processor, or the GPU, that a device string stands for."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that this package was imported from; a ``+`` marks local changes."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        run = lambda *words: subprocess.run(  # noqa: E731
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        return run("rev-parse", "HEAD") + ("+" if run("status", "--porcelain", "--", "src") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def command_line() -> str:
    """Return the command that started this process, without the interpreter's path, as a shell takes it."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name  # python -m NAME
    return shlex.join([name, *sys.argv[1:]])
