"""The site builds without a warning, fetches nothing from elsewhere, and says of the methods what their classes say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from docs_blocks import ROOT
from itrd.bench.check import check_documents
from itrd.bench.documents import markdown_files
from itrd.bench.ledger import Ledger
from itrd.methods import METHODS, Method, method_class

pytest.importorskip("material", reason="needs the extra docs")
pytest.importorskip("mkdocstrings", reason="needs the extra docs")

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; every warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    return folder


class Loaded(HTMLParser):
    """Collects what a browser would fetch with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed", "object"):
            self.addresses += [value for key in ("src", "data", "srcset") if (value := values.get(key))]
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.addresses.append(values.get("href") or "")


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert loaded.addresses
        foreign = [a for a in loaded.addresses if re.match(r"(?:\w+:)?//", a)]
        assert not foreign, f"{page.relative_to(site)} loads {foreign}"
    for sheet in site.rglob("*.css"):
        assert not re.search(
            r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")
        ), sheet


def test_docstrings_become_markdown(site: Path) -> None:
    api = {path.parent.name: path.read_text(encoding="utf-8") for path in (site / "api").rglob("*.html")}
    assert 'id="itrd.engine.config.DistillConfig"' in api["settings"]
    assert "teacher_table" in api["settings"]
    assert 'href="settings/#itrd.engine.config.DistillConfig"' in api["api"]
    assert 'href="#itrd.models.base.Outputs"' in api["models"]  # a name that only its module resolves
    for name, text in api.items():
        assert not re.search(r":(?:class|func|meth|mod|attr|data):", text), name
        assert "<autoref" not in text, name


def test_every_page_can_be_searched(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    for page in ("choose-a-method/", "your-own-model/", "faq/", "api/settings/", "methods/"):
        assert f'"location":"{page}' in index


def test_every_figure_is_the_ledgers() -> None:
    documents = markdown_files(f"{ROOT / 'README.md'},{DOCS}")
    assert check_documents(documents, Ledger(ROOT / "results"), ROOT / "zoo") == []


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text)) & set(METHODS)


def bullet(beginning: str) -> str:
    """The bullet of choose-a-method.md that begins with this in bold."""
    page = (DOCS / "choose-a-method.md").read_text(encoding="utf-8")
    found = re.search(rf"^- \*\*{beginning}.*?(?=^- |\n\n)", page, re.MULTILINE | re.DOTALL)
    assert found is not None, beginning
    return found[0]


def test_what_the_text_says_of_methods_is_so() -> None:
    classes = {name: method_class(name) for name in METHODS}
    memory = {name for name, cls in classes.items() if cls.per_sample}
    assert names_in(bullet("A memory for every training sample")) == memory
    staged = {name for name, cls in classes.items() if cls.first_stage is not Method.first_stage}
    assert names_in(bullet("A stage before the training")) == staged
    page = (DOCS / "faq.md").read_text(encoding="utf-8")
    answer = page.partition("\n### Teacher and student have different classes\n")[2].partition("\n### ")[0]
    named = names_in(answer)
    assert len(named) >= 4
    assert not any("logits" in classes[name].reads for name in named)
