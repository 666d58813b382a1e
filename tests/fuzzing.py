"""Feeds mutated files to every reader of ours, in a process that may hang, crash, or take too much memory.

    python tests/fuzzing.py FORMAT COUNT SEED

prints a JSON object: how many files loaded and how many were refused, the slowest, and the growth of memory. Anything
that is neither a load nor an error of the ``UserError`` family ends the process, and so do attempts to start a
program, to open a connection, or to write outside of the scratch folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BOUND = 512 << 20  # bytes of address space, above what the imports took
SECONDS = 20  # for one file
EXTREMES = [b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0" * 4, b"\0\0\0\x80", b"\xff" * 8, b"\0\0\0\0\1\0\0\0"]


def mutated(draw: random.Random, seeds: list[bytes], tokens: list[bytes]) -> bytes:
    """Change a valid file in one to five places."""
    raw = bytearray(draw.choice(seeds))
    for _ in range(draw.choice([1, 1, 1, 2, 3, 5])):
        at = draw.randrange(len(raw) + 1)
        end = min(len(raw), at + draw.choice([1, 1, 2, 4, 8, 30]))
        kind = draw.randrange(9)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            raw[at:end] = draw.randbytes(end - at)
        elif kind == 2:
            raw[at:at] = draw.randbytes(draw.randrange(1, 9))
        elif kind == 3:
            del raw[at:end]
        elif kind == 4:
            raw[at:at] = raw[at:end] * draw.choice([1, 2, 50])
        elif kind == 5:
            del raw[at:]
        elif kind == 6:
            extreme = draw.choice(EXTREMES)
            raw[at : at + len(extreme)] = extreme
        elif kind == 7:
            other = draw.choice(seeds)
            start = draw.randrange(len(other) + 1)
            raw[at:end] = other[start : start + draw.randrange(1, 60)]
        else:
            token = draw.choice(tokens)
            raw[at : at + draw.choice([0, len(token)])] = token
    return bytes(raw)


# --- formats: what is mutated, and what reads it ---------------------------------------------------------

Format = tuple[Callable[[random.Random], bytes], Callable[[bytes], object]]


def pth(folder: Path) -> Format:
    """Archives and files from before them; half the time the pickle inside, with checksums that are right."""
    import torch

    from itrd.engine.checkpoint import load_into, read_weights

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    path = folder / "x.pth"
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    content = {"epoch": 3, "model": net.state_dict(), "best_acc": torch.tensor(5.0), "opt": [1, "two", None]}
    archive, legacy = (_saved(content, new) for new in (True, False))
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    tokens = [
        b"PK\3\4",
        b"PK\1\2",
        b"PK\5\6",
        b"(",
        b")",
        b"\x85",
        b"R",
        b"Q",
        b"cos\nsystem\n",
        b"t",
        b"h\0",
        b".",
    ]
    tokens += [
        b"ctorch HalfStorage\n",
        b"ctorch\nDoubleStorage\n",
        b"K\xff",
        b"M\xff\xff",
        b"J\xff\xff\xff\x7f",
    ]

    def make(draw: random.Random) -> bytes:
        kind = draw.randrange(3)
        if kind < 2:
            return mutated(draw, [archive, legacy][kind : kind + 1], tokens)
        changed = io.BytesIO()
        with zipfile.ZipFile(changed, "w") as copy:
            for name, inside in members.items():
                hit = name.endswith("data.pkl") or draw.random() < 0.05
                copy.writestr(name, mutated(draw, [inside], tokens) if hit else inside)
        return changed.getvalue()

    def read(raw: bytes) -> None:
        path.write_bytes(raw)
        state, _ = read_weights(path)
        assert all(isinstance(value, torch.Tensor) for value in state.values())
        if {key: value.shape for key, value in state.items()} == shapes:
            load_into(net, state, "x")

    return make, read


def safetensors(folder: Path) -> Format:
    """The header is JSON in front of the numbers."""
    import torch

    from itrd.engine.checkpoint import load_into, read_weights, save_weights

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    path = folder / "x.safetensors"
    save_weights(path, net, {"arch": "resnet8", "num_classes": "10"})
    valid = path.read_bytes()
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    tokens = [
        b'"F32"',
        b'"I64"',
        b'"F8_E5M2"',
        b"[",
        b"]",
        b"{",
        b"}",
        b"99999999999",
        b"-1",
        b'"',
        b"null",
        b"1e9",
    ]

    def make(draw: random.Random) -> bytes:
        if draw.random() < 0.5:
            return mutated(draw, [valid], tokens)
        size = int.from_bytes(valid[:8], "little")  # the header alone, with a length that is right
        header = mutated(draw, [valid[8 : 8 + size]], tokens)
        return len(header).to_bytes(8, "little") + header + valid[8 + size :]

    def read(raw: bytes) -> None:
        path.write_bytes(raw)
        state, metadata = read_weights(path)
        assert all(isinstance(value, str) for value in metadata.values())
        if {key: value.shape for key, value in state.items()} == shapes:
            load_into(net, state, "x")

    return make, read


def state(folder: Path) -> Format:
    """A run's state, with a checksum that is right in half of the files."""
    import hashlib

    import torch

    from itrd.engine.checkpoint import load_state, save_state
    from itrd.engine.state import MISFITS, Position, generators, restore_generators

    position = Position(torch.device("cpu"))
    position.meter.add({"loss": torch.tensor(1.0)}, 4)
    path = folder / "checkpoint.pt"
    content = {
        "position": position.state_dict(),
        "task": {"w": torch.ones(3)},
        **generators(torch.device("cpu")),
    }
    save_state(path, content)
    valid = path.read_bytes()
    head = valid.index(b"\n") + 1
    with zipfile.ZipFile(io.BytesIO(valid[head:])) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    tokens = [b"K\xff", b"J\xff\xff\xff\x7f", b"(", b"N", b"\x85", b"X\1\0\0\0a", b"G\x7f\xf8\0\0\0\0\0\0"]

    def make(draw: random.Random) -> bytes:
        if draw.random() < 0.3:
            return mutated(draw, [valid], tokens)
        changed = io.BytesIO()
        with zipfile.ZipFile(changed, "w") as copy:
            for name, inside in members.items():
                copy.writestr(name, mutated(draw, [inside], tokens) if name.endswith("data.pkl") else inside)
        body = changed.getvalue()
        return b"itrd-checkpoint-1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    def read(raw: bytes) -> None:
        path.write_bytes(raw)
        found, _ = load_state(path)
        with contextlib.suppress(*MISFITS):
            position.load_state_dict(found["position"])  # what `restore_run` turns into a CheckpointError
            restore_generators(found, torch.device("cpu"))

    return make, read


def cifar(folder: Path) -> Format:
    """Python 2 pickles of arrays and labels."""
    import numpy as np

    from data_helpers import python2_pickle
    from itrd.data.pickles import read_pickle

    content = {
        b"data": np.arange(60, dtype=np.uint8).reshape(5, 12),
        b"fine_labels": [1, 2, 300],
        b"x": [b"y"],
    }
    valid = python2_pickle(content)
    tokens = [
        b"cos\nsystem\n",
        b"cnumpy\nndarray\n",
        b"(",
        b"\x85",
        b"R",
        b"b",
        b"h\0",
        b"U\xff",
        b"T\xff\xff\xff\x7f",
    ]

    def make(draw: random.Random) -> bytes:
        return mutated(draw, [valid], tokens)

    return make, lambda raw: read_pickle(raw, "file")


_YAML = b"""# settings
model: resnet8
data: digits
epochs: 3
milestones: [1, 2]
learning_rate: 5e-2
seed: 7
precision: fp32
nesterov: false
out: somewhere
"""
_YAML_TOKENS = [
    *(
        b"&a ",
        b"*a",
        b"!!python/object/apply:os.system [true]",
        b"!!python/name:os.system",
        b"<<: *a",
        b"!x ",
    ),
    *(
        b"class_path: os.system\ninit_args: {command: 'true'}\n",
        b"{",
        b"}",
        b"[" * 50,
        b"]",
        b": ",
        b"\n  ",
        b"- ",
    ),
    *(
        b"2001-02-31",
        b"1e999",
        b".nan",
        b"0x" + b"f" * 40,
        b"'",
        b'"',
        b"|\n",
        b"\0",
        b"\xff",
        b"%TAG ! x\n",
        b"---\n",
    ),
    *(b"config: /etc/passwd\n", b"model: !!binary aaaa\n", b"? ", b"9" * 5000, b"x" * 300),
]


def settings(folder: Path) -> Format:
    """Files for ``--config``."""
    from itrd.cli.parser import build_parser

    path = folder / "x.yaml"
    parser = build_parser()

    def read(raw: bytes) -> None:
        path.write_bytes(raw)
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
                parser.parse_args(["train", "--config", str(path)])
                return
        except SystemExit as stop:  # the parser's way to refuse
            status = stop.code
        told = errors.getvalue()
        well = status == 2 and told.startswith("itrd: error: ") and told.count("\n") == 1 and len(told) < 1300
        raise Refused if well else RuntimeError(f"status {status}: {told}")

    return lambda draw: mutated(draw, [_YAML], _YAML_TOKENS), read


def run_folder(folder: Path) -> Format:
    """The settings that a run folder holds, as ``--resume`` reads them."""
    from itrd.engine.config import TrainConfig
    from itrd.engine.folder import RunFolder

    config = TrainConfig(model="resnet8", data="digits").resolved()
    first = RunFolder(folder / "run", config)
    first.open()
    first.close()
    held = RunFolder(folder / "run", dataclasses.replace(config, resume=True))
    valid = held.settings.read_bytes()

    def read(raw: bytes) -> None:
        held.settings.write_bytes(raw)
        held.check()

    return lambda draw: mutated(draw, [valid], _YAML_TOKENS), read


def ledger(folder: Path) -> Format:
    """JSON: records of the benchmark, cards of the zoo, checksums of data, results of runs."""
    from itrd.bench.record import parse
    from itrd.data import trust
    from itrd.engine.files import read_json
    from itrd.engine.zoo import read_card

    record = {
        "format": 1,
        "last": {"top1": 71.5, "curve": [1, 2.5, None, True]},
        "text": "a \u00fc",
        "sha256": "0" * 64,
    }
    checksums = {"train": "0" * 64, "test": "1" * 64}
    valid = [json.dumps(value, indent=1).encode() for value in (record, checksums)]
    tokens = [
        b"NaN",
        b"Infinity",
        b"[" * 100_000,
        b"{" * 50,
        b'{"a":' * 30_000,
        b"9" * 5000,
        b"1e999",
        b"\\u0000",
        b'"',
        b"\xff",
    ]
    card = folder / "net.safetensors"
    card.write_bytes(b"")
    path = folder / "net.json"

    def read(raw: bytes) -> None:
        path.write_bytes(raw)
        (folder / trust.RECORD).write_bytes(raw)
        readers: list[Callable[[], object]] = [
            lambda: read_json(path),
            lambda: parse(path),
            lambda: read_card(card),
            lambda: trust.recorded(folder),
        ]
        refused = 0
        for reader in readers:
            try:
                reader()
            except (Refused, *_errors()):
                refused += 1
        if refused == len(readers):
            raise Refused

    return lambda draw: mutated(draw, valid, tokens), read


FORMATS = {f.__name__: f for f in (pth, safetensors, state, cifar, settings, run_folder, ledger)}


class Refused(Exception):
    """A reader said no in the way it should."""


def _errors() -> tuple[type[BaseException], ...]:
    from itrd.errors import UserError

    return (UserError, ValueError)


def _saved(content: Any, new: bool) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


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
