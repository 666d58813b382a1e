"""Downloading, against a server on the loopback interface."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import tarfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from data_helpers import contents, make_archive, python2_pickle, send, serve, write_folder
from itrd.data import download, download_dataset, load_dataset
from itrd.data.trust import RECORD
from itrd.errors import DataError

FOLDER = "cifar-100-python"
FILES: dict[str, bytes | tarfile.TarInfo] = {
    f"{FOLDER}/{file}": python2_pickle(content) for file, content in contents("cifar100").items()
}
ARCHIVE, MD5 = make_archive(FILES)


@pytest.fixture(autouse=True)
def _known_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(download.MD5, "cifar100", MD5)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)


def refused(root: Path, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        download_dataset("cifar100", root, progress=False)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    for part in parts:
        assert part in text
    assert not root.exists() or not list(root.glob(".itrd-*"))  # nothing is left behind


def use(monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """Make an archive of the members the official one."""
    archive, md5 = make_archive(members)
    monkeypatch.setitem(download.MD5, "cifar100", md5)
    return archive


@pytest.mark.parametrize("progress", [False, True])
def test_downloads_once_and_loads(
    progress: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        send(ARCHIVE)(handler)

    with serve(answer) as address:
        monkeypatch.setenv("ITRD_DATA_URL", address + "/mirror/")
        root = tmp_path / "new" / "data"
        folder = download_dataset("cifar100", root, progress=progress)
        assert folder == root / FOLDER
        dataset = load_dataset("cifar100", root, download=True)
    assert asked == ["/mirror/cifar-100-python.tar.gz"]
    assert len(dataset.train) == 200
    assert {path.name for path in folder.iterdir()} == {"train", "test", "meta", RECORD}
    assert [path.name for path in root.iterdir()] == [FOLDER]
    out, err = capfd.readouterr()
    assert out == ""
    assert ("cifar-100-python.tar.gz" in err) == progress


def test_load_downloads_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(send(ARCHIVE)) as address:
        monkeypatch.setenv("ITRD_DATA_URL", address)
        assert len(load_dataset("cifar100", tmp_path, download=True).test) == 100


@pytest.mark.parametrize("inside", [False, True])
def test_restores_an_altered_copy(inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder("cifar100", tmp_path, seed=5)
    (folder / "notes.txt").write_text("mine")
    root = folder if inside else tmp_path
    load_dataset("cifar100", root)
    (folder / "train").write_bytes(b"altered")
    with pytest.raises(DataError, match="altered"):
        load_dataset("cifar100", root)
    with serve(send(ARCHIVE)) as address:
        monkeypatch.setenv("ITRD_DATA_URL", address)
        assert download_dataset("cifar100", root, progress=False) == folder
    assert (folder / "train").read_bytes() == FILES[f"{FOLDER}/train"]
    assert (folder / "notes.txt").read_text() == "mine"
    load_dataset("cifar100", root)


def test_the_record_is_of_what_was_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tampering before the first load is seen too."""
    with serve(send(ARCHIVE)) as address:
        monkeypatch.setenv("ITRD_DATA_URL", address)
        folder = download_dataset("cifar100", tmp_path, progress=False)
    assert json.loads((folder / RECORD).read_text()).keys() == {"train", "test", "meta"}
    (folder / "meta").write_bytes(python2_pickle({}))
    with pytest.raises(DataError, match="altered"):
        load_dataset("cifar100", tmp_path)


def test_bad_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "checksum differs": send(ARCHIVE + b"x"),
        "404": send(b"no", status=404),
        "500": send(b"no", status=500),
        "cannot download": send(ARCHIVE[:1000], claimed=len(ARCHIVE)),  # cut short
        "more than 200,000,000 bytes": send(b"x", claimed=10**12),
    }
    for message, answer in answers.items():
        with serve(answer) as address:
            monkeypatch.setenv("ITRD_DATA_URL", address)
            refused(tmp_path, message, address, "ITRD_DATA_URL")
    assert not list(tmp_path.iterdir())


def test_an_endless_answer_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_ARCHIVE", 1_000_000)

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65536)
        except OSError:
            pass

    with serve(endless) as address:
        monkeypatch.setenv("ITRD_DATA_URL", address)
        refused(tmp_path, "more than 1,000,000 bytes")


def test_refused_connections_and_bad_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("ITRD_DATA_URL", f"http://127.0.0.1:{port}")
    refused(tmp_path, "Connection refused; try again")
    for address in ("nonsense", "http://", "file:///etc", "http://[::1"):
        monkeypatch.setenv("ITRD_DATA_URL", address)
        refused(tmp_path, f"cannot download {address.rstrip('/')}/")


def test_silence_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("ITRD_DATA_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        refused(tmp_path, "timed out")


def test_disk_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "cannot put cifar100 into")
    with serve(send(ARCHIVE)) as address:
        monkeypatch.setenv("ITRD_DATA_URL", address)

        def full(*_: object) -> str:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(download, "_copy", full)
        refused(tmp_path / "root", "No space left on device")


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def test_only_expected_files_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra: dict[str, bytes | tarfile.TarInfo] = {
        "../outside": b"x",
        "/tmp/itrd-absolute": b"x",
        f"{FOLDER}/file.txt~": b"x",
        f"{FOLDER}/../../outside": b"x",
        f"{FOLDER}/link": link(f"{FOLDER}/link", "/etc"),
    }
    archive = use(monkeypatch, extra | FILES)
    with serve(send(archive)) as address:
        monkeypatch.setenv("ITRD_DATA_URL", address)
        folder = download_dataset("cifar100", tmp_path / "root", progress=False)
    assert {path.name for path in folder.iterdir()} == {"train", "test", "meta", RECORD}
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert not Path("/tmp/itrd-absolute").exists()


def test_damaged_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = f"{FOLDER}/train"
    without = {path: content for path, content in FILES.items() if path != train}
    folder = tarfile.TarInfo(train)
    folder.type = tarfile.DIRTYPE
    cases: dict[str, bytes] = {
        f"{train} is missing": use(monkeypatch, without),
        f"{train} is no plain file": use(monkeypatch, without | {train: link(train, "/etc/passwd")}),
        "train is no plain file": use(monkeypatch, without | {train: folder}),
        "too many files": use(monkeypatch, {str(i): b"" for i in range(101)}),
        "damaged": b"not an archive",
        "is damaged": ARCHIVE[: len(ARCHIVE) // 2],
    }
    for message, archive in cases.items():
        monkeypatch.setitem(download.MD5, "cifar100", hashlib.md5(archive).hexdigest())
        with serve(send(archive)) as address:
            monkeypatch.setenv("ITRD_DATA_URL", address)
            refused(tmp_path, message)
    assert not list(tmp_path.iterdir())


def test_large_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_FILE", 1000)
    with serve(send(ARCHIVE)) as address:
        monkeypatch.setenv("ITRD_DATA_URL", address)
        refused(tmp_path, "no plain file")


def test_digits_need_no_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="comes with scikit-learn"):
        download_dataset("digits", tmp_path)


def test_copy_writes_and_hashes(tmp_path: Path) -> None:
    digest = download._copy(io.BytesIO(b"abc"), tmp_path / "file")
    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (tmp_path / "file").read_bytes() == b"abc"
