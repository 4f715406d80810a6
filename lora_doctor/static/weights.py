"""Names, shapes and dtypes of a checkpoint, from safetensors headers alone. No weight is read.

A safetensors file starts with the length of its header (8 bytes, little-endian), then the header:
JSON that maps each tensor to its dtype, shape and place. The format is small enough to be read by
hand, which keeps torch out and lets a damaged file say what is wrong with it.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import (
    CHECKPOINT_FILES,
    CHECKPOINT_HEADER_BYTES,
    CHECKPOINT_TENSORS,
    HEADER_BYTES,
    check_bytes,
    check_items,
)
from lora_doctor.static.piece import inside, parse_json, read_json_object, shown, whole_number

_SHARDS = "save the model in more and smaller shards (`max_shard_size`)"
# A tensor of two dimensions has a dozen commas, colons and brackets.
_ITEMS_PER_TENSOR = 16

# Bits per element, as the format names its dtypes. An unknown (newer) dtype is kept unchecked.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a checkpoint: its shape in elements, its dtype as safetensors names it."""

    shape: tuple[int, ...]
    dtype: str
    file: str

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Weights:
    """What the safetensors headers of a checkpoint say.

    `tensors` maps parameter names to what is stored; `files` are those that were read;
    `unread` maps each file that could not be read to the reason: `tensors` is then incomplete.
    `metadata` is the headers' own (`{"format": "pt"}`).
    """

    tensors: dict[str, Tensor]
    files: tuple[str, ...]
    unread: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def dtypes(self) -> dict[str, int]:
        """Elements per dtype, the commonest first."""
        count: Counter[str] = Counter()
        for tensor in self.tensors.values():
            count[tensor.dtype] += tensor.elements
        return dict(count.most_common())


def parse_header(
    content: bytes, file: str, payload: int | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a header (the JSON after the length).

    `payload` is the number of bytes that follow the header, None when not known.
    Raises EvidenceError that names `file` for anything that the format does not allow.
    """
    what = f"the header of {file}"
    most = CHECKPOINT_TENSORS * _ITEMS_PER_TENSOR
    header = parse_json(content, what, items=most, strict=True)
    if not isinstance(header, dict):
        raise EvidenceError(f"{what} is not an object", remedy="file")
    metadata = header.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        raise EvidenceError(f"{what} has metadata that is not an object", remedy="file")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise EvidenceError(f"{what} has metadata that is not text", remedy="file")
    check_items(len(header), CHECKPOINT_TENSORS, what, "tensors")
    tensors: dict[str, Tensor] = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        tensors[name], place = _tensor(name, entry, file, payload)
        places.append((*place, name))
    _check_places(places, file, payload)
    return tensors, metadata


def _check_places(places: list[tuple[int, int, str]], file: str, payload: int | None) -> None:
    """The tensors lie one behind the other and fill the file, as the format demands.

    With a hole or an overlap the library refuses the whole file.
    """
    end = 0
    for start, stop, name in sorted(places):
        if start != end:
            what = "overlaps another tensor" if start < end else "leaves a hole before it"
            raise EvidenceError(
                f"the header of {file}: {shown(name)} {what} (it starts at byte {start:,}, the one "
                f"before ends at {end:,}); save the model again",
                remedy="file",
            )
        end = stop
    if payload is not None and end != payload:
        raise EvidenceError(
            f"the header of {file} describes {end:,} bytes of data, the file has {payload:,}; "
            "save the model again",
            remedy="file",
        )


def _tensor(
    name: str, entry: Any, file: str, payload: int | None
) -> tuple[Tensor, tuple[int, int]]:
    """The tensor of one entry, and where its data start and end."""
    where = f"the header of {file}: {shown(name)}"
    if not isinstance(entry, dict):
        raise EvidenceError(f"{where} is not an object", remedy="file")
    dtype, shape, place = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise EvidenceError(f"{where} has no dtype", remedy="file")
    if not _naturals(shape):
        raise EvidenceError(f"{where} has the shape {shown(shape)}", remedy="file")
    if not _naturals(place) or len(place) != 2 or place[0] > place[1]:
        raise EvidenceError(f"{where} has the place {shown(place)}", remedy="file")
    tensor = Tensor(tuple(shape), dtype, file)
    bits = DTYPE_BITS.get(dtype)
    if whole_number(tensor.elements) is None:
        raise EvidenceError(
            f"{where} has the shape {shown(shape)}, more than any file holds", remedy="file"
        )
    if bits is not None and tensor.elements * bits != (place[1] - place[0]) * 8:
        raise EvidenceError(
            f"{where} of shape {shown(shape)} and dtype {dtype} cannot lie in "
            f"{place[1] - place[0]} bytes",
            remedy="file",
        )
    if payload is not None and place[1] > payload:
        raise EvidenceError(
            f"{file} is cut off: {shown(name)} ends at byte {place[1]:,} of the data, "
            f"the file has {payload:,}; download it again",
            remedy="file",
        )
    return tensor, (place[0], place[1])


def _naturals(value: Any) -> TypeGuard[list[int]]:
    # No release of torch takes more than 64 dimensions.
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(whole_number(item) is not None for item in value)
    )


def read_header(path: Path, name: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of the safetensors file `path`, called `name` in the result.

    Reads the header only. Raises EvidenceError when the file is damaged or cannot be read.
    """
    name = name or path.name
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            start = stream.read(8)
            if len(start) < 8:
                raise EvidenceError(
                    f"{name} is cut off: {size} bytes are not a safetensors file", remedy="file"
                )
            (length,) = struct.unpack("<Q", start)
            if length > size - 8:
                hint = (
                    "it is a Git LFS pointer: run `git lfs pull`"
                    if start == b"version "
                    else "it is damaged or no safetensors file"
                )
                raise EvidenceError(
                    f"{name} announces a header of {length:,} bytes in a file of {size:,}; {hint}",
                    remedy="file",
                )
            check_bytes(length, HEADER_BYTES, f"the header of {name}", _SHARDS)
            content = stream.read(length)
    except OSError as error:
        raise EvidenceError(
            f"{name} cannot be read: {error.strerror or error}", remedy="file"
        ) from None
    return parse_header(content, name, size - 8 - length)


def read_weights(folder: Path, stem: str = "model") -> Weights:
    """The headers of `<stem>.safetensors`, or of the shards in `<stem>.safetensors.index.json`.

    A shard that cannot be read is recorded with its reason, the others are read. Raises
    EvidenceError when there is neither, or when the index is malformed.
    """
    single = f"{stem}.safetensors"
    index = folder / f"{single}.index.json"
    if (folder / single).exists():
        # Our own name, not one from a file: a link to another disk is the user's, and fine.
        return merge({single: read_header(folder / single)}, {})
    if index.exists():
        names = shard_names(read_json_object(index), index.name)
    else:
        raise EvidenceError(f"no {single} and no {index.name}")
    headers: dict[str, tuple[dict[str, Tensor], dict[str, str]]] = {}
    unread: dict[str, str] = {}
    allowance = HeaderAllowance()
    for name in names:
        try:
            path = inside(folder, name)
            allowance.take(header_length(path), name)
            headers[name] = read_header(path, name)
        except EvidenceError as error:
            unread[name] = str(error)
    if not headers:
        raise EvidenceError(
            next(iter(unread.values()), f"{index.name} names no file"), remedy="file"
        )
    return merge(headers, unread)


def shard_names(index: Mapping[str, Any], name: str) -> list[str]:
    """The files that an index names, in order, each once; EvidenceError when it is malformed."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise EvidenceError(
            f"{name} has no weight_map from parameter names to files", remedy="file"
        )
    files = sorted(set(weight_map.values()))
    check_items(len(files), CHECKPOINT_FILES, name, "files")
    return files


class HeaderAllowance:
    """What is left of the bytes that the headers of one checkpoint may have together."""

    def __init__(self) -> None:
        self.used = 0

    def take(self, length: int, name: str) -> None:
        """Count a header before it is read; LimitError where the checkpoint has too many."""
        self.used += length
        check_bytes(self.used, CHECKPOINT_HEADER_BYTES, f"the headers up to {name}")


def header_length(path: Path) -> int:
    """The bytes of the header of a file; 0 where `read_header` would refuse them."""
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
        size = path.stat().st_size
    except OSError:
        return 0  # `read_header` says why
    (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
    return length if length <= min(HEADER_BYTES, size - 8) else 0


def merge(
    headers: Mapping[str, tuple[dict[str, Tensor], dict[str, str]]], unread: Mapping[str, str]
) -> Weights:
    """One checkpoint from the headers of its files."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file_tensors, file_metadata in headers.values():
        tensors.update(file_tensors)
        metadata.update(file_metadata)
    return Weights(tensors, tuple(headers), dict(unread), metadata)
