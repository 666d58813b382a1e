"""Docstrings for the site: what they write as Sphinx would, in the Markdown that mkdocstrings reads.

A griffe extension, named in mkdocs.yml. References to what has a page become links; the others stay code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?(?P<target>[\w.]+)`")


def as_markdown(text: str, full_name: Callable[[str], str]) -> str:
    """Rewrite roles, double backticks and the heading of class attributes.

    Args:
        text: a docstring.
        full_name: gives the dotted path of a name as the docstring's object sees it.
    """

    def reference(role: re.Match[str]) -> str:
        name = role["target"].rpartition(".")[2]
        return f'<autoref identifier="{full_name(role["target"])}" optional><code>{name}</code></autoref>'

    text = _ROLE.sub(reference, text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(r"^(\s*)Class attributes:$", r"\1Attributes:", text, flags=re.MULTILINE)


class Markdown(griffe.Extension):
    """Applies :func:`as_markdown` to every docstring of the package."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object when its package has been read."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, lambda name: _resolved(obj, name))


def _resolved(obj: griffe.Object, name: str) -> str:
    try:
        return obj.resolve(name)
    except griffe.NameResolutionError:
        return name  # a full path already
