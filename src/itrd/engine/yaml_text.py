"""Settings files from strangers: what their text may be before a YAML loader sees it."""

from __future__ import annotations

from typing import Any

import yaml

MAX_BYTES = 1 << 16  # of a settings file; ours have about a thousand
MAX_DEPTH = 20
MAX_EVENTS = 10_000


def check_yaml(text: str) -> None:
    """Refuse text with aliases, which can stand for more than fits a machine, with tags, or nested deeply.

    A key that stands in a mapping twice is refused, too: a loader would take the last one without a word.

    Raises:
        yaml.YAMLError: it has one of these, is too long, or is no YAML.
    """
    if len(text) > MAX_BYTES:
        raise yaml.YAMLError(f"more than {MAX_BYTES:,} characters")
    nested: list[list[str] | None] = []  # of every mapping the scalars so far, of every sequence None
    for count, event in enumerate(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))):
        if count > MAX_EVENTS:
            raise yaml.YAMLError(f"more than {MAX_EVENTS:,} parts")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError("anchors and aliases are not allowed")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError("tags are not allowed")
        parent = nested[-1] if nested else None
        if isinstance(event, yaml.NodeEvent) and parent is not None:
            # Keys and values take turns.
            word = event.value if isinstance(event, yaml.ScalarEvent) else ""
            if len(parent) % 2 == 0 and word and word in parent[::2]:
                raise yaml.YAMLError(f"{word[:60]!r} is there twice")
            parent.append(word)
        if isinstance(event, yaml.CollectionStartEvent):
            nested.append([] if isinstance(event, yaml.MappingStartEvent) else None)
        elif isinstance(event, yaml.CollectionEndEvent):
            nested.pop()
        if len(nested) > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")


def load_yaml(text: str) -> Any:
    """Return what checked YAML holds: numbers, strings and containers of them.

    Raises:
        yaml.YAMLError: see :func:`check_yaml`; or a value is impossible, such as the 31st of February.
    """
    check_yaml(text)
    try:
        return yaml.safe_load(text)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise yaml.YAMLError(str(error)) from None
