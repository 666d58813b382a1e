"""Small fake CIFAR folders and archives, written the way the official ones were."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from itrd.data.cifar import LAYOUTS


class Python2Pickler:
    """Writes what Python 2's cPickle writes at protocol 2: byte strings, and a memo of every object."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[object, int] = {}

    def dump(self, value: object) -> bytes:
        self.save(value)
        return bytes(self.out + b".")

    def remember(self, key: object = None) -> None:
        index = len(self.memo) + 1
        self.memo[key or ("object", index)] = index
        self.out += b"q" + bytes([index]) if index < 256 else b"r" + struct.pack("<I", index)

    def recall(self, key: object) -> bool:
        index = self.memo.get(key)
        if index is not None:
            self.out += b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)
        return index is not None

    def save(self, value: object) -> None:
        if value is None:
            self.out += b"N"
        elif isinstance(value, bool):
            self.out += b"\x88" if value else b"\x89"
        elif isinstance(value, int):
            self.integer(value)
        elif isinstance(value, bytes):
            self.string(value)
        elif isinstance(value, tuple):
            self.tuple(value)
        elif isinstance(value, list):
            self.out += b"]"
            self.remember()
            self.batches(value, b"a", b"e")
        elif isinstance(value, dict):
            self.out += b"}"
            self.remember()
            self.batches([piece for item in value.items() for piece in item], b"s", b"u", width=2)
        elif isinstance(value, np.ndarray):
            self.array(value)
        else:
            raise TypeError(type(value))

    def batches(self, items: list, one: bytes, many: bytes, width: int = 1) -> None:
        for start in range(0, len(items), 1000 * width):
            part = items[start : start + 1000 * width]
            self.out += b"(" if len(part) > width else b""
            for item in part:
                self.save(item)
            self.out += many if len(part) > width else one

    def integer(self, value: int) -> None:
        if 0 <= value < 256:
            self.out += b"K" + bytes([value])
        elif 0 <= value < 65536:
            self.out += b"M" + struct.pack("<H", value)
        else:
            self.out += b"J" + struct.pack("<i", value)

    def string(self, value: bytes) -> None:
        if len(value) < 8 and self.recall(value):
            return
        if len(value) < 256:
            self.out += b"U" + bytes([len(value)]) + value
        else:
            self.out += b"T" + struct.pack("<i", len(value)) + value
        self.remember(value if len(value) < 8 else None)

    def tuple(self, value: tuple) -> None:
        self.out += b"(" if len(value) > 3 else b""
        for item in value:
            self.save(item)
        self.out += {0: b")", 1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(value), b"t")
        if value:
            self.remember()

    def name(self, module: bytes, name: bytes) -> None:
        if not self.recall(("name", name)):
            self.out += b"c" + module + b"\n" + name + b"\n"
            self.remember(("name", name))

    def array(self, value: np.ndarray) -> None:
        assert value.dtype == np.uint8
        self.name(b"numpy.core.multiarray", b"_reconstruct")
        self.name(b"numpy", b"ndarray")
        self.tuple((0,))
        self.save(b"b")
        self.out += b"\x87"
        self.remember()
        self.out += b"R"
        self.remember()
        self.out += b"("
        self.save(1)
        self.save(value.shape)
        self.name(b"numpy", b"dtype")
        self.tuple((b"u1", 0, 1))
        self.out += b"R"
        self.remember()
        self.tuple((3, b"|", None, None, None, -1, -1, 0))
        self.out += b"b"
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        self.save(fortran)
        self.save(value.tobytes("F" if fortran else "C"))
        self.out += b"t"
        self.remember()
        self.out += b"b"


def python2_pickle(value: object) -> bytes:
    return Python2Pickler().dump(value)


def contents(name: str, train: int = 200, test: int = 100, seed: int = 0) -> dict[str, dict]:
    """File name -> dict of a small fake dataset; ``train`` is split over the training files."""
    layout = LAYOUTS[name]
    rng = np.random.default_rng(seed)

    def part(size: int) -> dict:
        labels = (np.arange(size) % layout.classes).tolist()
        return {
            b"batch_label": b"some batch",
            layout.labels_key: labels,
            b"data": rng.integers(0, 256, (size, 3072), dtype=np.uint8),
            b"filenames": [b"image_%06d.png" % i for i in range(size)],
        }

    files = {file: part(train // len(layout.train)) for file in layout.train}
    files[layout.test] = part(test)
    files[layout.meta] = {layout.names_key: [b"class_%d" % i for i in range(layout.classes)]}
    return files


def write_folder(name: str, root: Path, **sizes: int) -> Path:
    folder = root / LAYOUTS[name].folder
    folder.mkdir(parents=True)
    for file, content in contents(name, **sizes).items():
        (folder / file).write_bytes(python2_pickle(content))
    return folder


def make_archive(members: dict[str, bytes | tarfile.TarInfo]) -> tuple[bytes, str]:
    """Return a tar.gz of the members and its md5; a TarInfo is added as it is, without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    archive = buffer.getvalue()
    return archive, hashlib.md5(archive).hexdigest()


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serve(answer: Answer) -> Iterator[str]:
    """Serve on the loopback interface; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(body: bytes, status: int = 200, claimed: int | None = None) -> Answer:
    """Answer every request with the body, claiming a length."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if claimed is None else claimed))
        handler.end_headers()
        handler.wfile.write(body)

    return answer
