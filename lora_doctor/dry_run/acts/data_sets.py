"""``load_dataset``: a set that was prepared before is read where it lies, of one on a hub a few
rows are streamed, and for one that cannot be had rows are made up where that is asked for."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts import data
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.outputs import Redirected
from lora_doctor.dry_run.acts.synthetic import NotMadeError, made_rows
from lora_doctor.dry_run.prepared_data import link_prepared
from lora_doctor.guest.call_sites import caller

#: Arguments that say which set it is; the others are about how it is read.
_WHICH = ("path", "name", "data_dir", "data_files", "split")
#: Rows of a set whose number nobody declares.
_LENGTH = 1000
#: A set is worth streaming from so many times the rows that are taken.
_LARGE = 4


def prepare(acting: Acting) -> None:
    """Once ``datasets`` can load."""
    acting.after("datasets.load", lambda module: _loading(acting, module))


def _loading(acting: Acting, module: ModuleType) -> None:
    def load(original: Any, *arguments: Any, **named: Any) -> Any:
        named = {**dict(zip(_WHICH, arguments, strict=False)), **named}
        more = arguments[len(_WHICH) :]
        if acting.in_contract or more:
            return original(*arguments, **named) if not more else original(*arguments)
        if named.get("cache_dir"):
            named["cache_dir"] = _apart(acting, named["cache_dir"])
        try:
            few = _few_of_hub(acting, module, named)
            return original(**named) if few is None else few
        except Exception as error:
            made = _not_had(acting, module, named, error)
            if made is None:
                raise
            return made

    places = Redirected(acting)

    def from_disk(original: Any, *arguments: Any, **named: Any) -> Any:
        if "dataset_path" in named:
            named["dataset_path"] = places.to_read(named["dataset_path"])
        try:
            return places.reading_first(original, *arguments, **named)
        except Exception as error:
            name = str(arguments[0] if arguments else named.get("dataset_path", ""))
            _tell(acting, name, error, "")
            raise

    acting.replaced.around(module, "load_dataset", load)
    if "load_from_disk" in vars(module):
        acting.replaced.around(module, "load_from_disk", from_disk)


def _apart(acting: Acting, cache: Any) -> str:
    """A folder of the session in the place of a cache of the user's."""
    full = os.path.abspath(os.path.expanduser(str(cache)))
    folder = acting.session.folder / "datasets" / f"cache{abs(hash(full)):x}"
    link_prepared(Path(full), folder)
    return str(folder)


# --- a set that cannot be had -------------------------------------------------------------------


def cannot_be_had(error: BaseException) -> bool:
    """Whether an exception says that the data are not here, and not that the call is wrong."""
    found: BaseException | None = error
    while found is not None:
        name = type(found).__name__
        if isinstance(found, OSError) or name.endswith(("NotFoundError", "ConnectionError")):
            return True
        if str(found).startswith("Couldn't find cache"):  # offline, and never prepared
            return True
        found = found.__cause__
    return False


def _not_had(acting: Acting, module: Any, named: Mapping[str, Any], error: Exception) -> Any:
    """Made-up rows in the place of a set that cannot be had; ``None`` where there are none, which
    is told."""
    if not cannot_be_had(error):
        return None
    name = str(named.get("path", ""))[:200]
    if not acting.session.options.get("synthetic_data"):
        _tell(acting, name, error, "")
        return None
    features, lengths = _declared(module, named)
    if features is None:
        _tell(acting, name, error, "it declares no features (load_dataset takes features=...)")
        return None
    try:
        made = _made(acting, features, lengths, named)
    except (NotMadeError, ImportError, ValueError, TypeError) as problem:
        _tell(acting, name, error, str(problem))
        return None
    place = caller()
    acting.journal.tell(
        "synthetic",
        name=name,
        reason=f"{type(error).__name__}: {error}"[:600],
        columns=list(features),
        place=None if place is None else vars(place),
    )
    return made


def _tell(acting: Acting, name: str, error: Exception, no_rows: str) -> None:
    if not cannot_be_had(error):
        return
    place = caller()
    acting.journal.tell(
        "no_data",
        name=name,
        reason=f"{type(error).__name__}: {error}"[:600],
        no_rows=no_rows,
        place=None if place is None else vars(place),
    )


def _declared(module: Any, named: Mapping[str, Any]) -> tuple[Any, dict[str, int]]:
    """The features that the call or the set itself declares, and the lengths of its splits."""
    info = _info(module, named)
    splits = getattr(info, "splits", None) or {}
    lengths = {str(key): int(one.num_examples) for key, one in splits.items() if one.num_examples}
    return named.get("features") or getattr(info, "features", None), lengths


def _info(module: Any, named: Mapping[str, Any]) -> Any:
    """What the set declares of itself: its builder is asked, then its card; ``None``: nothing."""
    which = {key: named[key] for key in ("path", "name", "revision", "token") if named.get(key)}
    try:
        return module.load_dataset_builder(**which).info
    except Exception:  # noqa: BLE001 - whatever it is, the card is left
        return _card(str(named.get("path", "")), named)


def _card(path: str, named: Mapping[str, Any]) -> Any:
    """What the ``README.md`` of the set declares."""
    from huggingface_hub import hf_hub_download

    infos = importlib.import_module("datasets.info").DatasetInfosDict
    try:
        folder = path
        if not os.path.isdir(path):
            asked = {key: named[key] for key in ("revision", "token") if named.get(key)}
            folder = os.path.dirname(
                hf_hub_download(path, "README.md", repo_type="dataset", **asked)
            )
        found = infos.from_directory(folder)
    except Exception:  # noqa: BLE001 - no card, or one that cannot be read: nothing is declared
        return None
    return found.get(named.get("name") or "default") or next(iter(found.values()), None)


def _made(acting: Acting, features: Any, lengths: dict[str, int], named: Mapping[str, Any]) -> Any:
    datasets = importlib.import_module("datasets")
    if not isinstance(features, datasets.Features):
        features = datasets.Features(features)
    rows = made_rows(features, acting.rows)
    few = datasets.Dataset.from_list(rows, features=features)

    def of(split: str) -> Any:
        length = lengths.get(split.partition("[")[0], _LENGTH)
        if named.get("streaming"):
            return few.to_iterable_dataset()
        return data.repeated(few, length, acting=acting)

    split = named.get("split")
    if isinstance(split, (list, tuple)):
        return [of(str(one)) for one in split]
    if split is not None:
        return of(str(split))
    kind = datasets.IterableDatasetDict if named.get("streaming") else datasets.DatasetDict
    return kind({one: of(one) for one in (lengths or {"train": 0})})


# --- a set on a hub -----------------------------------------------------------------------------


def _few_of_hub(acting: Acting, module: Any, named: Mapping[str, Any]) -> Any:
    """A few rows of a large set that lies on a hub and was never prepared here, in the length that
    it declares; ``None`` where it is loaded as usual."""
    path = str(named.get("path", ""))
    split = named.get("split")
    plain = split is None or (isinstance(split, str) and split.isidentifier())
    if named.get("streaming") or os.path.exists(path) or "/" not in path or not plain:
        return None
    kept = {key: one for key, one in named.items() if key not in ("split", "streaming", "num_proc",
            "keep_in_memory", "verification_mode", "save_infos")}  # fmt: skip
    builder = module.load_dataset_builder(**kept)
    if os.path.isdir(builder.cache_dir):
        return None
    return few_rows(acting, builder, split, path)


def few_rows(acting: Acting, builder: Any, split: str | None, name: str) -> Any:
    """The first rows of each split of a builder, streamed, in the length that it declares; ``None``
    where it declares none or is small."""
    datasets = importlib.import_module("datasets")
    declared = builder.info.splits or {}
    wanted = [str(one) for one in declared] if split is None else [split]
    lengths = {one: declared[one].num_examples for one in wanted if one in declared}
    if set(lengths) != set(wanted) or not all(lengths.values()):
        return None
    if max(lengths.values()) <= _LARGE * acting.rows:
        return None
    found = {}
    for one in wanted:
        stream = builder.as_streaming_dataset(split=one)
        rows = list(itertools.islice(stream, min(acting.rows, lengths[one])))
        made = datasets.Dataset.from_list(rows, features=stream.features or builder.info.features)
        found[one] = data.repeated(made, lengths[one], acting=acting)
    acting.note(
        "sampled", f"of {name} the first {acting.rows} rows of each split were streamed", once=name
    )
    return found[split] if split is not None else datasets.DatasetDict(found)
