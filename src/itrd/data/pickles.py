"""Reads the pickles of CIFAR without unpickling anything.

The files are Python 2 pickles of protocol 2. Unpickling a file runs whatever code it names, so this
is an interpreter of its own for the few opcodes those files have. It knows three names (numpy's
``_reconstruct``, ``ndarray`` and ``dtype``), for which it has inert stand-ins, and builds nothing
but dicts, lists, tuples, numbers, byte strings and uint8 arrays. It looks nothing up, imports nothing
and does not recurse. Memory is bounded by the size of the file and ``MAX_OPCODES``: an opcode makes
at most one small object, and long strings are views of the file's bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from itrd.errors import DataError

MAX_OPCODES = 1_000_000  # the largest official file has about 250,000
_VIEW_FROM = 1 << 16  # strings of so many bytes are not copied

# The pickled state of the one dtype there may be: version, byte order, no fields, no alignment.
_UINT8_STATE = (3, b"|", None, None, None, -1, -1, 0)


class _Name:
    """Stands for a global that a file may name."""

    def __init__(self, text: str) -> None:
        self.text = text


_RECONSTRUCT = _Name("numpy.core.multiarray _reconstruct")
_NDARRAY = _Name("numpy ndarray")
_DTYPE = _Name("numpy dtype")
_NAMES = {name.text: name for name in (_RECONSTRUCT, _NDARRAY, _DTYPE)}
_NAMES["numpy._core.multiarray _reconstruct"] = _RECONSTRUCT  # what numpy 2 writes


class _UInt8:
    """Stands for the dtype object."""


class _Array:
    """Stands for an array; ``value`` is there once its state was read."""

    value: np.ndarray | None = None


class _Malformed(Exception):
    """The file is not what it should be; turned into a DataError by :func:`read_pickle`."""


def read_pickle(raw: bytes, where: str) -> dict[bytes, Any]:
    """Return the dict that the pickle ``raw`` holds, with arrays as read-only uint8 views of it.

    Args:
        raw: the whole file.
        where: what to call the file in an error.

    Raises:
        DataError: it holds anything else, is cut short, or uses an opcode or name that those files
            do not have.
    """
    reader = _Reader(raw)
    try:
        result = reader.run()
        if type(result) is not dict:
            raise _Malformed("the file holds no dict")
        return {key: value.value if type(value) is _Array else value for key, value in result.items()}
    except _Malformed as error:
        problem = str(error)
    except (IndexError, KeyError, struct.error):  # popped an empty stack, no such memo, cut short
        problem = "the file is cut short or malformed"
    raise DataError(f"cannot read {where}: {problem} (byte {reader.at} of {len(raw)})")


class _Reader:
    """The interpreter: a stack, the stacks below each open mark, and a memo."""

    def __init__(self, raw: bytes) -> None:
        self.raw = memoryview(raw)
        self.at = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        raw, opcodes = self.raw, _OPCODES
        if bytes(raw[:2]) != b"\x80\x02":
            raise _Malformed("not a pickle of protocol 2, as the official files are")
        self.at = 2
        for _ in range(MAX_OPCODES):
            code = raw[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                if self.at != len(raw) or len(self.stack) != 1 or self.below:
                    raise _Malformed("the pickle ends too early")
                return self.stack[0]
            if code not in opcodes:
                raise _Malformed(f"opcode {_opcode_name(code)} is none that the official files have")
            opcodes[code](self)
        raise _Malformed(f"more than {MAX_OPCODES:,} opcodes")

    def take(self, size: int) -> memoryview:
        start, end = self.at, self.at + size
        if size < 0 or end > len(self.raw):
            raise _Malformed("the file is cut short")
        self.at = end
        return self.raw[start:end]

    def number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    # One method for each opcode, or group of alike ones.

    def string(self, layout: str) -> None:
        text = self.take(self.number(layout))
        self.stack.append(text if len(text) >= _VIEW_FROM else bytes(text))

    def long1(self) -> None:
        size = self.number("<B")
        if size > 8:
            raise _Malformed(f"a number of {size} bytes")
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise _Malformed("a tuple of too few items")
        items = tuple(self.stack[len(self.stack) - size :])
        del self.stack[len(self.stack) - size :]
        self.stack.append(items)

    def marked_tuple(self) -> None:
        items = tuple(self.pop_mark())
        self.stack.append(items)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise _Malformed("an item is added to what is no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2 or any(type(key) is not bytes for key in items[::2]):
            raise _Malformed("items that make no dict of strings")
        target.update(zip(items[::2], items[1::2], strict=True))

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def put(self, layout: str) -> None:
        self.memo[self.number(layout)] = self.stack[-1]

    def get(self, layout: str) -> None:
        self.stack.append(self.memo[self.number(layout)])

    def name(self) -> None:
        head = bytes(self.raw[self.at : self.at + 200])
        lines = head.split(b"\n", 2)
        text = b" ".join(lines[:2]).decode("ascii", "replace")
        if len(lines) < 3 or text not in _NAMES:
            raise _Malformed(f"it names {text[:60]!r}, which is none that the official files name")
        self.at += len(lines[0]) + len(lines[1]) + 2
        self.stack.append(_NAMES[text])

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if function is _RECONSTRUCT and _same(arguments, (_NDARRAY, (0,), b"b")):
            self.stack.append(_Array())
        elif function is _DTYPE and _same(arguments, (b"u1", 0, 1)):
            self.stack.append(_UInt8())
        else:
            raise _Malformed("it makes an object other than an array of uint8")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is _UInt8 and _same(state, _UINT8_STATE):
            return
        if type(target) is not _Array or type(state) is not tuple or len(state) != 5:
            raise _Malformed("an object other than an array of uint8")
        version, shape, dtype, fortran, content = state
        if not (type(version) is int and version == 1 and type(dtype) is _UInt8 and type(shape) is tuple):
            raise _Malformed("an array that is not uint8")
        if type(content) not in (bytes, memoryview) or not 1 <= len(shape) <= 2:
            raise _Malformed("an array without content")
        if any(type(side) is not int or side < 1 for side in shape) or math.prod(shape) != len(content):
            raise _Malformed("an array whose shape does not fit its content")
        order = "F" if type(fortran) in (bool, int) and fortran else "C"
        target.value = np.frombuffer(content, np.uint8).reshape(shape, order=order)  # type: ignore[call-overload]


def _same(found: object, wanted: object) -> bool:
    """Equality that looks one level into nested tuples, and no further than ``wanted`` goes."""
    if type(wanted) is tuple:
        return type(found) is tuple and len(found) == len(wanted) and all(map(_same, found, wanted))
    if type(wanted) is int:
        return type(found) in (int, bool) and found == wanted
    return found is wanted or (type(found) is bytes and found == wanted)


def _opcode_name(code: int) -> str:
    import pickletools

    names = {opcode.code: opcode.name for opcode in pickletools.opcodes}
    return f"{names.get(chr(code), 'unknown')} (0x{code:02x})"


def _push(value: Any) -> Callable[[_Reader], None]:
    return lambda reader: reader.stack.append(value)


_OPCODES: dict[int, Callable[[_Reader], None]] = {
    ord("("): _Reader.mark,
    ord("}"): lambda reader: reader.stack.append({}),
    ord("]"): lambda reader: reader.stack.append([]),
    ord(")"): _push(()),
    ord("N"): _push(None),
    0x88: _push(True),
    0x89: _push(False),
    ord("K"): lambda reader: reader.stack.append(reader.number("<B")),
    ord("M"): lambda reader: reader.stack.append(reader.number("<H")),
    ord("J"): lambda reader: reader.stack.append(reader.number("<i")),
    0x8A: _Reader.long1,
    ord("U"): lambda reader: reader.string("<B"),
    ord("T"): lambda reader: reader.string("<i"),
    ord("t"): _Reader.marked_tuple,
    0x85: lambda reader: reader.tuple(1),
    0x86: lambda reader: reader.tuple(2),
    0x87: lambda reader: reader.tuple(3),
    ord("a"): lambda reader: reader.extend([reader.stack.pop()]),
    ord("e"): lambda reader: reader.extend(reader.pop_mark()),
    ord("s"): _Reader.set_item,
    ord("u"): lambda reader: reader.set_items(reader.pop_mark()),
    ord("q"): lambda reader: reader.put("<B"),
    ord("r"): lambda reader: reader.put("<I"),
    ord("h"): lambda reader: reader.get("<B"),
    ord("j"): lambda reader: reader.get("<I"),
    ord("c"): _Reader.name,
    ord("R"): _Reader.reduce,
    ord("b"): _Reader.build,
}
