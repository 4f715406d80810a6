"""Seeds of towers: the modules by which one sees what a part of a model is for.

The token embedding, patch convolutions, convolutions over sound, and modules that carry a config of
their own for pictures or sound. No model is known by name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_doctor.model.modules import Part, unwrap
from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.structure import TowerKind

_VISION = re.compile(r"vision|visual|image|pixel|patch(?!er)|video|(^|_)vit", re.IGNORECASE)
_AUDIO = re.compile(r"audio|speech|input_features|input_values|mel_|waveform", re.IGNORECASE)
#: Below so many rows an embedding holds positions or segments, not tokens; only asked where the
#: model does not say itself which embedding is the token embedding.
_FEWEST_TOKENS = 1000


@dataclass(frozen=True)
class Seed:
    """A module that tells what the subtree around it is for. ``why``: in words."""

    path: str
    kind: TowerKind
    why: str


class Seeds:
    """Finds the seeds of a model. ``modules``: by path, adapter layers seen through."""

    def __init__(self, model: Any, parts: Sequence[Part], modules: Mapping[str, Any]) -> None:
        self.model = model
        self.parts = parts
        self.modules = modules

    def find(self, embedding_path: str | None) -> list[Seed]:
        """All seeds. ``embedding_path``: what ``get_input_embeddings`` returns."""
        seeds = []
        root_config = type(getattr(self.model, "config", None))
        for path, module in self.modules.items():
            config = getattr(module, "config", None)
            if path and config is not None and hasattr(module, "named_parameters"):
                name = type(config).__name__
                kind, why = kind_by_words(name), f"its config is a {name}"
                if kind is None:
                    kind, why = _kind_of_input(module)
                if kind and type(config) is not root_config and next(module.children(), None):
                    seeds.append(Seed(path, kind, why))
        for part in self.parts:
            if part.kind == "conv":
                seed = self._convolution(part)
                if seed:
                    seeds.append(seed)
        seeds.extend(self._token_embeddings(embedding_path, seeds))
        return seeds

    def _convolution(self, part: Part) -> Seed | None:
        """A convolution that takes pictures or sound; not the depthwise ones inside layers."""
        module = part.module
        dimensions = len(part.shape) - 2
        if getattr(module, "transposed", False) or module.groups == module.in_channels > 1:
            return None
        kind = self.modality(part.path)
        if dimensions == 1:
            if kind != "audio":
                return None
            why = f"a convolution over {module.in_channels} sound features"
            return Seed(part.path, "audio", why)
        if kind == "audio":
            return Seed(part.path, "audio", "a convolution over a spectrogram")
        patch = module.in_channels <= 4 or tuple(module.kernel_size) == tuple(module.stride)
        if not patch:
            return None
        return Seed(part.path, "vision", f"a patch embedding ({type(module).__name__})")

    def modality(self, path: str) -> TowerKind | None:
        """What the nearest module around a path says that it takes."""
        for prefix in reversed(list(prefixes(path))):
            module = self.modules[prefix]
            for words in (
                type(getattr(module, "config", None)).__name__,
                type(module).__name__,
                _main_input(module),
                " ".join(forward_names(module)),
            ):
                kind = kind_by_words(words)
                if kind:
                    return kind
        return None

    def _token_embeddings(self, embedding_path: str | None, others: Sequence[Seed]) -> list[Seed]:
        embeddings = {part.path: part for part in self.parts if part.kind == "embedding"}
        if embedding_path in embeddings:
            return [Seed(embedding_path, "language", "it holds the token embedding")]
        # The model does not say: parts of it may (a user's own wrapper around known models).
        found: dict[str, str] = {}
        for path, module in self.modules.items():
            if path and path not in embeddings and hasattr(module, "get_input_embeddings"):
                inner, _ = ask(module, "get_input_embeddings")
                inside = None if inner is None else path_of(module, inner, {})
                full = None if inside is None else f"{path}.{inside}"
                if full in embeddings:
                    found.setdefault(full, "it holds a token embedding")
        if not found:
            sizes = _vocabulary_sizes(getattr(self.model, "config", None))
            for path, part in embeddings.items():
                if part.shape[0] in sizes:
                    found[path] = f"it holds an embedding of the vocabulary ({part.shape[0]})"
        if not found and embeddings:
            path, part = max(embeddings.items(), key=lambda item: item[1].shape[0])
            silent = getattr(self.model, "config", None) is None
            if not others or (silent and part.shape[0] >= _FEWEST_TOKENS):
                found[path] = f"it holds the largest embedding ({part.shape[0]} rows)"
        return [Seed(path, "language", why) for path, why in found.items()]


def ask(module: Any, name: str) -> tuple[Any, ErrorReport | None]:
    """What a getter of a model returns, or what it raises; without a type where there is none."""
    getter = getattr(module, name, None)
    if not callable(getter):
        return None, ErrorReport("", f"{type(module).__name__} has no {name}")
    try:
        return getter(), None
    except Exception as error:  # noqa: BLE001 - remote code may raise anything; it is the evidence
        return None, ErrorReport(type(error).__name__, " ".join(str(error).split()))


def path_of(model: Any, wanted: Any, known: Mapping[int, str]) -> str | None:
    wanted = unwrap(wanted)
    if id(wanted) in known:
        return known[id(wanted)]
    return next((path for path, module in model.named_modules() if unwrap(module) is wanted), None)


def kind_by_words(words: str) -> TowerKind | None:
    """``vision`` or ``audio`` when the words name one of them, not both."""
    vision, audio = bool(_VISION.search(words)), bool(_AUDIO.search(words))
    if vision == audio or re.search(r"Text(Config|Model)", words):
        return None
    return "vision" if vision else "audio"


def _kind_of_input(module: Any) -> tuple[TowerKind | None, str]:
    """What a model takes, where its config's name does not tell (RADIO's), and why one sees it."""
    name, taken = _main_input(module), forward_names(module)
    if name not in taken or "input_ids" in taken:
        return None, ""
    return kind_by_words(name), f"its main input is {name}"


def _main_input(module: Any) -> str:
    name = getattr(type(module), "main_input_name", "")
    return name if isinstance(name, str) else ""


def forward_names(module: Any) -> list[str]:
    try:
        return list(inspect.signature(type(module).forward).parameters)
    except (TypeError, ValueError):  # a forward written in C, or none at all
        return []


def _vocabulary_sizes(config: Any) -> set[int]:
    """Every ``vocab_size`` in a config and in its sub-configs."""
    sizes = set()
    for value in (config, *getattr(config, "__dict__", {}).values()):
        size = getattr(value, "__dict__", {}).get("vocab_size")
        if isinstance(size, int):
            sizes.add(size)
    return sizes


def prefixes(path: str) -> list[str]:
    """``a.b.c`` gives the empty path, ``a``, ``a.b`` and ``a.b.c``."""
    names = path.split(".")
    return ["", *(".".join(names[: index + 1]) for index in range(len(names)))] if path else [""]
