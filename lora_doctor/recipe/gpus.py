"""GPUs by name: what a card has, from ``gpus.toml`` beside this file, which says from where."""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Every card, the cheapest first, until one does.
CHEAPEST = "cheapest"
_FILE = Path(__file__).with_name("gpus.toml")
#: From this compute capability on a card computes in bfloat16.
AMPERE = (8, 0)


@dataclass(frozen=True)
class Gpu:
    """One kind of card."""

    #: As it is given: ``a100-80gb``.
    name: str
    #: As its maker calls it.
    title: str
    #: Bytes that CUDA reports, which is less than on the data sheet.
    memory: int
    #: GB on the data sheet.
    list_memory: int
    #: Where ``memory`` is from.
    memory_from: str
    #: Compute capability.
    capability: tuple[int, int]

    @property
    def computes_bfloat16(self) -> bool:
        """Whether it computes in bfloat16; without, torch emulates that or refuses."""
        return self.capability >= AMPERE


@functools.cache
def known_gpus() -> tuple[Gpu, ...]:
    """Every card of the file, the cheapest first."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    table = tomllib.loads(_FILE.read_text("utf-8"))
    return tuple(_gpu(name, entry) for name, entry in table.items())


def _gpu(name: str, entry: Mapping[str, Any]) -> Gpu:
    major, _, minor = entry["capability"].partition(".")
    memory = int(entry["memory"] * (1 << 30))
    where = entry["memory_from"]
    return Gpu(name, entry["title"], memory, entry["list"], where, (int(major), int(minor)))


def find_gpu(name: str) -> Gpu:
    """The card of this name; spaces, dashes and ``NVIDIA`` do not matter.

    Raises:
        ValueError: there is none, or several; with those that may be meant.
    """
    gpus = {gpu.name: gpu for gpu in known_gpus()}
    wanted = _plain(name)
    by_plain = {_plain(title): known for known in gpus for title in (gpus[known].title, known)}
    if wanted in by_plain:
        return gpus[by_plain[wanted]]
    begun = [known for known in gpus if wanted and _plain(known).startswith(wanted)]
    if len(begun) == 1 and gpus[begun[0]].name.startswith(f"{name.strip().lower()}-"):
        return gpus[begun[0]]
    near = begun or difflib.get_close_matches(name.strip().lower(), list(gpus), 3, 0.5)
    meant = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(gpus)}"
    raise ValueError(f"is the name of a GPU ({meant})")


def gpu_names(given: object) -> list[str]:
    """Names as the file has them; ``cheapest`` stands for all of them and stays alone.

    Raises:
        ValueError: a name is none.
    """
    several = given if isinstance(given, (list, tuple)) else str(given).split(",")
    names = [str(name).strip() for name in several if str(name).strip()]
    if not names:
        raise ValueError("is the name of a GPU, such as a100-80gb, or cheapest")
    if CHEAPEST in (name.lower() for name in names):
        if len(names) > 1:
            raise ValueError("is cheapest alone, or names of GPUs")
        return [CHEAPEST]
    return list(dict.fromkeys(find_gpu(name).name for name in names))


def gpus_of(names: Iterable[str] | None) -> tuple[Gpu, ...]:
    """The cards of a recipe's ``gpu``; all, the cheapest first, where that is ``cheapest``."""
    names = list(names or ())
    return known_gpus() if names == [CHEAPEST] else tuple(find_gpu(name) for name in names)


def named_gpus(names: Iterable[str] | None) -> tuple[Gpu, ...]:
    """The cards of a recipe's ``gpu`` that have to do, each of them; none where any will do."""
    return () if names is None or list(names) == [CHEAPEST] else gpus_of(names)


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|[\s_-]", "", name.lower())
