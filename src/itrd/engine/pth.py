"""Reads ``.pth`` files from strangers: checks them from outside, then hands them to torch's weights-only loader.

That loader executes nothing, but it trusts a file's numbers: it can be made to unpack compressed members without
bound, to allocate storages that the file does not hold, and to end the process with nested tuples. So the pickle is
gone through here first, opcode by opcode, on a stack that knows of every value only its depth, its size and, of plain
ones, what they are; and an archive is copied member by member, uncompressed and with verified checksums.

Memory: a file of n bytes is refused or takes at most 3 n + 100 MB.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import pickle
import pickletools
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import torch

from itrd.errors import CheckpointError

MAX_OPCODES = 1_000_000  # a checkpoint of the largest benchmark network has about 30,000
MAX_DEPTH = 100
_MAX_REPEATED = 10 * MAX_OPCODES  # values and characters that a pickle refers back to
_MAX_NAME = 200  # characters of a storage's type
_MAX_MEMBERS = 20_000
_ITEM = {  # bytes of one element of a storage
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
    "UntypedStorage": 1,
}


class _Refused(Exception):
    """Why a file is not read any further."""


def load_pth(content: bytes, source: str, *, numpy: bool = False) -> Any:
    """Return what a file of ``torch.save`` holds: tensors on the CPU, numbers, strings and containers of them.

    Args:
        content: of the file.
        source: its name, for errors.
        numpy: let NumPy's numbers and arrays be, which many scripts leave beside the weights (a best accuracy, a
            curve): :class:`Unread` and :class:`UnreadArray` stand for them. Otherwise they are refused.

    Raises:
        CheckpointError: damaged, not such a file, or asking for more than weights.
    """
    try:
        if content[:2] == b"PK":
            content = _checked_archive(content)
        else:
            _check_legacy(content)
        return _weights_only(content, _LET_BE if numpy else [])
    except _Program:
        raise CheckpointError(
            f"{source} is refused: it asks for more than weights, and reading it could execute code; "
            "ask its author for a safetensors file or a plain state dict"
        ) from None
    except _Refused as error:
        raise CheckpointError(f"{source} is refused: {error}; fetch or train it again") from None
    except Exception:  # torch, zipfile and pickletools raise many types for damaged files
        raise CheckpointError(
            f"{source} is not a readable checkpoint (damaged?); fetch or train it again"
        ) from None


class _Program(Exception):
    """The file asks for something to be called that makes no weights."""


class Unread:
    """What stands for a number of NumPy's: it takes whatever makes one, and looks at nothing."""

    def __init__(self, *parts: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class UnreadArray(Unread):
    """What stands for an array."""


_LET_BE: list[Any] = [(Unread, "numpy.dtype"), (Unread, "numpy.ndarray")]
for _core in ("core", "_core"):  # NumPy 1 and 2
    _LET_BE += [
        (Unread, f"numpy.{_core}.multiarray.scalar"),
        (UnreadArray, f"numpy.{_core}.multiarray._reconstruct"),
    ]
_LOADING = threading.Lock()


def _weights_only(content: bytes, let_be: list[Any]) -> Any:
    try:
        with warnings.catch_warnings(), _only([argparse.Namespace, *let_be]):
            warnings.simplefilter("ignore")  # remarks on a file's pickle protocol
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search(r"GLOBAL \S+|Unsupported class", str(error)):
            raise _Program from None
        raise


@contextmanager
def _only(names: list[Any]) -> Iterator[None]:
    """Let torch's loader call these beside its own, and nothing that the program has allowed for files of its own."""
    with _LOADING:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            torch.serialization.add_safe_globals(names)
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


# --- archives --------------------------------------------------------------------------------------------


def _checked_archive(content: bytes) -> bytes:
    """Return a copy of an archive that holds nothing but what was checked.

    What torch reads is the copy: a file that its reader and this one understand differently gains nothing.
    """
    copied = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(copied, "w") as copy:
        members = archive.infolist()
        names = {member.filename for member in members}
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            raise _Program  # TorchScript
        if len(names) != len(members) or len(members) > _MAX_MEMBERS:
            raise _Refused("its archive holds a name twice, or too many")
        if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
            raise _Refused("its archive is compressed, which torch never does")
        if sum(member.file_size for member in members) > len(content):
            raise _Refused("its archive claims to hold more than it does")
        sizes: dict[str, int] = {}
        for member in members:
            name = member.filename.partition("/")[2]
            if name.startswith("data/"):
                sizes[name.removeprefix("data/")] = member.file_size
        for member in members:
            read = archive.read(member)  # verifies its checksum
            if member.filename.endswith("/data.pkl"):
                for key, size in _storages(io.BytesIO(read)).items():
                    if sizes.get(key) != size:
                        raise _Refused(f"storage {key[:20]} has not the size that the file claims")
            copy.writestr(zipfile.ZipInfo(member.filename), read)
    return copied.getvalue()


def _check_legacy(content: bytes) -> None:
    """Check a file from before archives: pickles of a magic number, a version, facts, the content, and the keys."""
    stream = io.BytesIO(content)
    claimed = 0
    for _ in range(5):
        claimed += sum(_storages(stream).values())
    if claimed > len(content) - stream.tell():
        raise _Refused("it claims to hold more numbers than it does")


# --- pickles ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False, slots=True)
class _Item:
    """What is known of a value.

    Attributes:
        value: what it is, of strings, numbers, names and short tuples of them; None of others.
        depth: of containers in it.
        size: of it written out: values, and characters of strings.
    """

    value: Any
    depth: int
    size: int


_MARK = _Item(None, 0, 0)
_WORDS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "GLOBAL")
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1")
_ENCODE = "_codecs encode"  # how old pickles write bytes; torch's loader would take any codec
_CHANGES = ("APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS", "BUILD")  # the first value they take


def _storages(stream: BinaryIO) -> dict[str, int]:
    """Go through the next pickle of a stream without building anything; return its storages' sizes in bytes.

    Raises:
        _Refused: too long, nested too deeply, larger than it looks, or a storage of an unknown kind.
    """
    stack: list[_Item] = []
    memo: dict[int, _Item] = {}
    found: dict[str, int] = {}
    repeated = 0
    for count, (opcode, operand, _) in enumerate(pickletools.genops(stream), 1):
        argument: Any = operand
        if count > MAX_OPCODES:
            raise _Refused(f"it has more than {MAX_OPCODES:,} opcodes")
        name = opcode.name
        if name == "MARK":
            stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            # A tuple of the same tuple twice, and so on, soon has more parts than anything can go through.
            repeated += memo[argument].size
            if repeated > _MAX_REPEATED:
                raise _Refused("it repeats its parts too often")
            stack.append(memo[argument])
        elif name in _WORDS:
            if name == "GLOBAL" and argument.endswith(" bytearray"):
                raise _Refused("it asks for memory without filling it")
            stack.append(_Item(argument, 0, 1 + len(argument)))
        elif name in _NUMBERS:
            stack.append(_Item(argument, 0, 1))
        elif name == "BINPERSID":
            key, size = _storage(stack.pop().value)
            if found.setdefault(key, size) != size:
                raise _Refused(f"storage {key[:20]} has two sizes")
            stack.append(_Item(None, 0, 1))
        else:
            taken = _take(stack, opcode)
            if name == "REDUCE" and taken[0].value == _ENCODE and not _is_latin1(taken[1].value):
                raise _Program
            item = taken.pop(0) if name in _CHANGES else _Item(None, 0, 1)
            if item is _MARK:
                raise _Refused("its pickle is damaged")
            item.depth = max(item.depth, 1 + max((part.depth for part in taken), default=-1))
            item.size += sum(part.size for part in taken)
            if item.depth > MAX_DEPTH:
                raise _Refused(f"it is nested more than {MAX_DEPTH} deep")
            if name.startswith("TUPLE") and len(taken) <= 8:
                item.value = tuple(part.value for part in taken)
            stack.extend([item] * len(opcode.stack_after))
    return found


def _is_latin1(arguments: Any) -> bool:
    return type(arguments) is tuple and len(arguments) == 2 and arguments[1] == "latin1"


def _take(stack: list[_Item], opcode: pickletools.OpcodeInfo) -> list[_Item]:
    """Take from the stack what an opcode takes."""
    before = opcode.stack_before
    if pickletools.markobject not in before:
        if len(before) > len(stack):
            raise _Refused("its pickle is damaged")
        taken = stack[len(stack) - len(before) :]
        del stack[len(stack) - len(before) :]
        return taken
    # No further than what is taken, so that all searches together are as long as the pickle.
    at = next((i for i in reversed(range(len(stack))) if stack[i] is _MARK), -1)
    below = before.index(pickletools.markobject)
    if at < below:
        raise _Refused("its pickle is damaged")
    taken = stack[at - below : at] + stack[at + 1 :]
    del stack[at - below :]
    return taken


def _storage(value: Any) -> tuple[str, int]:
    """Read key and size in bytes out of what names a storage: ('storage', type, key, place, count, ...)."""
    if type(value) is not tuple or len(value) < 5 or value[0] != "storage":
        raise _Refused("its pickle names a storage in an unknown way")
    named, key, count = value[1], value[2], value[4]
    if type(named) is not str or len(named) > _MAX_NAME:
        raise _Refused("its pickle names a storage in an unknown way")
    module, _, kind = named.partition(" ")
    if kind not in _ITEM or not module.startswith("torch") or type(key) is not str or type(count) is not int:
        raise _Refused("its pickle names a storage of an unknown kind")
    if count < 0:
        raise _Refused("its pickle names a storage of negative size")
    return key, count * _ITEM[kind]
