"""Write a saved adapter under other names, into a new folder. What was trained stays as it is, byte
for byte: only the header of the safetensors file, and entries of the config, are others."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_doctor.errors import InputError
from lora_doctor.static.adapter_files import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from lora_doctor.results.adapter_loading import Renaming
    from lora_doctor.static.adapter_files import AdapterFiles

#: What else belongs to an adapter: its card and its tokenizer. Nothing that runs when it is loaded.
_COPIED = (".json", ".md", ".txt", ".model", ".jinja")


def fixed_folder(adapter: Path) -> Path:
    """Where the renamed adapter goes: beside the old one.

    Raises:
        InputError: something is there already.
    """
    own = adapter.resolve()
    folder = own.with_name(f"{own.name}-fixed")
    if folder.exists():
        raise InputError(f"{folder}: exists; move it away, or check it with --adapter")
    return folder


def write_renamed(adapter: AdapterFiles, renaming: Renaming, folder: Path) -> None:
    """Write the adapter with its new names; the folder is there when all of it is.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
            place = Path(name) / folder.name
            place.mkdir()
            for item in sorted(adapter.folder.iterdir()):
                if item.is_file() and item.suffix in _COPIED and item.name != CONFIG:
                    shutil.copyfile(item, place / item.name)
            config = {**adapter.config, **renaming.config}
            (place / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            _copy_renamed(adapter.folder / WEIGHTS, place / WEIGHTS, renaming.names)
            place.rename(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from None


def _copy_renamed(old: Path, new: Path, names: Mapping[str, str]) -> None:
    """The same numbers under other names; the header has been read and checked before."""
    with old.open("rb") as source, new.open("wb") as target:
        (length,) = struct.unpack("<Q", source.read(8))
        header = json.loads(source.read(length))
        renamed = {names.get(name, name): entry for name, entry in header.items()}
        text = json.dumps(renamed, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8 bytes
        target.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(source, target)
