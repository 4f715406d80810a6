"""Language, vision and audio towers, the projector between them and the head: by what they are.

Seeds first: the token embedding (``get_input_embeddings``), patch convolutions, convolutions over
sound, and modules that carry a config of their own for pictures or sound. A subtree with seeds of
one kind is a tower; what has none is judged by the widths that it connects. No model is known by
name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_doctor.model.modules import Part, unwrap
from lora_doctor.model.tower_seeds import (
    Seed,
    Seeds,
    ask,
    forward_names,
    kind_by_words,
    path_of,
    prefixes,
)
from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.structure import Tower, TowerKind

_HEAD_NAME = re.compile(r"(^|\.|_)(lm_head|score|classifier|qa_outputs|head|proj_out|cls)$")


@dataclass(frozen=True)
class Anatomy:
    """The towers, and what was asked on the way.

    ``input_embeddings``: path, or ``None`` with the error. ``output_embeddings``: the module.
    """

    towers: tuple[Tower, ...]
    input_embeddings: str | None
    input_embeddings_error: ErrorReport | None
    output_embeddings: Any


def find_towers(model: Any, parts: Sequence[Part]) -> Anatomy:
    """The towers of a model. ``parts``: from :func:`~lora_doctor.model.modules.collect`."""
    paths = {id(part.module): part.path for part in parts}
    embedding, error = ask(model, "get_input_embeddings")
    output, _ = ask(model, "get_output_embeddings")
    embedding_path = None if embedding is None else path_of(model, embedding, paths)
    if embedding is not None and embedding_path is None:
        said = "get_input_embeddings returns a module that is not part of the model"
        error = ErrorReport("", said)
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
        self.finder = Seeds(model, parts, self.modules)
        self.seeds = self.finder.find(embedding_path)
        self.by_path: dict[str, list[Part]] = {}
        self.linear: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()
        for part in parts:
            for prefix in prefixes(part.path):
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
            kind = self.finder.modality("")
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

    # -- the walk ------------------------------------------------------------------------------

    def _descend(self, path: str) -> None:
        inside = self._seeds_in(path)
        kinds = {seed.kind for seed in inside}
        if kinds == {"vision"} and self._reads_tokens(path, inside):
            self._add(path, "language", "it takes tokens and patches in one stream")
            return
        if len(kinds) == 1 and self._is_one_tower(path, inside):
            self._tower(path, inside)
            return
        here: list[Seed] = []
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

    def _reads_tokens(self, path: str, seeds: Sequence[Seed]) -> bool:
        """Whether a stack with a patch convolution of its own is fed tokens, whose embedding stands
        elsewhere (UDOP's kind)."""
        elsewhere = any(seed.kind == "language" for seed in self.seeds)
        kinds = {part.path: part.kind for part in self.by_path[path]}
        convolutions = all(kinds.get(seed.path) == "conv" for seed in seeds)
        if not path or not elsewhere or not convolutions or not self._is_stack(path):
            return False
        return "input_ids" in forward_names(self.modules[path])

    def _is_one_tower(self, path: str, seeds: Sequence[Seed]) -> bool:
        """Whether a subtree with seeds of one kind is one tower, not two side by side.

        Language seeds in several big children (text encoder and decoder of a composed model) are
        towers of their own.
        """
        if seeds[0].kind != "language":
            return True
        children = [child for child in self._children(path) if self._seeds_in(child)]
        big = [child for child in children if self.linear[child]]
        return len(big) < 2 or any(seed.path == path for seed in seeds)

    def _tower(self, path: str, seeds: Sequence[Seed]) -> None:
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

    def _holds_all(self, path: str, seeds: Sequence[Seed]) -> bool:
        return self._is_tree(path) and all(
            seed.path == path or seed.path.startswith(path + ".") for seed in seeds
        )

    # -- what has no seed ----------------------------------------------------------------------

    def _judge(self, path: str) -> None:
        if not self.by_path.get(path):
            return
        if self._has_output(path):
            if self._embeds_tokens(path):
                for child in self._children(path):  # a whole model: a pair's decoder, with its head
                    self._judge(child)
                return
            self._add(path, "head", "it holds the output embeddings")
            return
        if self._looks_like_head("", path):
            self._add(path, "head", f"it gives {self._outputs(path)} outputs beside the towers")
            return
        surrounded = any(_contains(tower.path, path) for tower in self.found.values())
        link = self._projects(path, surrounded=surrounded)
        if link:
            self._add(path, "projector", link)
        elif not surrounded:
            self._judge_alone(path)

    def _projects(self, path: str, *, surrounded: bool) -> str:
        """How a subtree goes from a sense to language; empty where it does not."""
        kinds = {tower.kind for tower in self.found.values()}
        input_towers = [tower for tower in self.found.values() if tower.kind in ("vision", "audio")]
        if "language" not in kinds or not input_towers:
            return ""
        return self._link(path, input_towers) or ("" if surrounded else self._follows(path))

    def _judge_alone(self, path: str) -> None:
        """A subtree that stands in no tower and between no two of them."""
        kinds = {tower.kind for tower in self.found.values()}
        named = kind_by_words(path.rpartition(".")[2])
        if named and len(kinds) == 1 and named not in kinds:
            self._add(path, named, "its name says so; nothing else does")
            return
        if self._embeds_tokens(path):
            self._add(path, "language", "it holds embeddings and layers of its own")
        elif len(kinds) == 1 and not self._is_stack(path):
            self._add(path, "head", "it stands behind the only tower")
        else:
            self._add(path, "other", "it holds no input and connects no towers")

    def _link(self, path: str, input_towers: Sequence[Tower]) -> str:
        """How a subtree connects an input tower with language: by the widths of its layers."""
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
            for source_tower in input_towers:
                source = self._widths(source_tower.path)
                what = f"it connects {source_tower.kind} (width {_some(source)}) to language"
                # Tokens of its own and nothing from an input tower: another stack for language (the
                # decoder of T5Gemma 2).
                beside = not _contains(tower.path, path) and not self._embeds_tokens(path)
                if outs & goal and (ins & source or beside):
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

    def _seeds_in(self, path: str) -> list[Seed]:
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


def _output_inside(model: Any) -> Any:
    """The output embeddings of a part of the model, where a user's own wrapper does not say."""
    for path, module in model.named_modules():
        if path and hasattr(module, "get_output_embeddings"):
            output, _ = ask(module, "get_output_embeddings")
            if output is not None:
                return output
    return None


def _contains(outer: str, inner: str) -> bool:
    return not outer or inner == outer or inner.startswith(outer + ".")


def _some(widths: set[int]) -> str:
    return ", ".join(str(width) for width in sorted(widths)[:3])
