"""Files that want to do harm: each is refused in one line, and nothing of it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mutations
import pytest
import yaml

from fuzz_formats import FORMATS
from itrd.cli import main
from itrd.engine.checkpoint import read_weights
from itrd.engine.config import DistillConfig, TrainConfig
from itrd.engine.folder import RunFolder
from itrd.engine.networks import load_network
from itrd.engine.yaml_text import load_yaml
from itrd.errors import CheckpointError, RunFolderError, UserError
from itrd.files import read_limited

HERE = Path(__file__).parent


# --- mutations -------------------------------------------------------------------------------------------


def fuzz(name: str, count: int, seed: int) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, str(HERE.parent / "fuzzing.py"), name, str(count), str(seed)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


@pytest.mark.parametrize("name", FORMATS)
def test_a_thousand_mutations(name: str) -> None:
    mutations.check(fuzz(name, 1000, 0), 1000)


@pytest.mark.parametrize(
    "code", ["import os; os.system('true')", "open('/tmp/written', 'w')", "import os; os.fork()"]
)
def test_the_sandbox_of_the_mutations_notices(code: str) -> None:
    setup = (
        f"import sys; sys.path.insert(0, {str(HERE.parent)!r}); from pathlib import Path; import fuzzing\n"
    )
    watched = f"{setup}fuzzing.watch(Path('/nowhere'))\n{code}"
    assert subprocess.run([sys.executable, "-c", watched], capture_output=True).returncode == 99


# --- what is no plain file -------------------------------------------------------------------------------


def test_devices_pipes_folders_and_giants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, giant = tmp_path / "pipe.pth", tmp_path / "giant.pth"
    os.mkfifo(pipe)
    with giant.open("wb") as file:
        file.truncate(1 << 40)  # takes no space
    for path in (pipe, giant, tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"plain file|larger"):
            read_limited(path, 1 << 30)
    for path in (pipe, giant):
        with pytest.raises(CheckpointError, match="cannot read checkpoint"):
            read_weights(path)
        with pytest.raises(UserError):
            load_network(f"resnet8:{path}")
    assert read_limited(Path(__file__), 1 << 20) == Path(__file__).read_bytes()


# --- settings --------------------------------------------------------------------------------------------

BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(24)
)
YAML = {
    "aliases without end": BOMB,
    "an alias of itself": "a: &a [*a]",
    "merge": "a: &a {b: 1}\nc: {<<: *a}",
    "python": "seed: !!python/object/apply:os.system ['touch executed']",
    "python name": "seed: !!python/name:os.system",
    "own tag": "seed: !x 1",
    "set": "seed: !!set {a, b}",
    "deep": "seed: " + "[" * 100,
    "very deep": "[" * 60_000,
    "long": "x: " + "y" * 70_000,
    "many": "[" + "1," * 20_000 + "1]",
    "control character": "seed: \x07",
    "impossible date": "seed: 2001-02-31",
    "twice": "seed: 1\nepochs: 2\nseed: 3",
    "twice inside": "a: [{b: 1, b: 2}]",
}


@pytest.mark.parametrize("kind", YAML)
def test_yaml(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    text = YAML[kind]
    started = time.monotonic()
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)
    Path("c.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", "c.yaml"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("itrd: error: ")
    assert error.count("\n") == 1
    assert len(error) < 1300
    assert time.monotonic() - started < 5
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize(
    "key", ["model", "seed", "epochs", "milestones", "out", "data", "resume", "precision"]
)
def test_no_setting_builds_an_object(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('executed').touch()\nclass C: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    value = {"class_path": "evil.C", "init_args": {}}
    Path("c.yaml").write_text(yaml.safe_dump({"model": "resnet8", key: value}))
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", "c.yaml"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("itrd: error: ")
    assert not Path("executed").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("path", ["/dev/zero", ".", "nothing.yaml", "pipe"])
def test_settings_that_are_no_file(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", path])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_another_spelling_of_the_same_loss_is_the_same_run(tmp_path: Path) -> None:
    config = DistillConfig(teacher="resnet14", student="resnet8", data="digits", method="itrd").resolved()
    folder = RunFolder(tmp_path / "run", config)
    folder.open()
    folder.close()
    config.resume = True
    for same in (" itrd", "itrd()", "1*itrd(alpha=1.01)", "1.0*ce + itrd"):
        config.method = same
        folder.check()
    for other in ("itrd(alpha=1.5)", "0.5*itrd", "kd", "no_such"):
        config.method = other
        with pytest.raises(RunFolderError, match=r"holds another run \(method 'itrd' not"):
            folder.check()


def test_a_run_folder_with_hostile_settings(tmp_path: Path) -> None:
    config = TrainConfig(model="resnet8", data="digits").resolved()
    folder = RunFolder(tmp_path / "run", config)
    folder.open()
    folder.close()
    for text in (*YAML.values(), "", "- 1", "x" * 60_000):
        folder.settings.write_text(text)
        with pytest.raises(RunFolderError, match="is damaged"):
            folder.check()
    config.resume = True
    folder.settings.write_text(yaml.safe_dump(config.identity()))
    for text in ("[" * 100_000, "1", "{", "\xff"):
        folder.inputs_file.write_text(text)
        folder.inputs = {"data": "0"}
        with pytest.raises(RunFolderError, match=r"inputs\.json is damaged"):
            folder.open()
    folder.settings.write_text("seed: " + "9" * 4000)
    with pytest.raises(RunFolderError, match="holds another run") as caught:
        folder.check()
    assert len(str(caught.value)) < 500
