"""Trust on first use: remembers what every data file was when it was first read."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from itrd.errors import DataError
from itrd.files import read_json

RECORD = "itrd-sha256.json"
_MAX_RECORD = 1 << 16  # bytes


def download_command(name: str) -> str:
    """Return the command that fetches a dataset, for the end of an error."""
    return f"`itrd datasets --download {name}`"


def recorded(folder: Path) -> dict[str, str]:
    """Return file name -> sha256 (hex) as remembered in the folder; empty where nothing is.

    Raises:
        DataError: the record cannot be read.
    """
    path = folder / RECORD
    try:
        if not path.exists():
            return {}
        record = read_json(path, _MAX_RECORD)
        if not isinstance(record, dict) or not all(isinstance(value, str) for value in record.values()):
            raise ValueError("not a table of checksums")
    except (OSError, ValueError):
        raise DataError(
            f"cannot read the checksums in {path}: delete that file to trust the data as it is"
        ) from None
    return record


def check(name: str, path: Path, sha256: str, record: dict[str, str]) -> None:
    """Compare a file's checksum with the remembered one.

    Raises:
        DataError: the file is another one than when it was first read.
    """
    if record.get(path.name, sha256) != sha256:
        raise DataError(
            f"{path} was altered since it was first read: restore it with {download_command(name)}, "
            f"or delete {path.parent / RECORD} to accept it"
        )


def remember(folder: Path, checksums: dict[str, str]) -> None:
    """Write the folder's record at once, or do nothing where it cannot be written."""
    partial = folder / f".{RECORD}.{os.getpid()}"
    with contextlib.suppress(OSError):
        try:
            write(partial, checksums)
            os.replace(partial, folder / RECORD)
        finally:
            partial.unlink(missing_ok=True)


def write(path: Path, checksums: dict[str, str]) -> None:
    """Write file name -> sha256 to a new file."""
    path.write_text(json.dumps(checksums, indent=1, sort_keys=True) + "\n", encoding="utf-8")
