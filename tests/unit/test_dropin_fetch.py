"""scripts/fetch_pretrained_teachers.sh against a server on the loopback interface."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from data_helpers import serve

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_pretrained_teachers.sh"
TEACHERS = ["wrn_40_2", "resnet56", "resnet110", "resnet32x4", "vgg13", "ResNet50"]
TOOLS = ["sh", "awk", "cut", "dd", "tr", "mkdir", "mv", "rm", "rmdir", "grep", "sha256sum"]

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="no POSIX shell")


class Server:
    """Answers with the content of each address; 404 where there is none."""

    def __init__(self) -> None:
        self.files = {
            f"/{t}_vanilla/ckpt_epoch_240.pth": b"\x80\x02 weights of " + t.encode() for t in TEACHERS
        }
        self.asked: list[str] = []
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(handler.path)
        body = self.files.get(handler.path)
        handler.send_response(404 if body is None else 200)
        handler.send_header("Content-Length", str(len(body or b"")))
        handler.end_headers()
        handler.wfile.write(body or b"")


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    with serve(made.answer) as made.url:
        yield made


def fetch(folder: Path, server: Server, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ITRD_TEACHERS_URL": server.url, **environment}
    return subprocess.run(
        ["sh", str(SCRIPT)], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


def path_of(folder: Path, teacher: str) -> Path:
    return folder / f"save/models/{teacher}_vanilla/ckpt_epoch_240.pth"


@pytest.mark.parametrize("client", ["curl", "wget"])
def test_one_address_fails(client: str, tmp_path: Path, server: Server) -> None:
    if shutil.which(client) is None:
        pytest.skip(f"no {client}")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in [*TOOLS, client]:
        (tools / tool).symlink_to(str(shutil.which(tool)))
    gone = "/resnet110_vanilla/ckpt_epoch_240.pth"
    kept = server.files.pop(gone)
    ran = fetch(tmp_path, server, PATH=str(tools))
    assert ran.returncode == 1
    assert f"{server.url}{gone} cannot be fetched" in ran.stderr
    for teacher in TEACHERS:
        there = path_of(tmp_path, teacher)
        assert there.exists() == (teacher != "resnet110")
        if there.exists():
            assert names_in(there.parent) == ["ckpt_epoch_240.pth"]
            assert there.read_bytes().endswith(teacher.encode())
    assert not path_of(tmp_path, "resnet110").parent.exists()

    server.files[gone] = kept
    server.asked.clear()
    ran = fetch(tmp_path, server, PATH=str(tools))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert server.asked == [gone]
    lines = (tmp_path / "save/models/SHA256SUMS").read_text().splitlines()
    recorded = {name: checksum for checksum, name in (line.split("  ") for line in lines)}
    assert recorded == {
        f"{t}_vanilla/ckpt_epoch_240.pth": hashlib.sha256(path_of(tmp_path, t).read_bytes()).hexdigest()
        for t in TEACHERS
    }


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_altered_and_unrecorded_files(tmp_path: Path, server: Server) -> None:
    own = path_of(tmp_path, "vgg13")
    own.parent.mkdir(parents=True)
    own.write_bytes(b"trained here")
    assert fetch(tmp_path, server).returncode == 0
    assert own.read_bytes() == b"trained here"

    path_of(tmp_path, "resnet56").write_bytes(b"altered")
    path_of(tmp_path, "ResNet50").unlink()
    server.files["/ResNet50_vanilla/ckpt_epoch_240.pth"] = b"\x80\x02 something else"
    ran = fetch(tmp_path, server)
    assert ran.returncode == 1
    altered, replaced = ran.stderr.splitlines()
    assert "resnet56_vanilla" in altered
    assert "differs" in altered
    assert "ResNet50_vanilla" in replaced
    assert "NOT the file that came before" in replaced
    assert not path_of(tmp_path, "ResNet50").exists()


@pytest.mark.parametrize("body", [b"", b"<html>moved</html>"])
def test_what_is_no_checkpoint_is_not_kept(body: bytes, tmp_path: Path, server: Server) -> None:
    server.files["/vgg13_vanilla/ckpt_epoch_240.pth"] = body
    ran = fetch(tmp_path, server)
    assert ran.returncode == 1
    assert "not a checkpoint" in ran.stderr
    assert not path_of(tmp_path, "vgg13").exists()
    assert path_of(tmp_path, "ResNet50").exists()
