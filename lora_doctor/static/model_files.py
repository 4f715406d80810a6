"""What the files of a model say, with no torch and nothing of the model repository run.

`gather_static` reads and checks `config.json` at once: whatever is wrong with it is the user's
answer (InputError). Everything else is read when a rule first asks, at most once, and what cannot
be read is a piece with a reason.
"""

from __future__ import annotations

import difflib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.limits import FOLDER_DEPTH, FOLDER_ENTRIES, FOLDER_FILES
from lora_doctor.static.config_sizes import check_sizes
from lora_doctor.static.installed.environment import known_architectures
from lora_doctor.static.piece import Piece, gather, read_json_object, shown
from lora_doctor.static.tokenizer_file import TokenizerFile, read_tokenizer_file
from lora_doctor.static.weights import Weights, read_weights

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")


#: Stands for the checkpoint, in however many files, among what a hub did not give.
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class AutoMapTarget:
    """One entry of `auto_map`: the class that an Auto class loads from code in a repository.

    `repository` is another repository's id, None for the model's own; `module` is a file name
    without `.py`; `class_name` a class in it.
    """

    auto_class: str
    repository: str | None
    module: str
    class_name: str


@dataclass(frozen=True)
class StaticEvidence:
    """The small files of one model."""

    #: How the user names it: a folder, `org/name@commit`.
    source: str
    #: Where the files lie.
    folder: Path
    #: The content of config.json, which has passed the checks of `gather_static`.
    config: dict[str, Any]
    #: The files of a repository on a hub, those that were not fetched included.
    given_listing: tuple[str, ...] | None = field(default=None, repr=False)
    #: The weights of a repository on a hub, whose files are not in `folder`.
    given_weights: Piece[Weights] | None = field(default=None, repr=False)
    #: Files that a hub has and did not give, each with the reason.
    unanswered: Mapping[str, str] = field(default_factory=dict, repr=False)

    # --- config.json ------------------------------------------------------------------------

    @property
    def model_type(self) -> str | None:
        """`model_type`, None where only `auto_map` says what to load."""
        return self.config.get("model_type")

    @property
    def architectures(self) -> tuple[str, ...]:
        """Class names that the checkpoint was saved from; empty when the config does not say."""
        return tuple(self.config.get("architectures") or ())

    @cached_property
    def auto_map(self) -> tuple[AutoMapTarget, ...]:
        """Where remote code is loaded from, by Auto class; several for a tokenizer's two forms."""
        return tuple(_auto_map_targets(self.config.get("auto_map") or {}))

    @property
    def quantization_config(self) -> dict[str, Any] | None:
        """How the checkpoint is quantized; None when it is not. A composite config may say it in
        its text part."""
        text = self.config.get("text_config")
        parts = (self.config, text if isinstance(text, dict) else {})
        held = (part.get("quantization_config") for part in parts)
        return next((values for values in held if isinstance(values, dict)), None)

    @cached_property
    def native_dtype(self) -> tuple[str, str] | None:
        """(dtype, the config key that says so), as in ("bfloat16", "torch_dtype").

        transformers 5 writes `dtype`, 4 wrote `torch_dtype`; multimodal configs often say it only
        in their parts, which counts when these agree. None when the config does not say.
        """
        own = _dtype_of(self.config)
        if own:
            return own
        parts = {
            key: found
            for key, value in self.config.items()
            if key.endswith("config") and isinstance(value, dict) and (found := _dtype_of(value))
        }
        if len({dtype for dtype, _ in parts.values()}) != 1:
            return None
        part, (dtype, key) = next(iter(parts.items()))
        return dtype, f"{part}.{key}"

    # --- the other files --------------------------------------------------------------------

    def fetched(self, name: str) -> Path:
        """The file `name` of the folder. Raises EvidenceError where the hub has not given it."""
        if name in self.unanswered:
            raise EvidenceError(f"{name} was not fetched: {self.unanswered[name]}", remedy="hub")
        return self.folder / name

    def _stored_weights(self) -> Weights:
        """What lies in the folder; a hub that was not asked may have more."""
        try:
            return read_weights(self.folder)
        except EvidenceError as error:
            reason = self.unanswered.get(WEIGHTS_FILE)
            if reason is None:
                raise
            raise EvidenceError(f"{error}; {reason}", remedy="hub") from None

    def where(self, name: str) -> str:
        """`name` with its origin, as findings show it."""
        return f"{self.source}/{name}"

    def json_file(self, name: str) -> Piece[dict[str, Any]]:
        """The JSON object in the file `name` of the folder."""
        return gather(self.where(name), lambda: read_json_object(self.fetched(name)))

    @cached_property
    def generation_config(self) -> Piece[dict[str, Any]]:
        """`generation_config.json`."""
        return self.json_file("generation_config.json")

    @cached_property
    def adapter_config(self) -> Piece[dict[str, Any]]:
        """`adapter_config.json`, where the folder also holds an adapter."""
        return self.json_file("adapter_config.json")

    @cached_property
    def tokenizer_config(self) -> Piece[dict[str, Any]]:
        """`tokenizer_config.json`."""
        return self.json_file("tokenizer_config.json")

    @cached_property
    def tokenizer(self) -> Piece[TokenizerFile]:
        """`tokenizer.json`, its vocabulary left out."""
        name = "tokenizer.json"
        return gather(self.where(name), lambda: read_tokenizer_file(self.fetched(name)))

    @cached_property
    def weights(self) -> Piece[Weights]:
        """Shapes and dtypes of the parameters, from safetensors headers."""
        if self.given_weights is not None:
            return self.given_weights
        return gather(self.where("model.safetensors"), self._stored_weights)

    @cached_property
    def adapter_weights(self) -> Piece[Weights]:
        """Shapes and dtypes of `adapter_model.safetensors`."""
        name = "adapter_model"
        return gather(
            self.where(f"{name}.safetensors"), lambda: read_weights(self.folder, stem=name)
        )

    @cached_property
    def listing(self) -> tuple[str, ...]:
        """Names of the repository's files, relative, with `/`, sorted. Hidden folders are left out.

        Links to folders are not followed; at most `FOLDER_FILES` files, `FOLDER_DEPTH` deep.
        """
        if self.given_listing is not None:
            return tuple(sorted(self.given_listing))
        return tuple(sorted(_walk(self.folder)))

    @property
    def python_files(self) -> tuple[str, ...]:
        """The Python files of the repository."""
        return tuple(name for name in self.listing if name.endswith(".py"))

    @property
    def pickled_weights(self) -> tuple[str, ...]:
        """Files that may run code when loaded. They are listed, never opened."""
        return tuple(name for name in self.listing if name.lower().endswith(_PICKLED))


def gather_static(
    location: Path,
    *,
    source: str,
    listing: Sequence[str] | None = None,
    weights: Piece[Weights] | None = None,
    unanswered: Mapping[str, str] | None = None,
) -> StaticEvidence:
    """Read the model in the folder `location`, which the user knows as `source`.

    `listing`, `weights` and `unanswered` (files that the hub did not give, with the reason) are
    given for a hub model, whose folder holds only its small files.
    Raises InputError, in one line, when there is no such folder, or no config.json that the
    installed transformers could make a model of.
    """
    _check_folder(location, source)
    where = f"{source}/config.json"
    try:
        config = read_json_object(location / "config.json")
    except EvidenceError as error:
        raise InputError(f"{source}: {error}; give a folder with a model's config.json") from None
    _check_forms(config, where)
    check_sizes(config, where)
    _check_model_type(config, where)
    return StaticEvidence(
        source=source,
        folder=location,
        config=config,
        given_listing=None if listing is None else tuple(listing),
        given_weights=weights,
        unanswered=unanswered or {},
    )


def _check_folder(folder: Path, source: str) -> None:
    try:
        if not folder.is_dir():
            if folder.exists():
                raise InputError(f"{source} is a file; give the folder that holds config.json")
            raise InputError(f"{source}: there is no such folder; check the path")
        if (folder / "config.json").exists():
            return
        with os.scandir(folder) as found:
            names = sorted(entry.name for entry in islice(found, FOLDER_FILES))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{source} cannot be read: {reason}") from None
    if not names:
        raise InputError(f"{source} is empty; give the folder that holds the model's config.json")
    if "adapter_config.json" in names:
        raise InputError(
            f"{source} holds an adapter, no model; give the base model{_base_model(folder)} as "
            "MODEL, and this folder with --adapter"
        )
    nested = next((n for n in names if (folder / n / "config.json").is_file()), None)
    hint = f"; did you mean {Path(source) / nested}?" if nested else ""
    held = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    raise InputError(
        f"{source} holds no config.json (but {held}){hint or '; give the folder of a model'}"
    )


def _base_model(folder: Path) -> str:
    try:
        base = read_json_object(folder / "adapter_config.json").get("base_model_name_or_path")
    except EvidenceError:
        return ""  # the hint is a courtesy; the message stands without it
    return f" ({shown(base)})" if isinstance(base, str) and base else ""


def _check_forms(config: dict[str, Any], where: str) -> None:
    """Raise InputError for entries whose form no release of transformers takes."""
    model_type = config.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise InputError(f"{where}: 'model_type' is {shown(model_type)}, not text; correct it")
    names = config.get("architectures")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise InputError(f"{where}: 'architectures' is {shown(names)}, not a list of class names")
    for key in ("auto_map", "quantization_config"):
        value = config.get(key)
        if value is not None and not isinstance(value, dict):
            raise InputError(f"{where}: {key!r} is {shown(value)}, not an object; correct it")
    try:
        list(_auto_map_targets(config.get("auto_map") or {}))
    except EvidenceError as error:
        raise InputError(f"{where}: {error}") from None


def _check_model_type(config: dict[str, Any], where: str) -> None:
    """Raise InputError when the installed transformers cannot know what model this is."""
    if config.get("auto_map"):
        return  # the repository brings its own classes
    model_type = config.get("model_type")
    if not model_type:
        raise InputError(
            f"{where} has no 'model_type' and no 'auto_map': the model cannot be identified; "
            "add the 'model_type'"
        )
    known = known_architectures()
    if known is not None and model_type not in known:
        raise InputError(f"{where}: {unknown_architecture(model_type, known)}")


def unknown_architecture(name: str, known: Sequence[str]) -> str:
    """The sentence that says that the installed transformers does not know `name`."""
    return (
        f"the installed transformers knows no architecture {shown(name)}"
        f"{did_you_mean(name, known) or '; a newer transformers may'}"
    )


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, empty when none is near."""
    plain = {_plain(each): each for each in known}
    near = difflib.get_close_matches(_plain(name[:100]), plain, n=1, cutoff=0.7)
    return f"; did you mean {plain[near[0]]!r}?" if near else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


def _auto_map_targets(auto_map: Mapping[str, Any]) -> Iterator[AutoMapTarget]:
    """The targets in `auto_map`; EvidenceError for a reference that is none."""
    for auto_class, value in auto_map.items():
        # ["slow", null] and the like: a tokenizer has two forms, of which one may be missing.
        for reference in value if isinstance(value, list) else [value]:
            if reference is None:
                continue
            if not isinstance(reference, str):
                raise EvidenceError(f"'auto_map' names {shown(reference)}, not a module.Class")
            repository, separator, rest = reference.rpartition("--")
            module, dot, class_name = rest.rpartition(".")
            # "a.b" is the file b.py in the folder a; "a/b" and ".." are no module names.
            if not dot or not all(p.isidentifier() for p in (*module.split("."), class_name)):
                raise EvidenceError(f"'auto_map' names {shown(reference)}, not a module.Class")
            yield AutoMapTarget(auto_class, repository if separator else None, module, class_name)


def _dtype_of(config: Mapping[str, Any]) -> tuple[str, str] | None:
    for key in ("dtype", "torch_dtype"):
        value = config.get(key)
        if isinstance(value, str) and value and value != "auto":
            return value.removeprefix("torch."), key
    return None


def _walk(folder: Path) -> Iterator[str]:
    """Relative names of the files under `folder`, breadth first, within the limits above."""
    todo = deque([(folder, PurePosixPath(), 0)])
    left, entries_left = FOLDER_FILES, FOLDER_ENTRIES
    while todo:
        current, prefix, depth = todo.popleft()
        try:
            with os.scandir(current) as found:
                entries = sorted(islice(found, entries_left), key=lambda entry: entry.name)
        except OSError:
            continue  # a folder that this user may not read is none of the model's files
        entries_left -= len(entries)
        for entry in entries:
            name = prefix / entry.name
            if entry.is_dir(follow_symlinks=False):
                if depth < FOLDER_DEPTH and not entry.name.startswith((".", "__")):
                    todo.append((Path(entry.path), name, depth + 1))
            elif entry.is_file():
                yield str(name)
                left -= 1
                if not left:
                    return
