"""What an answer hangs on: everything that can change it, as one key.

In doubt there is no key, and nothing is stored or found: a wrong hit would be a false answer. What
is read as text is in the key by its content, weights and installed packages by size and times.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_doctor._version import __version__
from lora_doctor.errors import LoraDoctorError
from lora_doctor.limits import FOLDER_FILES, TOKENIZER_BYTES
from lora_doctor.static.installed.environment import package_folder

if TYPE_CHECKING:
    from lora_doctor.api.options import CheckOptions
    from lora_doctor.engine.case import Case
    from lora_doctor.static.hub.snapshot import HubSnapshot

#: The folder of this package.
_OWN = Path(__file__).parents[1]
#: Packages whose code decides the answer: each of their files counts, for people change them in
#: place. Of all others the metadata does.
_CODE = (
    "transformers", "peft", "bitsandbytes", "accelerate", "trl", "timm", "huggingface_hub",
    "tokenizers", "safetensors", "torchao", "liger_kernel", "cut_cross_entropy", "llamafactory",
    "axolotl", "swift",
)  # fmt: skip
#: Variables that these libraries read, and that decide where Python finds modules.
_VARIABLES = (
    "ACCELERATE", "ATEN_", "BITSANDBYTES", "BNB", "CUDA", "DEEPSPEED", "DISABLE_", "DS_", "DYLD_",
    "FSDP_", "HF_", "HIP_", "HUGGINGFACE", "KMP_", "LANG", "LC_", "LD_", "LOCAL_", "LORA_DOCTOR",
    "MASTER_", "MKL_", "NVIDIA", "OMP_", "OPENBLAS", "PEFT", "PJRT_", "PYTHON", "PYTORCH", "RANK",
    "ROCR_", "SAFETENSORS", "TOKENIZERS", "TORCH", "TRANSFORMERS", "TRITON", "TRL_", "USE_",
    "WORLD_SIZE", "XFORMERS", "XLA_",
)  # fmt: skip
#: Entry points by which other packages add to lora-doctor.
_PLUGINS = ("lora_doctor.rules", "lora_doctor.recipe_formats")
#: Options that hold objects of the caller's, or that are looked at elsewhere.
_OBJECTS = ("batches", "optimizer", "scheduler", "planned_steps", "worker")
_ELSEWHERE = ("progress", "limits", "rules", "data", "eval_data", "prescription", "adapter")
_MOST_FILES = 20_000


class NotCachedError(Exception):
    """Why an answer is neither stored nor looked for."""


def key_of(case: Case, options: CheckOptions) -> str:
    """The key of the question: 64 hexadecimal digits.

    Raises:
        NotCachedError: the answer may hang on something that is not looked at.
    """
    try:
        parts = {
            "lora_doctor": [__version__, _tree(_OWN)],
            "options": _options(options),
            "case": _case(case),
            "stack": _stack(),
            "process": _process(),
            "rules": [_folder(Path(folder)) for folder in options.get("rules", ())],
        }
        text = json.dumps(parts, sort_keys=True, default=_refuse)
    except NotCachedError:
        raise
    except (OSError, LoraDoctorError) as error:
        raise NotCachedError(f"a file cannot be read: {error}") from None
    except (TypeError, ValueError, RecursionError) as error:  # keys of several types, ...
        raise NotCachedError(f"what was asked has no text that says all of it: {error}") from None
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _refuse(value: object) -> str:
    raise NotCachedError(f"a {type(value).__name__} has no text that says all of it")


# --- what was asked -----------------------------------------------------------------------------


def _options(options: CheckOptions) -> dict[str, Any]:
    given: Mapping[str, Any] = options
    if given.get("depth") not in ("meta", "tiny"):
        raise NotCachedError("only depths meta and tiny are")
    if given.get("device", "auto") not in ("auto", "cpu"):
        raise NotCachedError("it was run on a GPU")
    if given.get("trust_remote_code"):
        raise NotCachedError("code of the model's repository may run")
    if any(given.get(name) for name in _OBJECTS):
        raise NotCachedError("objects of the caller's were given")
    if given.get("data") and given.get("samples") != "none":
        raise NotCachedError("texts of rows are never stored (--no-samples leaves them out)")
    limits = given.get("limits")
    files = [given.get(name) for name in ("data", "eval_data", "prescription")]
    return {
        "limits": asdict(limits) if limits is not None else None,
        "files": [_file(Path(file).expanduser()) if file else None for file in files],
        **{name: value for name, value in given.items()
           if name not in (*_OBJECTS, *_ELSEWHERE)},
    }  # fmt: skip


def _case(case: Case) -> dict[str, Any]:
    source, recipe, adapter = case.source, case.asked, case.settings.adapter
    if source.kind not in ("arch", "folder", "hub"):
        raise NotCachedError(f"a {source.kind} is code of the user's, or a model in memory")
    if source.out_of_reach:
        raise NotCachedError("the model's files could not be had")
    if source.script or recipe.written is not None:
        raise NotCachedError("a script may import others")
    if adapter is not None and adapter.snapshot is not None:
        raise NotCachedError("the adapter is on the hub")
    folders = [source.folder, source.adapter or None, adapter and str(adapter.folder)]
    if source.kind == "folder":
        folders.append(source.name)
    set_up = recipe.set_up
    named = [str(recipe.file)] if recipe.file is not None else []
    named += set_up.files if set_up is not None else ()
    named += [place.file for place in recipe.places.values()]
    return {
        "source": [source.for_child(), listing_of(source.snapshot)],
        "recipe": recipe.to_json(),
        "file": str(recipe.file),
        "folders": [_folder(Path(folder).expanduser()) for folder in folders if folder],
        "files": {name: _file(Path(name)) for name in named if os.path.exists(name)},
        "named": _named_files(recipe.to_json(), named),
        "beside": repr(case.side_files) if set_up is not None else None,
    }


def listing_of(snapshot: HubSnapshot | None) -> list[Any] | None:
    """What the hub said of its files. Without its answer less is known of the same commit."""
    if snapshot is None:
        return None
    files = [[file.name, file.size, file.reason] for file in snapshot.files]
    return [snapshot.endpoint, snapshot.from_cache, snapshot.weights is None, files]


def _named_files(value: Any, beside: list[str]) -> dict[str, Any]:
    """The files that texts of the recipe name, from here or from beside its own file."""
    here = [Path(), *(Path(file).parent for file in beside)]
    found = {}
    for text in set(_texts(value)):
        for folder in here:
            path = folder / os.path.expanduser(text)
            if text and path.is_dir():
                raise NotCachedError(f"the recipe names the folder {text}")
            if path.is_file():
                found[str(path)] = _file(path)
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if "\0" not in value and len(value) < 1000:
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)


# --- where it is run ----------------------------------------------------------------------------


def _stack() -> dict[str, Any]:
    """Each installed package by its metadata, and every file of those whose code decides."""
    found = {}
    for distribution in importlib.metadata.distributions():
        if any(point.group in _PLUGINS for point in distribution.entry_points):
            raise NotCachedError("an installed package adds rules or recipe formats")
        folder = getattr(distribution, "_path", None)
        if folder is None:
            raise NotCachedError("an installed package has no folder")
        metadata = distribution.read_text("METADATA") or ""
        found[str(folder)] = [*_times(Path(folder)), hashlib.sha256(metadata.encode()).hexdigest()]
    trees = {name: package_folder(name) for name in _CODE}
    code = {name: _tree(folder) for name, folder in trees.items() if folder is not None}
    return {"packages": found, "code": code}


def _process() -> dict[str, Any]:
    """The interpreter, the machine, the variables, and where modules are found."""
    variables = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
    digest = hashlib.sha256(json.dumps(variables, sort_keys=True).encode("utf-8", "replace"))
    return {
        "python": [sys.version, sys.executable, platform.platform()],
        "processor": _processor(),
        "variables": digest.hexdigest(),
        "path": [[path, _imported_from(path)] for path in sys.path if path],
        "here": [os.getcwd(), [entry.name for entry in _importable(".")]],
    }


def _imported_from(folder: str) -> list[Any]:
    """What may be imported from an entry of the import path: modules and files run at start-up by
    size and time, and so the files of packages that no installer has put there (PYTHONPATH)."""
    if os.path.isfile(folder):  # a zip archive
        return _times(Path(folder))
    installed = os.path.realpath(folder) in _installed_folders()
    return [
        [entry.name, _times(Path(entry.path)) if entry.is_file() else
         None if installed else _tree(Path(entry.path))]
        for entry in _importable(folder)
    ]  # fmt: skip


def _installed_folders() -> set[str]:
    """Where the interpreter's modules are, and packages that have metadata."""
    folders = set(sysconfig.get_paths().values())
    folders |= {os.path.join(sysconfig.get_path(name), "lib-dynload")
                for name in ("stdlib", "platstdlib")}  # fmt: skip
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    return {os.path.realpath(folder) for folder in folders}


def _importable(folder: str) -> list[os.DirEntry[str]]:
    """What of a folder a module may be found in, or is run at start-up; not what lies there
    besides, such as a report of the last run."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        found = [
            entry for entry in entries
            if entry.name.endswith((".py", ".pth", ".so", ".pyd", ".egg-link"))
            or (entry.is_dir() and os.path.isfile(os.path.join(entry.path, "__init__.py")))
        ]  # fmt: skip
    return sorted(found, key=lambda entry: entry.name)


def _processor() -> str:
    """What the processor can: two nodes of a cluster may share a home."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            lines = stream.read(1 << 16).splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(dict.fromkeys(
        line for line in lines if line.startswith(("model name", "flags", "Features"))
    ))  # fmt: skip


# --- files --------------------------------------------------------------------------------------


def _times(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _file(path: Path) -> list[Any]:
    """What tells one content from another: a hash, of a large file its identity and times."""
    status = path.stat()
    if not path.is_file():
        raise NotCachedError(f"{path} is not a plain file")
    identity = [str(path.absolute()), status.st_size]
    if status.st_size > TOKENIZER_BYTES or path.suffix == ".safetensors":
        with path.open("rb") as stream:
            head = hashlib.sha256(stream.read(1 << 20)).hexdigest()
        times = [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        return [*identity, *times, os.path.realpath(path), head]
    with path.open("rb") as stream:
        return [*identity, hashlib.sha256(stream.read()).hexdigest()]


def _folder(folder: Path) -> dict[str, Any]:
    """Every file below a folder, with its content."""
    found: dict[str, Any] = {}
    for path in _walk(folder, FOLDER_FILES):
        found[str(path)] = _file(path) if path.exists() else None
    return found


def _tree(folder: Path) -> str:
    """Every Python file below a folder, by size and time."""
    digest = hashlib.sha256()
    for path in _walk(folder, _MOST_FILES):
        if path.suffix != ".pyc":
            digest.update(f"{path}\0{_times(path)}\n".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _walk(folder: Path, most: int) -> Iterator[Path]:
    count = 0
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name not in ("__pycache__", ".git"))
        for name in sorted(files):
            count += 1
            if count > most:
                raise NotCachedError(f"{folder} has more than {most:,} files")
            yield Path(root, name)
