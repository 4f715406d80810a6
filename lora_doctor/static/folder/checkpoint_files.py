"""Whether the files of a checkpoint are there, whole, and what their index says they are.

Only first bytes, sizes and headers are read. A pickled file is never opened as one: its first bytes
and the end of its archive tell whether it is one at all.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.static.model_files import StaticEvidence
from lora_doctor.static.piece import LFS_POINTER, inside, read_json_object
from lora_doctor.static.weights import Weights

_SINGLE = "model.safetensors"
_INDEX = f"{_SINGLE}.index.json"
_PICKLED = "pytorch_model.bin"
_PICKLED_INDEX = f"{_PICKLED}.index.json"
#: How files with weights end; ``pytorch_model-00001-of-00002.bin`` alone is no checkpoint either.
_OF_WEIGHTS = (".safetensors", ".gguf", ".pth", ".ckpt", ".h5", ".msgpack")
#: Files of an adapter and of a Trainer's checkpoint, which are no model's.
_OF_A_RUN = ("adapter", "optimizer", "scheduler", "rng_state", "training_args", "scaler")
#: Small files that a tokenizer or processor is made of; tokenizer.json is for another rule.
_SMALL = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "preprocessor_config.json", "processor_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class DamagedFile:
    """A file that is not what its name says. ``size`` in bytes; ``problem`` completes "it …"."""

    name: str
    size: int
    problem: str
    pointer: bool = False


@dataclass(frozen=True)
class IndexMismatch:
    """What an index and the files beside it do not agree on.

    ``missing`` are files that the index names and the folder lacks, ``present`` how many it has.
    ``lacking``: tensors that the index names and no file holds. ``unlisted``: tensors in the files
    that the index does not name. The last two are known of safetensors only.
    """

    index: str
    missing: tuple[str, ...]
    present: int
    lacking: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()


def stored_shapes(static: StaticEvidence) -> dict[str, tuple[int, ...] | None]:
    """Name and shape, in elements, of each tensor in the checkpoint; ``None`` for a shape that only
    a header would tell, where the index alone is at hand.

    Raises:
        EvidenceError: the names cannot all be had.
    """
    weights = static.weights.value
    if weights is not None and not weights.unread:
        return {name: tensor.shape for name, tensor in weights.tensors.items()}
    for index in (_INDEX, _PICKLED_INDEX):
        if (static.folder / index).is_file():
            return dict.fromkeys(_weight_map(static, index))
    if weights is not None:
        raise EvidenceError(
            f"{next(iter(weights.unread))} cannot be read, so that the names in the checkpoint are "
            "not all known",
            remedy="file",
        )
    raise static.weights.why_not("the names of the tensors in the checkpoint are not known")


def damaged_files(static: StaticEvidence) -> tuple[DamagedFile, ...]:
    """Files of the checkpoint and of the tokenizer that are pointers, empty or cut off."""
    names = dict.fromkeys((*_weight_files(static), *_SMALL))
    found = (_damage(static, name) for name in names)
    return tuple(item for item in found if item is not None)


def index_mismatch(static: StaticEvidence) -> IndexMismatch | None:
    """Where the index that would be loaded and the folder differ; None where they agree.

    None as well for a folder without any weights: its small files alone were downloaded.
    """
    index = _index(static)
    if index is None:
        return None
    weight_map = _weight_map(static, index)
    files = sorted(set(weight_map.values()))
    missing = tuple(name for name in files if not _is_there(static, name))
    if len(missing) == len(files):
        return None
    lacking: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()
    weights = static.weights.value
    if index == _INDEX and weights is not None:
        lacking, unlisted = _tensors(weight_map, weights)
    if not (missing or lacking or unlisted):
        return None
    return IndexMismatch(index, missing, len(files) - len(missing), lacking, unlisted)


def unread_weights(static: StaticEvidence) -> tuple[str, ...]:
    """Files with weights in a folder that has none under a name that ``from_pretrained`` looks for.

    Empty where it has one, and for a folder without any weights: its small files alone are at hand.
    """
    names = static.listing
    if static.auto_map or any(
        name in (_SINGLE, _INDEX, _PICKLED, _PICKLED_INDEX) for name in names
    ):
        return ()
    return tuple(
        name
        for name in names
        if "/" not in name and name.endswith(_OF_WEIGHTS) and not name.startswith(_OF_A_RUN)
    )


def _tensors(
    weight_map: Mapping[str, str], weights: Weights
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tensors of readable files: those that only the index has, those that only the files have."""
    lacking = tuple(
        sorted(
            name
            for name, file in weight_map.items()
            if file in weights.files and name not in weights.tensors
        )
    )
    return lacking, tuple(sorted(set(weights.tensors) - set(weight_map)))


def _index(static: StaticEvidence) -> str | None:
    """The index by which transformers would load; None where it loads one file, or nothing."""
    names = set(static.listing)
    order = (_SINGLE, _INDEX, _PICKLED, _PICKLED_INDEX)
    first = next((name for name in order if name in names), None)
    return first if first in (_INDEX, _PICKLED_INDEX) else None


def _weight_map(static: StaticEvidence, index: str) -> dict[str, str]:
    weight_map: Any = read_json_object(static.folder / index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise EvidenceError(
            f"{index} has no weight_map from parameter names to files", remedy="file"
        )
    return {name: file for name, file in weight_map.items() if isinstance(file, str)}


def _is_there(static: StaticEvidence, name: str) -> bool:
    if static.given_listing is not None:
        return name in static.given_listing
    try:
        inside(static.folder, name)
    except EvidenceError:
        return False
    return True


def _weight_files(static: StaticEvidence) -> Iterator[str]:
    """The files that would be loaded, an index and what it names included."""
    index = _index(static)
    if index is not None:
        yield index
        try:
            yield from sorted(set(_weight_map(static, index).values()))
        except EvidenceError:
            return  # a damaged index names nothing; the file itself is looked at
    names = static.listing
    yield from (name for name in (_SINGLE, _PICKLED) if name in names and index is None)


def _damage(static: StaticEvidence, name: str) -> DamagedFile | None:
    if static.given_listing is not None and not (static.folder / name).exists():
        return None  # on the hub, and not fetched
    try:
        path = inside(static.folder, name)
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(64)
    except (EvidenceError, OSError):
        return None  # missing files are for the index
    if not size:
        return None if name == "merges.txt" else DamagedFile(name, 0, "is empty")
    if start.startswith(LFS_POINTER):
        return DamagedFile(name, size, "is a Git LFS pointer, not the file itself", pointer=True)
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return DamagedFile(name, size, "is a web page, not the file itself")
    problem = _inner_damage(static, name, path, start)
    return DamagedFile(name, size, problem) if problem else None


def _inner_damage(static: StaticEvidence, name: str, path: Path, start: bytes) -> str | None:
    if name.endswith(".safetensors"):
        weights = static.weights
        reason = weights.value.unread.get(name) if weights.value is not None else weights.reason
        return f"cannot be read: {reason}" if reason else None
    if name.endswith(".json"):
        try:
            read_json_object(path)
        except EvidenceError as error:
            return f"cannot be read: {error}"
    # torch.save writes a zip archive, whose table of contents is at its end.
    if name.endswith(".bin") and start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "is cut off: its archive has no end"
    return None
