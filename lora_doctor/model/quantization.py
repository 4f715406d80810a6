"""Which layers this transformers would quantize, asked of its own replacement code.

A shell of the module tree stands in for the model: the same names and the same linear layers, no
weights. The installed ``replace_with_bnb_linear`` is run on it, so its matcher answers, whatever
its rules are in this version; no GPU is needed, also where loading would demand one.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from lora_doctor.errors import LoraDoctorError
from lora_doctor.model.auto_classes import quiet
from lora_doctor.model.error_reports import library_error
from lora_doctor.model.injection import plain_wrap
from lora_doctor.model.loading import peft_config
from lora_doctor.model.meta_copy import meta_copy
from lora_doctor.model.modules import is_adapter_layer
from lora_doctor.model.quantized_adapter import refusal
from lora_doctor.model.quantized_share import count_weights
from lora_doctor.model.target_entries import meaning
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.note import Note
from lora_doctor.results.quantization import FloatPart, Quantization
from lora_doctor.results.structure import Structure

_SHOWN = 3


def added(found: Structure, model: Any, config: Any) -> Structure:
    """The structure with what quantization would do, when recipe or checkpoint ask for it.

    ``config`` is the transformers config of the source, whose ``quantization_config`` describes a
    checkpoint that is quantized already. What cannot be asked is said in the notes.
    """
    recipe = Recipe.from_json(found.recipe)
    checkpoint = of_checkpoint(config)
    kind = kind_of(checkpoint) if checkpoint else recipe.quantized
    if kind is None:
        return found
    # Adapters on norms or embeddings alone meet no layer of bitsandbytes.
    if any(group.kind == "linear" and group.adapted for group in found.groups):
        found = replace(found, bitsandbytes_refusal=refusal(kind, recipe))
    if not hasattr(model, "get_output_embeddings"):
        return found
    try:
        asked = _ask(model, recipe, kind, checkpoint)
    except LoraDoctorError:
        raise
    except Exception as error:  # noqa: BLE001 - no bitsandbytes here, or one that does not fit
        seen = library_error(error)
        text = f"this stack could not be asked what it quantizes: {seen}"
        return replace(found, notes=(*found.notes, Note("not-observed", text, str(seen))))
    return replace(found, quantization=asked)


def _ask(
    model: Any,
    recipe: Recipe,
    kind: Literal["4bit", "8bit"],
    checkpoint: Mapping[str, Any] | None,
) -> Quantization:
    matcher = Matcher(model, kind)
    given = checkpoint.get("llm_int8_skip_modules") if checkpoint else None
    if checkpoint is None:
        given = recipe.get("llm_int8_skip_modules")
    skip = None if given is None else [str(name) for name in given]
    quantized = matcher.quantized(skip)
    parts = _parts(model, recipe, matcher, skip is not None)
    kept = {path for members in parts.values() for path in members}
    counted = count_weights(model, matcher.linears, quantized)
    result = Quantization(
        kind=kind,
        origin="checkpoint" if checkpoint else "recipe",
        skip=None if skip is None else tuple(skip),
        default_skip=tuple(sorted(matcher.default)),
        linears=len(matcher.linears),
        quantized=len(quantized),
        weights=counted.weights,
        quantized_weights=counted.quantized,
        kept=counted.kept,
        parts=tuple(
            FloatPart(
                kind=part_kind,  # type: ignore[arg-type]
                name=name,
                tensors=len(members),
                quantized=sum(path in quantized for path in members),
                examples=tuple([path for path in members if path in quantized][:_SHOWN]),
            )
            for (part_kind, name), members in parts.items()
        ),
    )
    if not kept & quantized:
        return result
    wanted = quantized - kept
    for names in _candidates(matcher, skip, parts, kept & quantized):
        if matcher.quantized(names) == wanted:
            return replace(result, proposed_skip=tuple(names), quantized_with_proposal=len(wanted))
    return result


class Matcher:
    """The installed replacement, to be asked again and again.

    ``default``: what transformers skips when it is given no list. ``linears``: paths of the layers
    that are quantized when nothing is skipped.
    """

    def __init__(self, model: Any, kind: Literal["4bit", "8bit"]) -> None:
        from transformers import BitsAndBytesConfig

        self._model = model
        self._kind = kind
        self._config = BitsAndBytesConfig
        self._library = importlib.import_module("transformers.integrations.bitsandbytes")
        self._float32 = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
        self.default: list[str] = [str(name) for name in self._defaults()(model)]
        self.linears = self._replaced([], [])

    def quantized(self, skip: Sequence[str] | None) -> set[str]:
        """Paths of the layers that are quantized with this ``llm_int8_skip_modules``."""
        names = self.default if skip is None else list(skip)
        return self._replaced([*names, *self._float32], skip)

    def _defaults(self) -> Any:
        """``get_keys_to_not_convert``, which has moved between releases."""
        if hasattr(self._library, "get_keys_to_not_convert"):
            return self._library.get_keys_to_not_convert
        return importlib.import_module("transformers.quantizers.base").get_keys_to_not_convert

    def replace_in(self, model: Any, config: Any) -> Any:
        """The model with bitsandbytes' layers, on the meta device and not quantized yet.

        ``config``: a ``BitsAndBytesConfig``. Changes ``model``.
        """
        skip = config.llm_int8_skip_modules
        names = self.default if skip is None else list(skip)
        return self._replace(model, [*names, *self._float32], config)

    def _replaced(self, names: list[str], skip: Sequence[str] | None) -> set[str]:
        options: dict[str, Any] = {f"load_in_{self._kind}": True}
        if skip is not None:
            options["llm_int8_skip_modules"] = list(skip)
        tree = self._replace(_shell(self._model), names, self._config(**options))
        return {
            path
            for path, module in tree.named_modules()
            if type(module).__module__.startswith("bitsandbytes")
        }

    def _replace(self, tree: Any, names: list[str], config: Any) -> Any:
        import torch

        with _importable(self._library), quiet(), torch.device("meta"):
            return self._library.replace_with_bnb_linear(
                tree, modules_to_not_convert=names, quantization_config=config
            )


@contextlib.contextmanager
def _importable(library: Any) -> Iterator[None]:
    """What transformers before 4.45 imports there only when it sees a GPU."""
    import bitsandbytes
    import torch
    from transformers.pytorch_utils import Conv1D

    wanted = {"bnb": bitsandbytes, "torch": torch, "nn": torch.nn, "Conv1D": Conv1D}
    missing = {name: value for name, value in wanted.items() if not hasattr(library, name)}
    vars(library).update(missing)
    try:
        yield
    finally:
        for name in missing:
            delattr(library, name)


def _shell(module: Any) -> Any:
    """The tree with new branches and the model's own leaves: replacing a layer changes a branch."""
    import torch

    if not module._modules:
        return module
    # A linear layer with modules inside is replaced by its class, so it keeps that.
    is_linear = isinstance(module, torch.nn.Linear)
    branch: Any = copy.copy(module) if is_linear else torch.nn.Module()
    # Not `add_module`: a module may be called `training` or `type`.
    vars(branch)["_modules"] = {
        name: None if child is None else _shell(child) for name, child in module._modules.items()
    }
    return branch


def _parts(
    model: Any, recipe: Recipe, matcher: Matcher, replaced_default: bool
) -> dict[tuple[str, str], list[str]]:
    """``(kind, name)`` to the linear layers that must stay in floating point."""
    parts: dict[tuple[str, str], list[str]] = {}
    for name, path in _adapter_linears(model):
        if path in matcher.linears:
            parts.setdefault(("adapter", name), []).append(path)
    for root in _saved_modules(model, recipe):
        inside = [path for path in matcher.linears if path == root or path.startswith(f"{root}.")]
        if inside:
            parts[("modules_to_save", root)] = sorted(inside)
    if replaced_default:
        taken = {path for members in parts.values() for path in members}
        kept = matcher.linears - matcher.quantized(None) - taken
        for path in sorted(kept & set(matcher.default)):
            parts[("head", path)] = [path]
    return parts


def _adapter_linears(model: Any) -> Iterator[tuple[str, str]]:
    """``(adapter, path)`` of the linear layers in which built-in adapters keep their weights.

    PEFT's layers are known by their class; others by a pair ``lora_A`` and ``lora_B``.
    """
    for path, module in model.named_modules():
        names = tuple(module.adapter_layer_names) if is_adapter_layer(module) else ()
        if not names and {"lora_A", "lora_B"} <= set(module._modules):
            names = ("lora_A", "lora_B")
        for attribute in names:
            held = module._modules.get(attribute)
            if held is None:
                continue
            children = dict(held.named_children())
            if not children:
                yield attribute, f"{path}.{attribute}" if path else attribute
            for name in children:
                yield name, f"{path}.{attribute}.{name}" if path else f"{attribute}.{name}"


def _saved_modules(model: Any, recipe: Recipe) -> list[str]:
    """Paths that the installed PEFT trains as a whole: ``modules_to_save``, and the heads that its
    wrapper for classification adds by itself."""
    from lora_doctor.model.built_in_adapters import trains_its_own

    if trains_its_own(model, recipe):
        return []
    config = peft_config(recipe)
    thinned = meta_copy(model, meaning(config))
    try:
        wrapped = plain_wrap(thinned.model, config)
    except Exception:  # noqa: BLE001 - the injection in the structure has the same exception
        return []
    return [
        path
        for path, module in wrapped.get_base_model().named_modules()
        if hasattr(module, "original_module") and hasattr(module, "modules_to_save")
    ]


def _candidates(
    matcher: Matcher,
    skip: Sequence[str] | None,
    parts: Mapping[tuple[str, str], Sequence[str]],
    missing: set[str],
) -> Iterator[list[str]]:
    """Lists to try, the shortest first. Each starts with what is skipped already, for a list
    takes the place of the default."""
    start = list(dict.fromkeys([*sorted(matcher.default), *(skip or ())]))
    names: dict[str, None] = {}
    leaves: dict[str, None] = {}
    for (kind, name), members in parts.items():
        left = [path for path in members if path in missing]
        if not left:
            continue
        names[name] = None
        for path in left:
            leaves[path.rpartition(".")[2] if kind == "adapter" else path] = None
    for more in (names, leaves, dict.fromkeys(sorted(missing))):
        yield [*start, *(name for name in more if name not in start)]


def of_checkpoint(config: Any) -> dict[str, Any] | None:
    """``quantization_config`` of a checkpoint that bitsandbytes has quantized."""
    held = getattr(config, "quantization_config", None)
    if held is None:
        return None
    values = dict(held) if isinstance(held, Mapping) else dict(held.to_dict())
    return values if kind_of(values) else None


def kind_of(values: Mapping[str, Any]) -> Literal["4bit", "8bit"] | None:
    """What these values of a ``quantization_config`` ask bitsandbytes for."""
    if values.get("load_in_4bit") or values.get("_load_in_4bit"):
        return "4bit"
    return "8bit" if values.get("load_in_8bit") or values.get("_load_in_8bit") else None
