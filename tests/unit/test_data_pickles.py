"""The reader of CIFAR's pickles: reads the real format, runs nothing, fails in one way only."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_helpers import python2_pickle
from itrd.data import pickles
from itrd.data.pickles import read_pickle
from itrd.errors import DataError

IMAGES = np.arange(4 * 5, dtype=np.uint8).reshape(4, 5)
CONTENT = {b"data": IMAGES, b"labels": [0, 1, 300, 70_000], b"title": b"a batch", b"one": [b"x"]}
VALID = python2_pickle(CONTENT)


def check_content(found: dict) -> None:
    assert found.keys() == CONTENT.keys()
    np.testing.assert_array_equal(found[b"data"], IMAGES)
    assert found[b"data"].dtype == np.uint8
    assert {k: v for k, v in found.items() if k != b"data"} == {
        k: v for k, v in CONTENT.items() if k != b"data"
    }


def test_reads_what_python_2_wrote() -> None:
    check_content(read_pickle(VALID, "file"))


def test_the_helper_writes_what_python_reads() -> None:
    """The other tests are worth something only if their files are true pickles."""
    check_content(pickle.loads(VALID, encoding="bytes"))


def test_large_files_with_many_memo_entries() -> None:
    content = {b"names": [b"name number %d" % i for i in range(3000)], b"data": np.ones((30, 3072), np.uint8)}
    found = read_pickle(python2_pickle(content), "file")
    assert found[b"names"] == content[b"names"]
    np.testing.assert_array_equal(found[b"data"], content[b"data"])


def test_fortran_order() -> None:
    found = read_pickle(python2_pickle({b"data": np.asfortranarray(IMAGES)}), "file")
    np.testing.assert_array_equal(found[b"data"], IMAGES)


def test_numpy_2_names_and_flags() -> None:
    raw = VALID.replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    check_content(read_pickle(raw, "file"))
    booleans = raw.replace(b"u1q\x0bK\x00K\x01", b"u1q\x0b\x89\x88")
    assert booleans != raw
    check_content(read_pickle(booleans, "file"))


HOSTILE = {
    "system": (b"\x80\x02cos\nsystem\nU\x04true\x85R.", "os system"),
    "eval": (b"\x80\x02c__builtin__\neval\nU\x011\x85R.", "__builtin__ eval"),
    "other numpy": (b"\x80\x02cnumpy\nload\nU\x011\x85R.", "numpy load"),
    "python 3": (pickle.dumps({b"data": b"1"}, protocol=4), "protocol 2"),
    "text protocol": (pickle.dumps({b"data": 1}, protocol=0), "protocol 2"),
    "instance": (b"\x80\x02(ios\nsystem\n.", "INST"),
    "object": (b"\x80\x02(cos\nsystem\no.", "os system"),
    "persistent id": (b"\x80\x02U\x01xQ.", "BINPERSID"),
    "extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "new object": (b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ"),
    "long of 2 GB": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "LONG4"),
    "call of ndarray": (b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85R.", "object other than"),
    "call of a list": (b"\x80\x02])R.", "object other than"),
    "state of a dict": (b"\x80\x02}}b.", "array"),
    "huge reconstruct": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\xff\xff\xff\x7f\x85U\x01b\x87R.",
        "object other than",
    ),
    "other dtype": (python2_pickle({b"d": IMAGES}).replace(b"u1", b"O8"), "object other than"),
    "other dtype state": (python2_pickle({b"d": IMAGES}).replace(b"U\x01|", b"U\x01<"), "array of uint8"),
    "shape too large": (python2_pickle({b"d": IMAGES}).replace(b"K\x04K\x05", b"K\x04K\x06"), "shape"),
    "shape zero": (python2_pickle({b"d": IMAGES}).replace(b"K\x04K\x05", b"K\x00K\x05"), "shape"),
    "number as key": (b"\x80\x02}K\x01K\x02s.", "dict of strings"),
    "list as key": (b"\x80\x02}]K\x02s.", "dict of strings"),
    "append to a tuple": (b"\x80\x02)K\x02a.", "no list"),
    "no dict": (b"\x80\x02].", "no dict"),
    "long number": (b"\x80\x02\x8a\xff.", "255 bytes"),
    "negative length": (b"\x80\x02T\xff\xff\xff\xff.", "cut short"),
    "length past the end": (b"\x80\x02T\xff\xff\xff\x7fabc.", "cut short"),
    "no such memo": (b"\x80\x02h\x07.", "malformed"),
    "empty stack": (b"\x80\x02s.", "malformed"),
    "no mark": (b"\x80\x02}u.", "malformed"),
    "nothing": (b"", "protocol 2"),
    "no stop": (b"\x80\x02}", "malformed"),
    "bytes after the end": (VALID + b"x", "too early"),
    "two things": (b"\x80\x02}}.", "too early"),
    "endless name": (b"\x80\x02c" + b"x" * 5000 + b"\ny\n.", "names"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_everything_else_is_refused_in_one_line(kind: str) -> None:
    raw, message = HOSTILE[kind]
    with pytest.raises(DataError, match=message) as caught:
        read_pickle(raw, "some/file")
    text = str(caught.value)
    assert text.startswith("cannot read some/file: ")
    assert "\n" not in text
    assert len(text) < 250


def test_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "executed"),)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(DataError):
            read_pickle(pickle.dumps({b"data": Evil()}, protocol), "file")
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Evil()))  # the same bytes do harm where they are unpickled
    assert (tmp_path / "executed").exists()


def test_a_large_memo_index_takes_no_memory() -> None:
    raw = b"\x80\x02}r\xff\xff\xff\xff."
    tracemalloc.start()
    assert read_pickle(raw, "file") == {}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("body", [b"}", b"(", b"]", b"}q\x00", b"(N", b"]\x85"])
def test_bombs_are_bounded(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_OPCODES", 50_000)
    with pytest.raises(DataError, match="more than 50,000 opcodes"):
        read_pickle(b"\x80\x02" + body * 50_000, "file")


def test_deep_and_cyclic_structures() -> None:
    deep = b"\x80\x02}U\x01a)" + b"\x85" * 100_000 + b"s."
    assert isinstance(read_pickle(deep, "file")[b"a"], tuple)
    cyclic = b"\x80\x02}U\x01a]q\x00h\x00as."
    assert isinstance(read_pickle(cyclic, "file")[b"a"], list)
    deep_state = b"\x80\x02" + b"cnumpy\ndtype\n)" + b"\x85" * 100_000 + b"R."
    with pytest.raises(DataError):
        read_pickle(deep_state, "file")


def well_formed(found: dict) -> bool:
    """Nothing but inert values, at the top level and one below."""
    inert = (bytes, int, bool, type(None), list, tuple, dict, np.ndarray, memoryview)
    below = [item for value in found.values() if type(value) in (list, tuple) for item in value]
    stand_ins = (pickles._Name, pickles._UInt8, pickles._Array)
    return all(type(key) is bytes for key in found) and all(
        isinstance(value, inert + stand_ins) for value in [*found.values(), *below]
    )


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    raw = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        kind = draw(st.sampled_from(["change", "insert", "delete", "cut", "repeat"]))
        if kind == "change":
            raw[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "insert":
            raw[at:at] = draw(st.binary(min_size=1, max_size=6))
        elif kind == "delete":
            del raw[at : at + draw(st.integers(1, 12))]
        elif kind == "repeat":
            raw[at:at] = raw[at : at + draw(st.integers(1, 30))]
        else:
            del raw[at:]
    return bytes(raw)


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(mutated())
def test_mutated_files_load_or_are_refused(raw: bytes) -> None:
    with contextlib.suppress(DataError):
        assert well_formed(read_pickle(raw, "file"))


OPCODES = st.sampled_from(sorted(pickles._OPCODES)).map(lambda code: bytes([code]))
PIECES = st.one_of(
    OPCODES,
    st.binary(max_size=3),
    st.sampled_from(
        [b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"U\x01b", b"q\x00h\x00", b"K\x00\x85", b"(", b"."]
    ),
)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.lists(PIECES, max_size=40))
def test_random_programs_load_or_are_refused(pieces: list[bytes]) -> None:
    with contextlib.suppress(DataError):
        assert well_formed(read_pickle(b"\x80\x02" + b"".join(pieces) + b".", "file"))


def test_every_truncation_is_refused() -> None:
    for end in range(len(VALID)):
        with pytest.raises(DataError):
            read_pickle(VALID[:end], "file")


def test_every_single_byte_change_is_survived() -> None:
    start = time.monotonic()
    for at in range(len(VALID)):
        for byte in {0, 0x28, 0x2E, 0x62, 0x63, 0x68, 0x80, 0xFF, VALID[at] ^ 1, VALID[at] ^ 0x80}:
            with contextlib.suppress(DataError):
                read_pickle(VALID[:at] + bytes([byte]) + VALID[at + 1 :], "file")
    assert time.monotonic() - start < 20
