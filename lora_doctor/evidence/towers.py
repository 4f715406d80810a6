"""Language, vision and audio towers, the projector between them and the head: by what they are.

Seeds first: the token embedding (``get_input_embeddings``), patch convolutions, convolutions over
sound, and modules that carry a config of their own for pictures or sound. A subtree with seeds of
one kind is a tower; what has none is judged by the widths that it connects. No model is known by
name.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_doctor.evidence.modules import Part, unwrap
from lora_doctor.evidence.structure import Tower, TowerKind

_VISION = re.compile(r"vision|visual|image|pixel|patch|video|(^|_)vit", re.IGNORECASE)
_AUDIO = re.compile(r"audio|speech|input_features|input_values|mel_|waveform", re.IGNORECASE)
_HEAD_NAME = re.compile(r"(^|\.|_)(lm_head|score|classifier|qa_outputs|head|proj_out|cls)$")
#: Below so many rows an embedding holds positions or segments, not tokens; only asked where the
#: model does not say itself which embedding is the token embedding.
_FEWEST_TOKENS = 1000


@dataclass(frozen=True)
class _Seed:
    path: str
    kind: TowerKind
    why: str


@dataclass(frozen=True)
class Anatomy:
    """The towers, and what was asked on the way.

    ``input_embeddings``: path, or ``None`` with the error. ``output_embeddings``: the module.
    """

    towers: tuple[Tower, ...]
    input_embeddings: str | None
    input_embeddings_error: str | None
    output_embeddings: Any


def find_towers(model: Any, parts: Sequence[Part]) -> Anatomy:
    """The towers of a model. ``parts``: from :func:`~lora_doctor.evidence.modules.collect`."""
    paths = {id(part.module): part.path for part in parts}
    embedding, error = _ask(model, "get_input_embeddings")
    output, _ = _ask(model, "get_output_embeddings")
    embedding_path = None if embedding is None else _path_of(model, embedding, paths)
    if embedding is not None and embedding_path is None:
        error = "get_input_embeddings returns a module that is not part of the model"
    if output is None:
        output = _output_inside(model)
    search = _Search(model, parts, embedding_path, None if output is None else unwrap(output))
    return Anatomy(search.run(), embedding_path, error, output)


class _Search:
    """One walk over the module tree, from the model down to the towers."""

    def __init__(
        self, model: Any, parts: Sequence[Part], embedding_path: str | None, output: Any
    ) -> None:
        self.model = model
        self.parts = parts
        self.output = output
        self.modules: dict[str, Any] = {
            path: unwrap(module) for path, module in model.named_modules(remove_duplicate=False)
        }
        self.seeds = self._seeds(embedding_path)
        self.by_path: dict[str, list[Part]] = {}
        self.linear: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()
        for part in parts:
            for prefix in _prefixes(part.path):
                self.by_path.setdefault(prefix, []).append(part)
                # A parameter whose first dimension is 1 is a class token or positions, no layer.
                fused = part.kind == "parameter" and part.shape[0] > 1
                self.linear[prefix] += fused or part.kind in ("linear", "conv1d")
                self.sizes[prefix] += sum(int(value.numel()) for value in part.own)
        self.found: dict[str, Tower] = {}
        self.leftovers: list[str] = []
        self.bare: list[str] = []  # modules that hold the token embedding beside their layers

    def run(self) -> tuple[Tower, ...]:
        self._descend("")
        if not self.seeds and self.parts:
            kind = self._modality("")
            if kind:
                self._add("", kind, "its class or its inputs say so")
            else:
                self._add("", "other", "no token embedding, no picture or sound input was found")
        bodies = {self._body(path) for path in self.bare}
        for path in self.leftovers:
            if path not in bodies:
                self._judge(path)
        self._projectors_inside()
        order = sorted(self.found.values(), key=lambda tower: tower.path)
        return tuple(
            Tower(tower.path, tower.kind, tower.why, self._own_size(tower.path)) for tower in order
        )

    # -- seeds ---------------------------------------------------------------------------------

    def _seeds(self, embedding_path: str | None) -> list[_Seed]:
        seeds = []
        root_config = type(getattr(self.model, "config", None))
        for path, module in self.modules.items():
            config = getattr(module, "config", None)
            if path and config is not None and hasattr(module, "named_parameters"):
                name = type(config).__name__
                kind = _kind_by_words(name)
                if kind and type(config) is not root_config and next(module.children(), None):
                    seeds.append(_Seed(path, kind, f"its config is a {name}"))
        for part in self.parts:
            if part.kind == "conv":
                seed = self._convolution(part)
                if seed:
                    seeds.append(seed)
        seeds.extend(self._token_embeddings(embedding_path, seeds))
        return seeds

    def _convolution(self, part: Part) -> _Seed | None:
        """A convolution that takes pictures or sound; not the depthwise ones inside layers."""
        module = part.module
        dimensions = len(part.shape) - 2
        if getattr(module, "transposed", False) or module.groups == module.in_channels > 1:
            return None
        kind = self._modality(part.path)
        if dimensions == 1:
            if kind != "audio":
                return None
            why = f"a convolution over {module.in_channels} sound features"
            return _Seed(part.path, "audio", why)
        if kind == "audio":
            return _Seed(part.path, "audio", "a convolution over a spectrogram")
        patch = module.in_channels <= 4 or tuple(module.kernel_size) == tuple(module.stride)
        if not patch:
            return None
        return _Seed(part.path, "vision", f"a patch embedding ({type(module).__name__})")

    def _modality(self, path: str) -> TowerKind | None:
        """What the nearest module around a path says that it takes."""
        for prefix in reversed(list(_prefixes(path))):
            module = self.modules[prefix]
            for words in (
                type(getattr(module, "config", None)).__name__,
                type(module).__name__,
                _main_input(module),
                " ".join(_forward_names(module)),
            ):
                kind = _kind_by_words(words)
                if kind:
                    return kind
        return None

    def _token_embeddings(self, embedding_path: str | None, others: Sequence[_Seed]) -> list[_Seed]:
        embeddings = {part.path: part for part in self.parts if part.kind == "embedding"}
        if embedding_path in embeddings:
            return [_Seed(embedding_path, "language", "it holds the token embedding")]
        # The model does not say: parts of it may (a user's own wrapper around known models).
        found: dict[str, str] = {}
        for path, module in self.modules.items():
            if path and path not in embeddings and hasattr(module, "get_input_embeddings"):
                inner, _ = _ask(module, "get_input_embeddings")
                inside = None if inner is None else _path_of(module, inner, {})
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
        return [_Seed(path, "language", why) for path, why in found.items()]

    # -- the walk ------------------------------------------------------------------------------

    def _descend(self, path: str) -> None:
        inside = self._seeds_in(path)
        kinds = {seed.kind for seed in inside}
        if len(kinds) == 1 and self._is_one_tower(path, inside):
            self._tower(path, inside)
            return
        here: list[_Seed] = []
        for child in self._children(path):
            seeds = self._seeds_in(child)
            if not seeds:
                self.leftovers.append(child)
            elif any(seed.path == child and not self._is_tree(child) for seed in seeds):
                here.extend(seeds)  # an embedding or convolution directly in this module
            elif not self.linear[child] and any(seed.kind == "language" for seed in seeds):
                here.extend(seeds)  # embeddings without layers: those stand beside them
            else:
                self._descend(child)
        here.extend(seed for seed in inside if seed.path == path)
        if here:
            # Tokens and patches in one stream (ViLT's kind): the layers behind are language's.
            seed = next((seed for seed in here if seed.kind == "language"), here[0])
            self._add(path, seed.kind, seed.why)
            self.bare.append(path)

    def _is_one_tower(self, path: str, seeds: Sequence[_Seed]) -> bool:
        """Whether a subtree with seeds of one kind is one tower, not two side by side.

        Language seeds in several big children (text encoder and decoder of a composed model) are
        towers of their own.
        """
        if seeds[0].kind != "language":
            return True
        children = [child for child in self._children(path) if self._seeds_in(child)]
        big = [child for child in children if self.linear[child]]
        return len(big) < 2 or any(seed.path == path for seed in seeds)

    def _tower(self, path: str, seeds: Sequence[_Seed]) -> None:
        """Go down as long as one child holds the seeds and most of the layers."""
        why = seeds[0].why
        while not any(seed.path == path for seed in seeds) or self._only_wraps(path):
            holders = [child for child in self._children(path) if self._holds_all(child, seeds)]
            if not holders or 2 * self.linear[holders[0]] < self._layers_in(path):
                break
            if any(seed.path == path for seed in seeds) and path:
                break
            self.leftovers.extend(child for child in self._children(path) if child != holders[0])
            path = holders[0]
        else:
            self._add(path, seeds[0].kind, why)
            return
        for child in self._children(path):
            output = self._has_output(child) and self.linear[path] > self.linear[child]
            if output or (not self._seeds_in(child) and self._looks_like_head(path, child)):
                self.leftovers.append(child)
        self._add(path, seeds[0].kind, why)

    def _body(self, path: str) -> str | None:
        """The layers of a tower whose seed stands beside them: the largest stack there."""
        stacks = [
            child
            for child in self._children(path)
            if child in self.leftovers and self.by_path.get(child) and self._is_stack(child)
        ]
        return max(stacks, key=lambda child: self.sizes[child], default=None)

    def _only_wraps(self, path: str) -> bool:
        return not path

    def _layers_in(self, path: str) -> int:
        """Linear layers under a path, the output embeddings left out."""
        return self.linear[path] - sum(
            part.module is self.output for part in self.by_path.get(path, ())
        )

    def _holds_all(self, path: str, seeds: Sequence[_Seed]) -> bool:
        return self._is_tree(path) and all(
            seed.path == path or seed.path.startswith(path + ".") for seed in seeds
        )

    # -- what has no seed ----------------------------------------------------------------------

    def _judge(self, path: str) -> None:
        if not self.by_path.get(path):
            return
        if self._has_output(path):
            self._add(path, "head", "it holds the output embeddings")
            return
        kinds = {tower.kind for tower in self.found.values()}
        senses = [tower for tower in self.found.values() if tower.kind in ("vision", "audio")]
        surrounding = [tower for tower in self.found.values() if _contains(tower.path, path)]
        if self._looks_like_head("", path):
            self._add(path, "head", f"it gives {self._outputs(path)} outputs beside the towers")
            return
        if "language" in kinds and senses:
            link = self._link(path, senses) or ("" if surrounding else self._follows(path))
            if link:
                self._add(path, "projector", link)
                return
        if surrounding:
            return
        named = _kind_by_words(path.rpartition(".")[2])
        if named and len(kinds) == 1 and named not in kinds:
            self._add(path, named, "its name says so; nothing else does")
            return
        if self._embeds_tokens(path):
            self._add(path, "language", "it holds embeddings and layers of its own")
        elif len(kinds) == 1 and not self._is_stack(path):
            self._add(path, "head", "it stands behind the only tower")
        else:
            self._add(path, "other", "it holds no input and connects no towers")

    def _link(self, path: str, senses: Sequence[Tower]) -> str:
        """How a subtree connects a sense with language, by the widths of its linear layers."""
        ins: set[int] = set()
        outs: set[int] = set()
        for part in self.by_path[path]:
            if part.kind in ("linear", "conv") and len(part.shape) >= 2:
                outs.add(part.shape[0])
                ins.add(part.shape[1])
            elif part.kind not in ("embedding", "norm"):
                # A bare matrix does not say which side is which.
                sizes = {size for value in part.own if value.dim() == 2 for size in value.shape}
                outs |= sizes
                ins |= sizes
        for tower in self.found.values():
            if tower.kind != "language":
                continue
            goal = self._widths(tower.path)
            for sense in senses:
                source = self._widths(sense.path)
                what = f"it connects {sense.kind} (width {_some(source)}) to language"
                if outs & goal and (ins & source or not _contains(tower.path, path)):
                    return f"{what} (width {_some(outs & goal)})"
                if ins & source and (not outs & source or self._is_stack(path)):
                    return what
        # The first half of a chain (Q-Former, then projection) ends in neither width.
        return ""

    def _follows(self, path: str) -> str:
        """How a small subtree goes on from a tower: a norm, or a projection to a shared space."""
        parts = self.by_path[path]
        if self.linear[path] > 4 or self._repeats(path):
            return ""
        widths = {
            part.shape[-1] for part in parts if part.kind in ("linear", "norm") and part.shape
        }
        for tower in self.found.values():
            shared = widths & self._widths(tower.path)
            if shared and tower.kind in ("language", "vision", "audio"):
                return f"it takes the output of {tower.kind} (width {_some(shared)}) onwards"
        return ""

    def _projectors_inside(self) -> None:
        """Mergers that stand in a vision tower, behind its layers, and give language's width."""
        language = [tower for tower in self.found.values() if tower.kind == "language"]
        goal = set().union(*(self._widths(tower.path) for tower in language))
        for tower in list(self.found.values()):
            if tower.kind not in ("vision", "audio") or not language:
                continue
            own = self._widths(tower.path)
            for child in self._children(tower.path):
                if self._seeds_in(child) or not self.linear[child]:
                    continue
                last = [part for part in self.by_path[child] if part.kind == "linear"]
                small = 2 * self.linear[child] <= self.linear[tower.path]
                if last and last[-1].shape[0] not in own and small:
                    width = last[-1].shape[0]
                    whose = "of language" if width in goal else "for language"
                    self._add(
                        child,
                        "projector",
                        f"it turns {tower.kind} (width {_some(own)}) into width {width} {whose}",
                    )

    def _looks_like_head(self, tower: str, path: str) -> bool:
        """A small subtree that gives one number per label, or is called as heads are called."""
        linear = [part for part in self.by_path.get(path, ()) if part.kind == "linear"]
        if not linear or self._repeats(path):
            return False
        labels = getattr(getattr(self.model, "config", None), "num_labels", None)
        if self.linear[path] > 4 or (tower and 2 * self.linear[path] > self.linear[tower]):
            return False
        named = bool(_HEAD_NAME.search(path))
        return named or (linear[-1].shape[0] == labels and path.count(".") == 0)

    def _outputs(self, path: str) -> int:
        linear = [part for part in self.by_path[path] if part.kind == "linear"]
        return int(linear[-1].shape[0])

    def _embeds_tokens(self, path: str) -> bool:
        return self._is_stack(path) and any(part.kind == "embedding" for part in self.by_path[path])

    def _is_stack(self, path: str) -> bool:
        return self._repeats(path) and self.linear[path] >= 4

    def _repeats(self, path: str) -> bool:
        return any(name.isdigit() for part in self.by_path[path] for name in part.path.split("."))

    # -- small questions -----------------------------------------------------------------------

    def _widths(self, path: str) -> set[int]:
        """Widths of the stream through a tower: of its norms, else of its embeddings."""
        parts = [
            part
            for part in self.by_path.get(path, ())
            if max((key for key in self.found if _contains(key, part.path)), key=len) == path
        ]
        norms = Counter(part.shape[0] for part in parts if part.kind == "norm" and part.shape)
        if norms:
            most = max(norms.values())
            return {width for width, count in norms.items() if 3 * count >= most}
        embeddings = {part.shape[1] for part in parts if part.kind == "embedding"}
        linear = Counter(part.shape[1] for part in parts if part.kind == "linear")
        return embeddings or {width for width, _ in linear.most_common(1)}

    def _seeds_in(self, path: str) -> list[_Seed]:
        return [seed for seed in self.seeds if _contains(path, seed.path)]

    def _children(self, path: str) -> list[str]:
        module = self.modules[path]
        return [
            f"{path}.{name}" if path else name
            for name, child in module._modules.items()
            if child is not None
        ]

    def _is_tree(self, path: str) -> bool:
        return bool(self.modules[path]._modules)

    def _has_output(self, path: str) -> bool:
        return self.output is not None and any(
            part.module is self.output for part in self.by_path.get(path, ())
        )

    def _own_size(self, path: str) -> int:
        inner = [key for key in self.found if key != path and _contains(path, key)]
        outermost = [key for key in inner if not any(_contains(o, key) for o in inner if o != key)]
        return self.sizes[path] - sum(self.sizes[key] for key in outermost)

    def _add(self, path: str, kind: TowerKind, why: str) -> None:
        if path not in self.found:
            self.found[path] = Tower(path, kind, why)


def _ask(module: Any, name: str) -> tuple[Any, str | None]:
    """What a getter of a model returns, or why it does not."""
    getter = getattr(module, name, None)
    if not callable(getter):
        return None, f"{type(module).__name__} has no {name}"
    try:
        return getter(), None
    except Exception as error:  # noqa: BLE001 - remote code may raise anything; it is the evidence
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"


def _output_inside(model: Any) -> Any:
    """The output embeddings of a part of the model, where a user's own wrapper does not say."""
    for path, module in model.named_modules():
        if path and hasattr(module, "get_output_embeddings"):
            output, _ = _ask(module, "get_output_embeddings")
            if output is not None:
                return output
    return None


def _path_of(model: Any, wanted: Any, known: Mapping[int, str]) -> str | None:
    wanted = unwrap(wanted)
    if id(wanted) in known:
        return known[id(wanted)]
    return next((path for path, module in model.named_modules() if unwrap(module) is wanted), None)


def _kind_by_words(words: str) -> TowerKind | None:
    """``vision`` or ``audio`` when the words name one of them, not both."""
    vision, audio = bool(_VISION.search(words)), bool(_AUDIO.search(words))
    if vision == audio or re.search(r"Text(Config|Model)", words):
        return None
    return "vision" if vision else "audio"


def _main_input(module: Any) -> str:
    name = getattr(type(module), "main_input_name", "")
    return name if isinstance(name, str) else ""


def _forward_names(module: Any) -> list[str]:
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


def _prefixes(path: str) -> list[str]:
    """``a.b.c`` gives the empty path, ``a``, ``a.b`` and ``a.b.c``."""
    names = path.split(".")
    return ["", *(".".join(names[: index + 1]) for index in range(len(names)))] if path else [""]


def _contains(outer: str, inner: str) -> bool:
    return not outer or inner == outer or inner.startswith(outer + ".")


def _some(widths: set[int]) -> str:
    return ", ".join(str(width) for width in sorted(widths)[:3])
