"""Names, shapes and dtypes in a file that `torch.save` wrote, read without unpickling it.

A pickle is a list of instructions. They are read with `pickletools`, which runs none of them, and
followed only as far as a flat state dict needs: nothing is imported or called, and no number of a
weight is read. A file that does more than describe tensors is refused.
"""

from __future__ import annotations

import pickletools
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import CHECKPOINT_TENSORS, HEADER_BYTES, check_bytes, check_items
from lora_doctor.static.piece import LFS_POINTER, shown, whole_number
from lora_doctor.static.weights import Tensor, Weights

#: torch's storages and dtypes, as a pickle names them, with the names that safetensors has.
_DTYPES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint16": "U16", "uint32": "U32",
    "uint64": "U64",
}  # fmt: skip
_TORCH = "torch "
#: No release of torch takes more.
_DIMENSIONS = 64
_REBUILD = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3")
_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED = "collections OrderedDict"


def read_pickled(path: Path) -> Weights:
    """What a state dict saved by `torch.save` holds.

    Raises:
        EvidenceError: it cannot be read this way; the message says why.
    """
    instructions = _instructions(path)
    try:
        found = _follow(instructions)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError):
        raise _refused(path, "its pickle is damaged") from None
    except _Other as other:
        raise _refused(path, str(other)) from None
    if not isinstance(found, dict):
        raise _refused(path, "it holds no state dict")
    check_items(len(found), CHECKPOINT_TENSORS, path.name, "tensors")
    tensors: dict[str, Tensor] = {}
    for name, value in found.items():
        if not isinstance(value, _Array):
            raise _refused(path, f"its entry {shown(name)} is not a tensor")
        tensors[name] = Tensor(value.shape, value.dtype, path.name)
    return Weights(tensors, (path.name,))


def _refused(path: Path, why: str) -> EvidenceError:
    return EvidenceError(f"{path.name} is a pickle, which is not loaded: {why}", remedy="file")


def _instructions(path: Path) -> bytes:
    """The pickle inside the archive that `torch.save` writes."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise _refused(path, "it is a Git LFS pointer: run `git lfs pull`")
        with zipfile.ZipFile(path) as archive:
            inside = [item for item in archive.infolist() if item.filename.endswith("/data.pkl")]
            stored = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            if len(inside) != 1 or inside[0].compress_type not in stored:
                raise _refused(path, "it is not an archive of torch.save")
            check_bytes(inside[0].file_size, HEADER_BYTES, f"the pickle in {path.name}")
            with archive.open(inside[0]) as stream:
                return stream.read(HEADER_BYTES)
    except OSError as error:
        raise EvidenceError(
            f"{path.name} cannot be read: {error.strerror or error}", remedy="file"
        ) from None
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError):
        # RuntimeError: an encrypted archive. Before 1.6 torch wrote pickles without an archive.
        raise _refused(path, "it is not an archive of torch.save (torch 1.6 or later)") from None


class _Other(Exception):
    """The pickle does something else than describe tensors; the message says what."""


@dataclass(frozen=True)
class _Named:
    """A function or class that the pickle names, as ``module name``. It is never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """What the numbers of a tensor lie in."""

    dtype: str


@dataclass(frozen=True)
class _Array:
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    dtype: str


_MARK = object()


@dataclass
class _Machine:
    """The stack and the memo of a pickle."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def since_mark(self) -> list[Any]:
        """What lies above the last mark; it and the mark are taken off."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise IndexError
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def last(self, count: int) -> list[Any]:
        """The last `count` items, taken off."""
        if len(self.stack) < count:
            raise IndexError
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items


def _follow(content: bytes) -> Any:
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "STOP":
            return machine.stack[-1]
        if opcode.name in _CONSTANTS:
            machine.stack.append(_CONSTANTS[opcode.name]())
        elif opcode.name in _LITERALS:
            machine.stack.append(argument)
        elif opcode.name in _ACTIONS:
            _ACTIONS[opcode.name](machine, argument)
        else:
            raise _Other(f"it uses the pickle instruction {opcode.name}")
    raise ValueError


def _reduce(machine: _Machine, argument: Any) -> None:
    called, arguments = machine.last(2)
    if not isinstance(called, _Named):
        raise TypeError
    if called.name == _ORDERED and not arguments:
        made: Any = {}
    elif called.name in _REBUILD:
        # v3 has the dtype beside an untyped storage.
        dtype = _dtype(arguments[6]) if called.name == _REBUILD[1] else arguments[0].dtype
        made = _Array(_sizes(arguments[2]), dtype)
    elif called.name == _PARAMETER and isinstance(arguments[0], _Array):
        made = arguments[0]
    else:
        raise _Other(f"it calls {shown(called.name)}")
    machine.stack.append(made)


def _sizes(given: Any) -> tuple[int, ...]:
    if not isinstance(given, tuple) or len(given) > _DIMENSIONS:
        raise TypeError
    if any(whole_number(size) is None for size in given):
        raise ValueError
    return given


def _dtype(named: _Named) -> str:
    name = named.name.removeprefix(_TORCH)
    if named.name == name or name not in _DTYPES:
        raise _Other(f"it names {shown(named.name)}")
    return _DTYPES[name]


def _storage(machine: _Machine, argument: Any) -> None:
    (described,) = machine.last(1)
    kind, storage_class = described[0], described[1]
    if kind != "storage":
        raise ValueError
    untyped = storage_class.name == "torch.storage UntypedStorage"
    machine.stack.append(_Storage("U8" if untyped else _dtype(storage_class)))


def _set_items(machine: _Machine, items: list[Any]) -> None:
    held = machine.stack[-1]
    # Only text is hashed: a key of nested tuples may take forever.
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in items[::2]):
        raise TypeError
    held.update(zip(items[::2], items[1::2], strict=True))


def _append(machine: _Machine, items: list[Any]) -> None:
    held = machine.stack[-1]
    if not isinstance(held, list):
        raise TypeError
    held.extend(items)


def _build(machine: _Machine, argument: Any) -> None:
    """Attributes of an object: of a state dict they are the versions of its modules."""
    held, _ = machine.last(2)
    if not isinstance(held, dict):
        raise _Other("it holds objects that are no tensors")
    machine.stack.append(held)


def _global(machine: _Machine, argument: Any) -> None:
    if argument is None:  # STACK_GLOBAL
        module, name = machine.last(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        argument = f"{module} {name}"
    machine.stack.append(_Named(argument))


def _put(machine: _Machine, argument: Any) -> None:
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, argument: Any) -> None:
        machine.stack.append(tuple(machine.last(count)))

    return make


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "MARK": lambda: _MARK,
}  # fmt: skip
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8",
}  # fmt: skip
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, argument: None,
    "FRAME": lambda machine, argument: None,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _put,
    "BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "LONG_BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "GLOBAL": _global,
    "STACK_GLOBAL": _global,
    "TUPLE": lambda machine, argument: machine.stack.append(tuple(machine.since_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "REDUCE": _reduce,
    "BUILD": _build,
    "BINPERSID": _storage,
    "SETITEM": lambda machine, argument: _set_items(machine, machine.last(2)),
    "SETITEMS": lambda machine, argument: _set_items(machine, machine.since_mark()),
    "APPEND": lambda machine, argument: _append(machine, machine.last(1)),
    "APPENDS": lambda machine, argument: _append(machine, machine.since_mark()),
}
