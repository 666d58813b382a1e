"""Docstrings for the site: what they write as Sphinx would, in the Markdown that mkdocstrings reads.

A griffe extension, named in mkdocs.yml. References to what has a page become links; the others stay code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?(?P<target>[\w.]+)`")


def as_markdown(text: str) -> str:
    """Rewrite roles, ``literals`` and the heading of class attributes.

    >>> as_markdown("See :class:`itrd.models.Outputs` or ``kd``.")
    'See <autoref identifier="itrd.models.Outputs" optional><code>Outputs</code></autoref> or `kd`.'
    """
    text = _ROLE.sub(_reference, text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(r"^(\s*)Class attributes:$", r"\1Attributes:", text, flags=re.MULTILINE)


def _reference(role: re.Match[str]) -> str:
    target = role["target"]
    name = target.rpartition(".")[2]
    return f'<autoref identifier="{target}" optional><code>{name}</code></autoref>'


class Markdown(griffe.Extension):
    """Applies :func:`as_markdown` to every docstring of the package."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object when its module has been read."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
