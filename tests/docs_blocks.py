"""The code blocks of README and docs: found, checked, executed.

Pages are Markdown. Their Python blocks run one after the other in one namespace, in a process and an empty folder of
the page's own. There ``digits`` has 60 images to train on and 40 to test on, and ``data/`` holds a fake CIFAR-100 of 20
and 20; all else is as the page has it. Commands (blocks marked sh or console, and indented ones) are held against the
real parsers. Remarks in HTML comments, which no reader sees, say otherwise:

<!-- test: skip WHY -->        the next block is not executed, because it needs WHY
<!-- test: run -->             the commands of the next block are executed as well
<!-- test: setup
PYTHON -->                     runs before what follows: names that the reader has and the page does not

    python tests/docs_blocks.py PAGE      executes a page in the current folder
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
COMMANDS = ("sh", "console", "")  # "" is an indented block
DATA = ("json", "yaml", "text")

_REMARK = re.compile(r"<!-- test: (?P<what>\w+)(?P<rest>.*?)-->", re.DOTALL)
_SNIPPET = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)


class PageError(Exception):
    """A block that the page may not have."""


@dataclass(frozen=True)
class Block:
    """One block of a page, or a remark's setup.

    Attributes:
        page: relative to the repository.
        line: of its first line of code, counted from 1.
        language: ``setup`` for a remark's.
        code: its text.
        run: whether commands are executed.
        skip: why it is not executed; empty if it is.
    """

    page: str
    line: int
    language: str
    code: str
    run: bool = False
    skip: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README and every page of docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, from top to bottom."""
    name = page.relative_to(ROOT).as_posix()
    found: list[Block] = []
    run, skip = False, ""
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        line = 0 if token.map is None else token.map[0] + 1
        if token.type == "html_block":
            for remark in _REMARK.finditer(token.content):
                what, rest = remark["what"], remark["rest"]
                if what == "setup":
                    found.append(Block(name, line + 1, "setup", rest.lstrip("\n")))
                elif what == "run":
                    run = True
                elif what == "skip" and rest.strip():
                    skip = rest.strip()
                else:
                    raise PageError(f"{name}:{line}: a remark is: setup, run, or skip and why")
        elif token.type in ("fence", "code_block"):
            first = line + (token.type == "fence")
            found.append(Block(name, first, token.info.strip(), _completed(token.content), run, skip))
            run, skip = False, ""
    return found


def inline_code(page: Path) -> Iterator[tuple[int, str]]:
    """Line and text of what a page writes in `backticks`; of a paragraph, its first line."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        for child in token.children or ():
            if child.type == "code_inline":
                yield (0 if token.map is None else token.map[0] + 1), child.content


def _completed(code: str) -> str:
    """With the files that the site puts in."""
    return _SNIPPET.sub(lambda found: (ROOT / found[1]).read_text(encoding="utf-8"), code)


def commands_of(block: Block) -> Iterator[tuple[int, list[str]]]:
    """The commands of a block, each with its line and its words, settings of the environment left out.

    Of a console block, what stands after ``$``; its other lines are output.
    """
    line, text = block.line, ""
    for number, written in enumerate(block.code.splitlines(), block.line):
        if block.language == "console" and not text:
            if not written.startswith("$ "):
                continue
            written = written[2:]
        line, text = (line, text) if text else (number, "")
        text += written
        if text.endswith("\\"):
            text = text[:-1] + " "
            continue
        words = shlex.shlex(text, posix=True, punctuation_chars=";&|")
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if word and set(word) <= set(";&|"):
                while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                    command = command[1:]
                if command:
                    yield line, command
                command = []
            else:
                command.append(word)
        text = ""


def provide_data() -> None:
    """Make both datasets small."""
    from data_helpers import write_folder
    from itrd.data import digits

    whole = digits.load
    digits.load = lambda *where: replace(whole(*where).subset(train=60, test=40), name="digits")
    write_folder("cifar100", Path("data"), train=20, test=20)


def execute(page: Path) -> None:
    """Execute a page's blocks here, in order."""
    from itrd.cli import main

    provide_data()
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.skip:
            continue
        if block.language in ("python", "setup"):
            padded = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's lines
            exec(compile(padded, block.page, "exec"), namespace)
        elif block.run:
            for line, words in commands_of(block):
                if words[0] == "itrd" and main(words[1:]) != 0:
                    raise SystemExit(f"{block.page}:{line}: {' '.join(words)} failed")


def is_data(block: Block) -> None:
    """Parse a block of JSON or YAML."""
    import yaml

    if block.language == "json":
        json.loads(block.code)
    elif block.language == "yaml":
        yaml.safe_load(block.code)


if __name__ == "__main__":
    import torchvision_ops  # noqa: F401 - before anything imports torchvision

    execute(Path(sys.argv[1]))
