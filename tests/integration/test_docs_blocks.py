"""Every code block of README and docs does what it says; see tests/docs_blocks.py."""

from __future__ import annotations

import dataclasses
import doctest
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import itrd.api
from docs_blocks import COMMANDS, DATA, ROOT, Block, blocks_of, commands_of, inline_code, is_data, pages
from itrd.cli.parser import GROUPS, RUNS, VERBS, build_parser
from itrd.dropin.options import student_options, teacher_options
from itrd.errors import UserError
from itrd.methods import create_objective
from itrd.models import list_models

PAGES = pages()


def test_examples_in_docstrings_do_what_they_say() -> None:
    found = doctest.testmod(itrd.api, extraglobs={"itrd": itrd})
    assert found.attempted == 5
    assert found.failed == 0


BLOCKS = {page: blocks_of(page) for page in PAGES}
EXECUTED = [
    page
    for page, blocks in BLOCKS.items()
    if any(not block.skip and (block.language == "python" or block.run) for block in blocks)
]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --- Python ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", EXECUTED, ids=name_of)
def test_python_runs(page: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "docs_blocks.py"), str(page)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_is_skipped_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Skipping is for what needs a network, a GPU or minutes; the list is in the test's output."""
    skipped = [block for blocks in BLOCKS.values() for block in blocks if block.skip]
    with capsys.disabled():
        for block in skipped:
            print(f"\nnot executed: {block}: {block.skip}", end="")
    python = [block for blocks in BLOCKS.values() for block in blocks if block.language == "python"]
    assert sum(bool(block.skip) for block in python) <= len(python) / 4


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_known_kind(page: Path) -> None:
    for block in BLOCKS[page]:
        assert block.language in (*COMMANDS, *DATA, "python", "setup"), f"{block}: which language?"
        is_data(block)


# --- commands -------------------------------------------------------------------------------------


def flags(target: object) -> set[str]:
    """The flags of a verb, from the settings class or the function behind it."""
    if dataclasses.is_dataclass(target):
        names = {field.name for field in dataclasses.fields(target)} | {"config"}
    else:
        assert callable(target)
        names = set(inspect.signature(target).parameters)
    return {f"--{name}" for name in names | {"help", "print_config"}}


FLAGS = {verb: flags(target) for verb, target in VERBS.items()}
FLAGS |= {
    f"{group} {verb}": flags(target) for group, (_, of) in GROUPS.items() for verb, target in of.items()
}


def known_flags(words: list[str]) -> None:
    """Whether the verb exists, and has these flags under these names: the parser would take abbreviations."""
    verb = " ".join(words[1:3]) if words[1] in GROUPS else words[1]
    assert verb in FLAGS, f"no command itrd {verb}"
    for word in words:
        flag = word.partition("=")[0]
        assert not flag.startswith("--") or flag in FLAGS[verb], f"itrd {verb} has no {flag}"


def parsed(words: list[str]) -> None:
    """Hold a command of ``itrd`` against the parser and the settings it makes; flags in full."""
    known_flags(words)
    if "..." in words:  # the reader's own teacher and student
        at = words.index("...")
        words = [*words[:at], "--teacher", "t", "--student", "resnet8", *words[at + 1 :]]
    try:
        found = build_parser().parse_args(words[1:])
    except SystemExit as stop:
        if stop.code != 0:
            pytest.fail(f"refused: {' '.join(words)}")
        return  # --help, --print_config
    verb = found.command
    if verb not in RUNS:
        return
    settings = {key: value for key, value in found[verb].as_dict().items() if key != "config"}
    config = RUNS[verb](**settings)
    assert config.trained_model in list_models() or ":" in config.trained_model, config.trained_model
    create_objective(settings.get("method") or "none")


def script(words: list[str]) -> None:
    """A file of this repository, or a module, that knows these flags."""
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2]) is not None, words[2]
        if words[2] == "itrd":
            parsed(words[2:])
        return
    file = ROOT / words[1]
    assert file.is_file(), f"no {words[1]}"
    if file.name in ("train_student.py", "train_teacher.py"):
        parse = student_options if "student" in file.name else teacher_options
        try:
            parse(words[2:])
        except SystemExit as stop:
            pytest.fail(f"{' '.join(words)}: exit status {stop.code}")
        return
    source = file.read_text(encoding="utf-8")
    for word in words[2:]:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in source, f"{words[1]} does not know {word}"


def torchrun(words: list[str]) -> None:
    at = words.index("-m")
    assert words[at + 1] == "itrd"
    parsed(words[at + 1 :])


def make(words: list[str]) -> None:
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(words[1:]) <= set(rules), " ".join(words)


def pip(words: list[str]) -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"(?:itrd|\.)\[([\w,]+)\]", " ".join(words)):
        for name in extra.split(","):
            assert re.search(rf"^{name} = \[", declared, re.MULTILINE), f"no extra {name}"


def shell(words: list[str]) -> None:
    """A script, or the environment that ``make`` creates."""
    assert (ROOT / words[1]).is_file() or words[1].startswith(".venv/"), f"no {words[1]}"


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "itrd": parsed,
    "python": script,
    "torchrun": torchrun,
    "make": make,
    "pip": pip,
    "sh": shell,
    "sbatch": shell,
    ".": shell,
    "mkdocs": lambda words: None,
}


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language in COMMANDS for b in BLOCKS[p])], ids=name_of
)
def test_commands_are_those_that_exist(page: Path) -> None:
    for block in BLOCKS[page]:
        if block.language in COMMANDS and not block.skip:
            check(block)


def check(block: Block) -> None:
    for line, words in commands_of(block):
        program = words[0].rpartition("/")[2]
        assert program in PROGRAMS, f"{block.page}:{line}: {words[0]}: say in this test how it is checked"
        try:
            PROGRAMS[program](words)
        except (UserError, AssertionError, pytest.fail.Exception) as error:
            pytest.fail(f"{block.page}:{line}: {error}")


def test_flags_and_verbs_in_the_text_exist() -> None:
    files = [*(ROOT / "benchmarks").glob("*.py"), ROOT / "src" / "itrd" / "dropin" / "options.py"]
    others = {flag for file in files for flag in re.findall(r'"(--\w+)"', file.read_text(encoding="utf-8"))}
    everywhere = {"--version", "--print_completion", "--require-hashes"}.union(others, *FLAGS.values())
    for page in PAGES:
        for line, code in inline_code(page):
            if code.startswith("--"):
                assert re.split(r"[ =]", code)[0] in everywhere, f"{name_of(page)}:{line}: {code}"
            if code.startswith("itrd ") and not code.startswith("itrd --"):
                try:
                    known_flags(code.split())
                except AssertionError as error:
                    pytest.fail(f"{name_of(page)}:{line}: {error}")


# --- the checks themselves -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("sh", "itrd distill --teacher t --student resnet8 --epoch 3"),
        ("sh", "itrd distill --teacher t --student resnet9"),
        ("", "itrd distill --teacher t --student resnet8 --method 'kd + itdr'"),
        ("", "itrd train --model resnet8 --epochs 0"),
        ("console", "$ itrd modells\nwrn_40_2"),
        ("sh", "make quickstarts"),
        ("sh", "python train_student.py --path_t x --modle_s resnet8"),
        ("sh", "python benchmarks/kill.py --kill 3"),
        ("sh", "pip install 'itrd[timmm]'"),
        ("sh", "pip install ray; itrd bench runn"),
        ("sh", "rm -rf runs"),
    ],
)
def test_misspelt_commands_are_noticed(language: str, code: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(Block("page", 1, language, code))


def test_blocks_and_remarks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import docs_blocks

    monkeypatch.setattr(docs_blocks, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "Text\n\n<!-- test: setup\nx = 1\n-->\n\n```python\ny = x\n```\n\n    itrd models  # all\n\n"
        "<!-- test: skip a GPU -->\n```python\nz\n```\n\n<!-- test: run -->\n\n"
        "```sh\nA=1 itrd \\\n  methods; itrd models\n```\n"
    )
    setup, first, indented, skipped, commands = docs_blocks.blocks_of(page)
    assert (setup.language, setup.code, setup.line) == ("setup", "x = 1\n", 4)
    assert (first.code, first.line, first.skip) == ("y = x\n", 8, "")
    assert list(commands_of(indented)) == [(11, ["itrd", "models"])]
    assert (skipped.skip, skipped.run) == ("a GPU", False)
    assert commands.run
    assert [words for _, words in commands_of(commands)] == [["itrd", "methods"], ["itrd", "models"]]
    page.write_text("<!-- test: skip -->\n")
    with pytest.raises(docs_blocks.PageError):
        docs_blocks.blocks_of(page)


def test_tables_are_those_that_were_measured() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "pages.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = ("binary", "data", "performance", "reliability")
    assert done.stdout == "".join(f"docs/{page}.md: as measured\n" for page in pages)
