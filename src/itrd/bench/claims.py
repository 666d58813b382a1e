"""Claims: who is working on a cell, so that no two runners do the same one.

A claim is a file beside the records, created complete and only if it is not there yet. Its owner touches it every
few seconds. A claim is stale, and may be taken over, when its owner is gone: a process of this machine that no
longer runs, or a claim that was not touched for :data:`STALE_AFTER` seconds. Time is that of the file system, which
all runners share, not of each machine.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import tempfile
from pathlib import Path

from filelock import FileLock

from itrd.bench.cells import Cell
from itrd.errors import UserError
from itrd.files import create_atomically, read_json

HEARTBEAT = 20.0
STALE_AFTER = 300.0


class Claim:
    """A claim that this process holds. Use as a context manager, or call :meth:`release`."""

    def __init__(self, path: Path, token: str) -> None:
        self._path = path
        self._token = token

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *details: object) -> None:
        self.release()

    def touch(self) -> bool:
        """Say that the owner is alive; return False if the claim has gone to somebody else."""
        try:
            if _read(self._path).get("token") != self._token:
                return False
            os.utime(self._path)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Give the cell back, unless the claim has gone to somebody else."""
        if _read(self._path).get("token") == self._token:
            self._path.unlink(missing_ok=True)


class Claims:
    """The claims on the cells of one ledger.

    Args:
        root: folder of the ledger.
        stale_after: seconds without a sign of life after which an owner counts as gone.
    """

    def __init__(self, root: Path, stale_after: float = STALE_AFTER) -> None:
        self._root = root
        self._stale_after = stale_after

    def _path(self, cell: Cell) -> Path:
        return self._root / cell.track / ".claims" / f"{cell.name}.json"

    def take(self, cell: Cell) -> Claim | None:
        """Claim a cell; None if somebody alive has it.

        Raises:
            UserError: the ledger cannot be written.
        """
        path = self._path(cell)
        token = secrets.token_hex(8)
        owner = {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid()), "token": token}
        content = json.dumps(owner).encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if create_atomically(path, content):
                return Claim(path, token)
        except OSError as error:
            raise UserError(
                f"cannot write into {path.parent}: {error.strerror}; choose another folder with --results"
            ) from None
        if not self._is_stale(path):
            return None
        # Of several runners that see a stale claim, one may remove it, and none may remove the next owner's.
        with FileLock(path.parent / ".lock", timeout=30):
            if path.exists() and self._is_stale(path):
                path.unlink()
        return Claim(path, token) if create_atomically(path, content) else None

    def is_taken(self, cell: Cell) -> bool:
        """Whether somebody alive has this cell."""
        path = self._path(cell)
        return path.exists() and not self._is_stale(path)

    def _is_stale(self, path: Path) -> bool:
        owner = _read(path)
        if owner.get("host") == _host() and isinstance(owner.get("pid"), int):
            return _started(owner["pid"]) != owner.get("started")
        try:
            return _now(path.parent) - path.stat().st_mtime > self._stale_after
        except FileNotFoundError:  # released just now
            return False


def _read(path: Path) -> dict:
    try:
        owner = read_json(path)
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _host() -> str:
    """Name of this machine since its start: names repeat in fleets of containers, boot ids do not."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        boot = ""
    try:
        space = os.readlink("/proc/self/ns/pid")  # process ids of two containers on one machine are unrelated
    except OSError:
        space = ""
    return f"{socket.gethostname()} {boot} {space}".strip()


def _started(pid: int) -> str | None:
    """When a process of this machine started (ids are used again); None if there is none, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return _alive(pid)
    return None if fields[0] == "Z" else fields[19]


def _alive(pid: int) -> str | None:  # where there is no /proc
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "running"


def _now(folder: Path) -> float:
    """The file system's time."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".now.") as file:
        return os.stat(file.name).st_mtime
