"""A training set and a collator made again from their description
(``recipe/program/own_rows.py``): by the installed libraries, with the program's functions worked
out by ``plain_code``."""

from __future__ import annotations

import ast
import csv
import functools
import importlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_doctor.evidence.plain_code import PlainFunction
from lora_doctor.evidence.plain_statements import Budget
from lora_doctor.evidence.plain_values import (
    Allowed,
    Made,
    NotFollowedError,
    OpenedText,
    methods_of,
)
from lora_doctor.evidence.refused_arguments import named as imported_as
from lora_doctor.recipe.program.code_of import parsed_code
from lora_doctor.static.named_file import rows_file

#: A file that is read as a whole; of more rows only the first would be, and what follows from
#: their number (splits, steps) would be another.
_MOST_BYTES = 8 << 20
_MOST_ROWS = 4_000
#: Methods of a set that read files, and who reads them.
_FROM_FILES = {"from_json": "json", "from_csv": "csv", "from_text": "text",
               "from_parquet": "parquet"}  # fmt: skip
_BUILDERS = ("json", "csv", "text", "parquet")
_OF_SETS = frozenset(
    {"map", "filter", "shuffle", "select", "train_test_split", "rename_column", "rename_columns",
     "remove_columns", "select_columns", "with_format", "set_format", "reset_format",
     "class_encode_column", "add_column", "sort", "take", "skip", "shard", "flatten",
     "flatten_indices"}
)  # fmt: skip
_READ = frozenset({"column_names", "num_rows", "num_columns"})
_COLLATORS = re.compile(r"(?:transformers|trl)(?:\.\w+)*\.(?:DataCollator\w*|default_data_collator"
                        r"|DefaultDataCollator)")  # fmt: skip
_COMPUTES: Mapping[str, Callable[[], Callable[..., Any]]] = {
    "json.loads": lambda: json.loads, "json.dumps": lambda: _dumped_json,
    "json.load": lambda: _loaded_json, "csv.DictReader": lambda: _rows_of_csv,
    "torch.tensor": lambda: _torch("tensor"), "torch.LongTensor": lambda: _torch("LongTensor"),
}  # fmt: skip
#: Values that the description names and that are no calls.
_NAMES = re.compile(r"torch\.(?:b?float\d*|long|int\d*|bool)|transformers\.default_data_collator")


class Maker:
    """Makes values from descriptions. ``tokenizer``, ``model``: those of the run."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.budget = Budget()
        #: What functions may change, by its number: what one does to it, the next one sees.
        self._made: dict[int, Any] = {}
        #: Line of the program's call that is being made.
        self.line = 0

    def value(self, node: Mapping[str, Any]) -> Any:
        """What a description stands for.

        Raises:
            NotFollowedError: it cannot be made here.
        """
        if "same" not in node:
            return getattr(self, f"_{node['is']}")(node)
        number = node["same"]
        if number not in self._made:
            self._made[number] = getattr(self, f"_{node['is']}")(node)
        return self._made[number]

    def _unknown(self, node: Mapping[str, Any]) -> Any:
        raise NotFollowedError("not known")

    def _plain(self, node: Mapping[str, Any]) -> Any:
        return node["value"]

    def _tokenizer(self, node: Mapping[str, Any]) -> Any:
        if self.tokenizer is None:
            raise NotFollowedError("tokenizer")
        return self.tokenizer

    def _model(self, node: Mapping[str, Any]) -> Any:
        return self.model

    def _list(self, node: Mapping[str, Any]) -> list[Any]:
        return [self.value(item) for item in node["items"]]

    def _tuple(self, node: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(self._list(node))

    def _set(self, node: Mapping[str, Any]) -> set[Any]:
        return set(self._list(node))

    def _dict(self, node: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.value(one) for name, one in node["entries"].items()}

    def _name(self, node: Mapping[str, Any]) -> Any:
        name = node["name"]
        if name in _COMPUTES:
            return Allowed(_COMPUTES[name]())
        if name.startswith("builtins."):
            raise NotFollowedError(name)
        if not _NAMES.fullmatch(name):
            return _Module(name)
        return _imported(name)

    def _function(self, node: Mapping[str, Any]) -> PlainFunction:
        code = parsed_code(node["code"])
        if code is None or isinstance(code, ast.AsyncFunctionDef):
            raise NotFollowedError("code")
        names = {name: self._or_gap(one) for name, one in node["names"].items()}
        names.setdefault("open", Allowed(self._opened))
        owner = self.value(node["owner"]) if "owner" in node else None
        return PlainFunction(code, names, self.budget, node["line"], owner)

    def _or_gap(self, node: Mapping[str, Any]) -> Any:
        """The value; what cannot be made is told where the code reads it."""
        try:
            return self.value(node)
        except NotFollowedError as error:
            return error

    def _object(self, node: Mapping[str, Any]) -> OwnObject:
        found = OwnObject(node["class"])
        for name, one in node["methods"].items():
            found.methods[name] = self._function(one).bound(found)
        start = found.methods.pop("__init__", None)
        if start is not None and "given" in node:
            given, named = self._arguments(node)
            start(*given, **named)
        else:
            values = {name: self._or_gap(one) for name, one in node["attributes"].items()}
            found.attributes.update(values)
        return found

    def _part(self, node: Mapping[str, Any]) -> Any:
        owner = self.value(node["of"])
        name = node["name"]
        if node["attribute"]:
            if owner is self.tokenizer and not name.startswith("_"):
                found = getattr(owner, name)
                if callable(found) and name not in methods_of(owner):
                    raise NotFollowedError(name)
                return found
            if _is_set(owner) and name in _READ:
                return getattr(owner, name)
            raise NotFollowedError(name)
        if not (_is_set(owner) or isinstance(owner, (dict, list))):
            raise NotFollowedError("entry")
        return owner[name]

    def _changed(self, node: Mapping[str, Any]) -> Any:
        owner = self.value(node["of"])
        self._called(owner, node)
        return owner

    def _call(self, node: Mapping[str, Any]) -> Any:
        if "of" in node:
            return self._called(self.value(node["of"]), node)
        name = node["name"]
        if name in _COMPUTES or name == "builtins.open":
            given, named = self._arguments(node)
            return (self._opened if name == "builtins.open" else _COMPUTES[name]())(*given, **named)
        if name == "functools.partial":
            given, named = self._arguments(node)
            if not given or not callable(given[0]):
                raise NotFollowedError(name)
            return functools.partial(given[0], *given[1:], **named)
        if name.startswith("datasets."):
            return self._made_set(name, node)
        if _COLLATORS.fullmatch(name):
            given, named = self._arguments(node)
            self._reached(node)
            return _imported(name)(*given, **named)
        raise NotFollowedError(name)

    def _arguments(self, node: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        given = [self.value(one) for one in node["given"]]
        return given, {name: self.value(one) for name, one in node["named"].items()}

    def _reached(self, node: Mapping[str, Any]) -> None:
        self.line, self.budget.line = node["line"], 0

    def _called(self, owner: Any, node: Mapping[str, Any]) -> Any:
        """A method of a set."""
        name = node["name"]
        given, named = self._arguments(node)
        if not _is_set(owner) or name not in _OF_SETS:
            raise NotFollowedError(name)
        for one in (*given, *named.values()):
            if callable(one) and one is not self.tokenizer and not _is_followed(one):
                raise NotFollowedError(name)
        self._reached(node)
        if name in ("map", "filter"):
            named["load_from_cache_file"] = False
        return getattr(owner, name)(*given, **named)

    def _made_set(self, name: str, node: Mapping[str, Any]) -> Any:
        datasets = importlib.import_module("datasets")
        datasets.logging.set_verbosity_error()
        datasets.disable_progress_bars()
        method = name.rpartition(".")[2]
        if method in ("load_dataset", *_FROM_FILES):
            return self._loaded(datasets, node)
        given, named = self._arguments(node)
        self._reached(node)
        if method in ("from_list", "from_dict") and name.startswith("datasets.Dataset."):
            return _small(getattr(datasets.Dataset, method)(*given, **named))
        if method in ("DatasetDict", "concatenate_datasets"):
            return getattr(datasets, method)(*given, **named)
        raise NotFollowedError(name)

    def _loaded(self, datasets: Any, node: Mapping[str, Any]) -> Any:
        """``load_dataset("json", data_files=...)``: files that lie here, and nothing else."""
        given, named = self._arguments({**node, "named": {
            key: one for key, one in node["named"].items()
            if key not in ("data_files", "path_or_paths")
        }})  # fmt: skip
        builder = named.pop("path", None) or (given[0] if len(given) == 1 else None)
        of_file = _FROM_FILES.get(node["name"].rpartition(".")[2])
        if of_file is not None:
            builder, named = of_file, {"split": "train", **named}
        files = self.value(node["files"])
        if builder not in _BUILDERS or set(named) - {"split"}:
            raise NotFollowedError("load_dataset")
        if sum(Path(one).stat().st_size for one in _paths(files)) > _MOST_BYTES:
            raise NotFollowedError("a long file")
        if any(_is_packed(one) for one in _paths(files)):
            raise NotFollowedError("a packed file")  # its size says nothing
        self._reached(node)
        return _small(
            datasets.load_dataset(builder, data_files=files, cache_dir=self.cache, **named)
        )

    def _opened(self, path: Any, mode: str = "r", **more: Any) -> OpenedText:
        """A text file that lies here, to be read."""
        found = rows_file(str(path), (Path(), self.folder))
        if found is None or mode not in ("r", "rt") or set(more) - {"encoding", "newline"}:
            raise NotFollowedError("open")
        if found.stat().st_size > _MOST_BYTES:
            raise NotFollowedError("a long file")
        return OpenedText(found.read_text(more.get("encoding") or "utf-8"))

    #: Folder in which sets are kept while they are made, and the one where the program is.
    cache: str = ""
    folder: Path = Path()


class OwnObject(Made):
    """An object of a class of the program's: what is set on it, and its methods."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.attributes: dict[str, Any] = {}
        self.methods: dict[str, PlainFunction] = {}

    def attribute(self, name: str) -> Any:
        found = self.attributes.get(name, self.methods.get(name))
        if found is None and name not in self.attributes:
            raise NotFollowedError(name)
        if isinstance(found, NotFollowedError):
            raise found
        return found

    def set(self, name: str, value: Any) -> None:
        self.attributes[name] = value


def as_rows(value: Any) -> Any:
    """A set that a trainer takes; of an object of the program's one with the same methods."""
    if not isinstance(value, OwnObject):
        return value
    if "__getitem__" not in value.methods:
        raise NotFollowedError("rows")
    torch_set = importlib.import_module("torch.utils.data").Dataset
    methods: dict[str, Any] = {
        name: _method(value.methods[name]) for name in ("__getitem__", "__len__")
        if name in value.methods
    }  # fmt: skip
    return type(value.name, (torch_set,), methods)()


def as_collator(value: Any) -> Any:
    """What a trainer calls to make a batch."""
    if isinstance(value, OwnObject):
        if "__call__" not in value.methods:
            raise NotFollowedError("collator")
        return value.methods["__call__"]
    return value


def _method(function: PlainFunction) -> Callable[..., Any]:
    def called(self: Any, *given: Any) -> Any:
        return function(*given)

    return called


class _Module(Made):
    """A module or a class of a library, of which code may use what only computes."""

    def __init__(self, name: str) -> None:
        self.name = name

    def attribute(self, name: str) -> Any:
        full = f"{self.name}.{name}"
        if full in _COMPUTES:
            return Allowed(_COMPUTES[full]())
        if _NAMES.fullmatch(full):
            return _imported(full)
        return _Module(full)


def _loaded_json(file: OpenedText) -> Any:
    return json.loads(file.read())


def _dumped_json(value: Any, *, indent: int | str | None = None, **more: Any) -> str:
    wide = len(indent) if isinstance(indent, str) else indent or 0
    if wide > 16 or set(more) - {"ensure_ascii", "sort_keys", "separators"}:
        raise NotFollowedError("json.dumps")
    return json.dumps(value, indent=indent, **more)


def _rows_of_csv(file: OpenedText) -> list[dict[str, Any]]:
    return list(csv.DictReader(file.lines))


def _imported(name: str) -> Any:
    try:
        return imported_as(name)
    except (ImportError, AttributeError) as error:
        raise NotFollowedError(name) from error


def _torch(name: str) -> Any:
    return getattr(importlib.import_module("torch"), name)


def _is_set(value: Any) -> bool:
    return type(value).__name__ in ("Dataset", "DatasetDict") and (
        type(value).__module__.startswith("datasets.")
    )  # fmt: skip


def _is_followed(called: Any) -> bool:
    inner = called.func if isinstance(called, functools.partial) else called
    return isinstance(inner, (PlainFunction, Allowed))


def _small(made: Any) -> Any:
    sizes = made.num_rows if isinstance(made.num_rows, dict) else {"": made.num_rows}
    if sum(sizes.values()) > _MOST_ROWS:
        raise NotFollowedError("many rows")
    return made


def _is_packed(path: str) -> bool:
    """Whether the library would unpack the file before it is read."""
    extract = importlib.import_module("datasets.utils.extract")
    return bool(extract.Extractor.infer_extractor_format(path))


def _paths(files: Any) -> list[str]:
    if isinstance(files, dict):
        return [path for one in files.values() for path in _paths(one)]
    return list(files) if isinstance(files, list) else [files]
