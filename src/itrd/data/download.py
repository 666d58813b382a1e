"""Fetches the official archives: checked, unpacked safely, and put in place at once."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import IO

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from itrd.data import trust
from itrd.data.cifar import LAYOUTS, MAX_FILE, Layout, find_folder
from itrd.data.datasets import describe_dataset
from itrd.errors import DataError

ADDRESS = "https://www.cs.toronto.edu/~kriz"
ADDRESS_VARIABLE = "ITRD_DATA_URL"  # a mirror: an address below which the archives lie
MD5 = {
    "cifar100": "eb9058c3a382ffc7106e4002c42a8d85",
    "cifar10": "c58f30108f718f92721af3b95e74349a",
}
ARCHIVES = {"cifar100": "cifar-100-python.tar.gz", "cifar10": "cifar-10-python.tar.gz"}
MAX_ARCHIVE = 200_000_000  # bytes; the official ones have 171 million at most
_MAX_MEMBERS = 100
_TIMEOUT = 30  # seconds without a byte


def download_dataset(name: str, root: str | os.PathLike[str] = "data", *, progress: bool = True) -> Path:
    """Fetch a dataset into the folder ``root`` and return the dataset's own folder.

    A copy that is there already is replaced, file by file, and so are its remembered checksums. The
    environment variable ITRD_DATA_URL names another place to fetch the archives from; they must be
    the official ones all the same.

    Args:
        name: the dataset.
        root: the folder that holds, or will hold, the dataset's folder.
        progress: show a progress bar on standard error.

    Raises:
        UnknownNameError: there is no such dataset.
        DataError: it cannot be fetched, is not the official archive, or cannot be written.
    """
    source = describe_dataset(name).source
    if name not in LAYOUTS:
        raise DataError(f"{name} cannot be downloaded: it {source}")
    layout = LAYOUTS[name]
    root = Path(root)
    folder = find_folder(layout, root) or root / layout.folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".itrd-", dir=root) as scratch:
            archive = _fetch(name, Path(scratch), progress=progress)
            fresh = _extract(layout, archive, Path(scratch) / "fresh")
            _install(fresh, folder)
    except OSError as error:
        raise DataError(f"cannot put {name} into {root}: {_one_line(error)}") from None
    return folder


def _fetch(name: str, scratch: Path, *, progress: bool) -> Path:
    import pooch

    address = os.environ.get(ADDRESS_VARIABLE, "").strip() or ADDRESS
    url = f"{address.rstrip('/')}/{ARCHIVES[name]}"
    pooch.get_logger().setLevel(logging.WARNING)  # its notes would disturb the progress bar
    with _bar(progress) as shown:
        bar = _PoochBar(shown, ARCHIVES[name])
        fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=_TIMEOUT)
        try:
            path = pooch.retrieve(
                url, known_hash=f"md5:{MD5[name]}", fname=ARCHIVES[name], path=scratch, downloader=fetch
            )
        except (
            OSError,
            ValueError,
        ) as error:  # requests' errors are OSErrors
            if "hash of downloaded file" in str(error):  # pooch's, a ValueError
                what = "what came is not the official archive (its checksum differs)"
            else:  # a failed connection comes wrapped in many words
                cause = re.search(r"\[Errno -?\d+\] [\w ,-]+", str(error))
                what = cause[0] if cause else _one_line(error)
            raise DataError(
                f"cannot download {url}: {what}; try again, or name a mirror in {ADDRESS_VARIABLE}"
            ) from None
    return Path(path)


def _bar(visible: bool) -> Progress:
    from rich.console import Console

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not visible)


class _PoochBar:
    """What pooch asks of a progress bar (it knows tqdm's), drawn by rich; also bounds the size."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=None)
        self._received = 0

    @property
    def total(self) -> int:
        return int(self._progress.tasks[0].total or 0)

    @total.setter
    def total(self, size: int) -> None:
        self._check(size)
        self._progress.update(self._task, total=size or None)

    def update(self, size: int) -> None:
        self._received += size
        self._check(self._received)
        self._progress.update(self._task, completed=self._received)

    def reset(self) -> None:
        self._received = 0

    def close(self) -> None:
        """Nothing to do: the bar ends with the block it is shown in."""

    def _check(self, size: int) -> None:
        if size > MAX_ARCHIVE:
            raise ValueError(f"the archive has more than {MAX_ARCHIVE:,} bytes")


def _extract(layout: Layout, archive: Path, fresh: Path) -> Path:
    """Unpack the expected files, and no other, into the new folder ``fresh``; add the checksum record.

    Names in the archive are only compared, never used as paths.
    """
    fresh.mkdir()
    wanted = {f"{layout.folder}/{file}": file for file in layout.files}
    checksums: dict[str, str] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for count, member in enumerate(tar):
                if count >= _MAX_MEMBERS:
                    raise DataError(f"{archive.name} holds too many files")
                if member.name not in wanted:
                    continue
                file = wanted.pop(member.name)  # a second one of that name is not wanted
                content = tar.extractfile(member) if member.isreg() and member.size <= MAX_FILE else None
                if content is None:
                    raise DataError(f"{archive.name} is damaged: {member.name} is no plain file")
                checksums[file] = _copy(content, fresh / file)
    except (tarfile.TarError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{archive.name} is damaged: {_one_line(error)}; try again") from None
    if wanted:
        raise DataError(f"{archive.name} is damaged: {min(wanted)} is missing in it; try again")
    trust.write(fresh / trust.RECORD, checksums)
    return fresh


def _copy(content: IO[bytes], path: Path) -> str:
    """Write a file and return the sha256 of what was written."""
    digest = hashlib.sha256()
    with content, path.open("xb") as out:
        while block := content.read(1 << 20):
            digest.update(block)
            out.write(block)
    return digest.hexdigest()


def _install(fresh: Path, folder: Path) -> None:
    """Move the files into place: the whole folder at once, or one by one into a folder that exists.

    The record goes last: after an interruption the mixture is refused until it is fetched again.
    """
    if not folder.exists():
        os.replace(fresh, folder)
        return
    for path in sorted(fresh.iterdir(), key=lambda path: path.name == trust.RECORD):
        os.replace(path, folder / path.name)


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
