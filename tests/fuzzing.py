"""Feeds mutated files to every reader of ours, in a process that may hang, crash, or take too much memory.

    python tests/fuzzing.py FORMAT COUNT SEED

prints a JSON object: how many files loaded and how many were refused, the slowest, and the growth of memory. Anything
that is neither a load nor an error of the ``UserError`` family ends the process, and so do attempts to start a
program, to open a connection, or to write outside of the scratch folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz_formats import FORMATS, Refused

BOUND = 512 << 20  # bytes of address space, above what the imports took
SECONDS = 20  # for one file

# --- the sandbox -----------------------------------------------------------------------------------------

_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
)


def watch(scratch: Path) -> None:
    """End the process when something that no reader of data needs is tried."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        bad = event in _FORBIDDEN
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            bad = bool(writes) and not os.fsdecode(arguments[0]).startswith((str(scratch), "/dev/null"))
        if bad:
            os.write(2, f"forbidden: {event} {arguments}\n".encode())
            os._exit(99)

    sys.addaudithook(hook)


@contextlib.contextmanager
def limit_time() -> Iterator[None]:
    """End the process if one file takes too long."""
    signal.alarm(SECONDS)  # its default action: the end
    yield
    signal.alarm(0)


def main() -> None:
    """Run one format."""
    name, count, seed = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    draw = random.Random(f"{name} {seed}")
    outcome = {"format": name, "loaded": 0, "refused": 0, "slowest_ms": 0.0}
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        make, read = FORMATS[name](Path(scratch))
        from itrd.errors import UserError

        read_errors = (UserError, Refused) if name != "ledger" else (Refused,)
        for _ in range(20):  # whatever is imported on the way
            with contextlib.suppress(*read_errors):
                read(make(random.Random(0)))
        watch(Path(scratch))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BOUND, used + BOUND))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            raw = make(draw)
            started = time.perf_counter()
            try:
                with limit_time():
                    read(raw)
                outcome["loaded"] += 1
            except read_errors:
                outcome["refused"] += 1
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"fuzz-{name}-{number}"
                print(f"file {number} of {name}, seed {seed}: {raw[:200]!r}", kept, file=sys.stderr)
                raise
            finally:
                signal.alarm(0)
            outcome["slowest_ms"] = max(
                outcome["slowest_ms"], round(1000 * (time.perf_counter() - started), 1)
            )
        outcome["grown_mb"] = round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024, 1)
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
