"""Files that are either complete or absent: write beside, flush, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MAX_JSON = 1 << 26  # bytes
PARTIAL = ".partial"  # how the names of files end that are being written
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def write_atomically(path: Path, content: bytes, before_rename: Callable[[], None] | None = None) -> None:
    """Write a file so that a reader, or a crash at any moment, sees the old content or the new one.

    ``before_rename`` is called when the new content is safe on the disk, under a temporary name.

    Raises:
        OSError: it cannot be written; ``filename`` is the path.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o666 & ~_umask())  # mkstemp makes private files
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if before_rename is not None:
            before_rename()
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise


def remove_partial_files(folder: Path) -> None:
    """Remove what writes left behind that were cut off by the death of their process."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def create_atomically(path: Path, content: bytes) -> bool:
    """Create a file that must not exist yet, complete from its first moment; return whether this call made it.

    Of several processes that try, on one machine or over a network file system, exactly one succeeds. On a file
    system without hard links the file is empty for a moment.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o666 & ~_umask())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not link(Path(temporary), path):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # takes the name
            try:
                os.replace(temporary, path)
            except BaseException:
                path.unlink()
                raise
    except FileExistsError:
        return False
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def link(path: Path, name: Path) -> bool:
    """Give a file a second name, which must not exist yet; return False on a file system without hard links."""
    try:
        os.link(path, name)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically, indented, with a final newline."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def read_limited(path: Path, limit: int) -> bytes:
    """Read a whole file that must be a plain one of at most ``limit`` bytes.

    Raises:
        OSError: it is not, or cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that nobody writes to would block
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        if about.st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
        with open(handle, "rb", closefd=False) as file:
            return file.read(about.st_size)  # a larger number would be allocated
    finally:
        os.close(handle)


def read_json(path: Path, limit: int = MAX_JSON) -> Any:
    """Read JSON of a bounded size.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON.
    """
    try:
        return json.loads(read_limited(path, limit))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _sha256(file)
        )


def _sha256(file: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
