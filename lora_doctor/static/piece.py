"""What every kind of evidence is made of: pieces with their origin, and files that stay inside.

A model repository is hostile until shown otherwise: names in its files are data, so each one goes
through `inside` before it becomes a path, and through `shown` before it becomes part of a message.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from lora_doctor.errors import EvidenceError, LimitError, Remedy
from lora_doctor.limits import (
    JSON_BYTES,
    JSON_DEPTH,
    JSON_ITEMS,
    check_bytes,
    check_items,
    count_items,
)

T = TypeVar("T")
U = TypeVar("U")

#: What a clone without git-lfs has in the place of a large file.
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Piece(Generic[T]):
    """One piece of evidence: a value, or the reason why there is none.

    `source` says where it came from (a path or an address), `seconds` how long it took.
    Exactly one of `value` and `reason` is None. `remedy`: what the user can change about that.
    """

    value: T | None
    source: str
    seconds: float
    reason: str | None = None
    remedy: Remedy | None = None

    def require(self) -> T:
        """The value; raises EvidenceError with the reason when there is none."""
        if self.value is None:
            raise self.why_not(f"{self.source}: nothing found")
        return self.value

    def why_not(self, otherwise: str) -> EvidenceError:
        """The reason to raise; `otherwise` where none is known."""
        return EvidenceError(self.reason or otherwise, remedy=self.remedy)


def gather(source: str, look: Callable[[], T]) -> Piece[T]:
    """Call `look` and keep what it gives, how long it took, or the EvidenceError that it raised."""
    start = time.perf_counter()
    try:
        value = look()
    except EvidenceError as error:
        return Piece(None, source, time.perf_counter() - start, str(error), error.remedy)
    return Piece(value, source, time.perf_counter() - start)


def shown(value: object, limit: int = 80) -> str:
    """`value` for a message: quoted, control and direction characters escaped, cut at `limit`.

    Quoted like `repr`, so that text of a repository cannot move the cursor or add a line.
    """
    text = repr(value[: limit + 1]) if isinstance(value, str) else repr(value)
    return text if len(text) <= limit + 2 else f"{text[:limit]}…"


def trusted_roots(folder: Path) -> tuple[Path, ...]:
    """The folders in which files named by `folder`'s configs may really lie.

    The folder itself; for a snapshot in the hub's cache also the blob stores that its links lead
    to: `<repo>/blobs`, and `<cache>/blobs` that releases from 2.4 on share between repositories.
    """
    folder = folder.resolve()
    roots = [folder]
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        repository = folder.parent.parent
        roots += [repository / "blobs", repository.parent / "blobs"]
    return tuple(roots)


def inside(folder: Path, name: object) -> Path:
    """The existing file `name` of `folder`, where `name` was read from one of its files.

    Raises EvidenceError when it is no relative name, leads out of the folder (by `..` or by a
    link), or is not a file.
    """
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        raise EvidenceError(f"{shown(name)} is not a file name", remedy="file")
    relative = PurePosixPath(name)
    if not relative.parts:
        raise EvidenceError(f"{shown(name)} is not a file name", remedy="file")
    if relative.is_absolute() or ".." in relative.parts or ":" in relative.parts[0]:
        raise EvidenceError(
            f"{shown(name)} leads out of the model's folder; it was not read", remedy="file"
        )
    path = folder / relative
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a loop of links, before Python 3.13
        raise EvidenceError(f"{shown(name)} is named but not there", remedy="file") from None
    if not any(target.is_relative_to(root) for root in trusted_roots(folder)):
        raise EvidenceError(
            f"{shown(name)} is a link out of the model's folder; it was not read", remedy="file"
        )
    if not target.is_file():
        raise EvidenceError(f"{shown(name)} is not a file", remedy="file")
    return path


def read_bytes(path: Path, limit: int = JSON_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes; EvidenceError when it is not one."""
    name = path.name
    try:
        if not path.is_file():  # a pipe would block, a device would never end
            if path.exists():
                raise EvidenceError(f"{name} is not a file", remedy="file")
            raise EvidenceError(f"{name} is not there")
        check_bytes(path.stat().st_size, limit, name)
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise EvidenceError(f"{name} cannot be read: {reason}", remedy="file") from None
    check_bytes(len(content), limit, name)  # it grew since it was looked at
    return content


def parse_json(content: bytes, name: str, *, items: int = JSON_ITEMS, strict: bool = False) -> Any:
    """`content` as JSON; EvidenceError with line and column when it is not.

    At most about `items` values, `JSON_DEPTH` levels deep. `strict` refuses what Python takes and
    other readers do not, or each in its own way: a key twice, NaN, numbers that no double holds,
    half a surrogate pair.
    """
    check_items(count_items(content), items, name)
    try:
        text = content.decode("utf-8")
        value = _STRICT.decode(text) if strict else json.loads(text)
        if strict and "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 (byte {error.start})"
    except UnicodeEncodeError:
        reason = "has half of a surrogate pair, which is not valid text"
    except json.JSONDecodeError as error:
        reason = f"is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        if content.startswith(LFS_POINTER):
            reason = "is a Git LFS pointer, not the file itself: run `git lfs pull`"
    except RecursionError:
        reason = "is nested too deeply"
    except _DuplicateKeyError as error:
        reason = f"has the key {shown(error.key)} twice"
    except ValueError:  # an integer of more than 4300 digits
        reason = "holds a number that is too long"
    else:
        check_depth(value, name)
        return value
    raise EvidenceError(f"{name} {reason}", remedy="file")


class _DuplicateKeyError(ValueError):
    """Two values for one key; which of them counts is up to the reader."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return mapping


def _double(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(digits)
    return value


def _integer(digits: str) -> int:
    _double(digits)
    return int(digits)


def _constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity


_STRICT = json.JSONDecoder(
    object_pairs_hook=_without_duplicates,
    parse_float=_double,
    parse_int=_integer,
    parse_constant=_constant,
)


def check_depth(value: Any, name: str) -> None:
    """Raise LimitError when lists and objects nest more than `JSON_DEPTH` levels in `value`.

    Whoever copies, compares or prints such a value recurses as deeply.
    """
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [
            part
            for each in level
            if isinstance(each, (dict, list))
            for part in (each.values() if isinstance(each, dict) else each)
            if isinstance(part, (dict, list))
        ]
        if not level:
            return
    raise LimitError(f"{name} nests more than {JSON_DEPTH} levels deep, more than any config does")


def whole_number(value: object) -> int | None:
    """`value` where it is a number of bytes or of elements, None for anything else."""
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def read_json_object(path: Path, limit: int = JSON_BYTES) -> dict[str, Any]:
    """The JSON object in the file `path`; EvidenceError when there is none."""
    content = parse_json(read_bytes(path, limit), path.name)
    if not isinstance(content, dict):
        kind = {list: "a list", str: "text", type(None): "null"}.get(type(content), "a value")
        raise EvidenceError(
            f"{path.name} is JSON but holds {kind} instead of an object", remedy="file"
        )
    return content
