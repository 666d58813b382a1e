"""What is told of errors of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from itrd.engine.given import GivenLogits
from itrd.errors import DataError, first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [("a\nb", "a"), ("\n  a \nb", "a "), ("", "ValueError"), (" \n", "ValueError")],
)
def test_first_line(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line


def test_an_error_without_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise EOFError

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(DataError, match=r"cannot read the logits in l\.npy: EOFError; write them anew"):
        GivenLogits(Path("l.npy"))
