"""Meta evidence: the class that would be loaded, at full size, without weights.

``gather`` builds it on the meta device in a child process; ``describe_module`` reads a module
that the user has loaded, in the user's own process. Both describe it, propose the keys of the
recipe that are open, and let the installed PEFT inject the adapter config into a copy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_doctor.errors import EvidenceError, LoraDoctorError
from lora_doctor.model import (
    built_in_adapters,
    checkpoint_quantization,
    input_gradients,
    quantization,
    stacked,
)
from lora_doctor.model.error_reports import library_error
from lora_doctor.model.injection import Injected, inject, read_wrapped
from lora_doctor.model.left_out_heads import left_out_heads
from lora_doctor.model.loading import Loader, resized
from lora_doctor.model.module_path import pattern_of
from lora_doctor.model.modules import assign_roles, collect, elements, group, is_adapter_layer, walk
from lora_doctor.model.peft_models import active_names, own_config, peft_models
from lora_doctor.model.towers import find_towers
from lora_doctor.model.wrapper import WrapperCall, wrapper_call
from lora_doctor.nn import dtypes
from lora_doctor.prescription.patches import install_patches
from lora_doctor.proposal.defaults import default_recipe
from lora_doctor.proposal.tried import Proposal
from lora_doctor.recipe.files.read_write import as_recipe
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.injection import Injection
from lora_doctor.results.note import Note
from lora_doctor.results.structure import ForwardParameter, HeadClass, Structure
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.static.installed.missing_package import missing_package
from lora_doctor.text import single_line

_NOTHING = Injection(ok=False)


def gather(
    source: dict[str, Any], recipe: dict[str, Any], patches: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """:meth:`Structure.to_json` of the model that this source and recipe would load.

    Runs in a child process that has torch, transformers and peft imported.

    Raises:
        InputError: what the user named does not exist.
        EvidenceError: this environment cannot build it; the text says why.
    """
    asked = Recipe.from_json(recipe)
    install_patches(patches)  # before a factory runs, as lora_doctor.apply is the first line
    loader = Loader(source, asked)
    if loader.source["kind"] != "factory":
        asked = checkpoint_quantization.as_loaded(asked, loader.config)
    try:
        model = resized(loader.build("meta"), source)
    except LoraDoctorError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        missing = missing_package(error)
        if missing:
            raise EvidenceError(f"{loader.loaded_by} {missing}", remedy="package") from error
        listed = loader.model_class
        wanted = getattr(getattr(listed, "config_class", None), "__name__", "")
        # By name: code of a repository in several files has its config class once for each import.
        bases = [base.__name__ for base in type(loader.config).__mro__]
        if listed is not None and wanted and wanted not in bases:
            raise EvidenceError(
                f"{loader.loaded_by} lists {loader.model_type} as {listed.__name__}, "
                f"which is built from a {wanted} and not from the {bases[0]} that this model type "
                "has"
            ) from error
        text = single_line(str(error))
        raise EvidenceError(
            f"{loader.loaded_by} cannot be built from this config: {type(error).__name__}: {text}"
        ) from error
    if loader.source["kind"] == "factory" and peft_models(model):  # it has put the adapters on
        return replace(describe_module(model, asked), loaded_by=loader.loaded_by).to_json()
    found, where = _describe(
        model,
        loaded_by=loader.loaded_by,
        heads=tuple(loader.candidates),
        native_dtype=loader.native_dtype,
    )
    choices = [
        f"the default config cannot be built as it is; set {item}" for item in loader.repairs
    ]
    choices += [loader.choice()] if loader.choice() else []
    notes = (*found.notes, *(Note("choice", text) for text in choices), *loader.not_run())
    found = _complete(replace(found, notes=notes), where, model, asked)
    loaded = loader.source["kind"] != "factory"
    recipe_in_full = Recipe.from_json(found.recipe)
    found = replace(
        found,
        built_in=built_in_adapters.describe(model, recipe_in_full, loaded=loaded),
        left_out_heads=left_out_heads(model),
    )
    return quantization.added(found, model, loader.config).to_json()


def gather_layer_numbers(
    source: dict[str, Any],
    recipe: dict[str, Any],
    patterns: Sequence[str],
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, list[int]]:
    """The first number in the path of every module of these patterns: which layers have it.

    Raises:
        EvidenceError: the model cannot be built, which :func:`gather` says better.
    """
    install_patches(patches)
    numbers: dict[str, list[int]] = {pattern: [] for pattern in patterns}
    for path, _, _ in walk(Loader(source, Recipe.from_json(recipe)).build("meta")):
        found = numbers.get(pattern_of(path))
        if found is not None:
            found.append(next(int(part) for part in path.split(".") if part.isdigit()))
    return {pattern: sorted(set(found)) for pattern, found in numbers.items()}


def describe_module(module: Any, recipe: Recipe | None = None) -> Structure:
    """The structure of a loaded ``nn.Module`` or ``PeftModel``; the module is only read.

    A ``PeftModel``, or a module with one inside, is described with the adapter that it has; the
    recipe's adapter keys are then those of the adapter.

    Raises:
        EvidenceError: an attribute of a module cannot be copied.
    """
    asked = recipe if recipe is not None else Recipe()
    parts = peft_models(module)
    base = stacked.bottom(module)
    found, where = _describe(
        base,
        loaded_by=type(module).__name__,
        heads=_heads_of(base),
        native_dtype=dtypes.floating_dtype(base),
    )
    if not parts:
        found = _complete(found, where, base, asked)
        recipe_in_full = Recipe.from_json(found.recipe)
        return replace(
            found,
            built_in=built_in_adapters.describe(base, recipe_in_full, loaded=False),
            left_out_heads=left_out_heads(base),
        )
    values = dict(as_recipe(own_config(module)).values)
    if "" not in parts:  # PEFT's wrapper of a task type is around a part, not around this class
        values["task_type"] = None
    asked = asked.override(values, "argument")
    asked = Recipe(asked.values, asked.origins, complete=True)
    if "" in parts:
        name, *others = active_names(module)
        injected = read_wrapped(module, name, others)
    else:
        injected = built_in_adapters.read_own(module)
    found = replace(_with_wrapper(found, asked), stacked=stacked.describe(module))
    return _with_injection(found, where, injected)


def _describe(
    model: Any, *, loaded_by: str, heads: tuple[HeadClass, ...], native_dtype: str | None
) -> tuple[Structure, dict[str, int]]:
    """Everything that can be said before an adapter config is tried, and the group of each path."""
    parts = collect(model)
    anatomy = find_towers(model, parts)
    assign_roles(parts, anatomy.towers, anatomy.output_embeddings)
    forward, takes_any = _forward_parameters(model)
    names = {item.name for item in forward}
    config = getattr(model, "config", None)
    cls = type(model)
    groups, where = group(parts, anatomy.towers)
    found = Structure(
        model_class=cls.__name__,
        python_module=cls.__module__,
        loaded_by=loaded_by,
        model_type=getattr(config, "model_type", None) or None,
        recipe=Recipe().to_json(),
        groups=groups,
        towers=anatomy.towers,
        injection=_NOTHING,
        forward_parameters=forward,
        forward_takes_any=takes_any,
        main_input_name=str(getattr(model, "main_input_name", "") or ""),
        wrapper_sends=(),
        wrapper_sends_none=(),
        has_prepare_inputs=hasattr(model, "prepare_inputs_for_generation"),
        can_generate=_yes(model, "can_generate"),
        is_encoder_decoder=bool(getattr(config, "is_encoder_decoder", False)),
        has_head=(
            anatomy.output_embeddings is not None
            or bool(names & {"labels", "start_positions"})
            or any(tower.kind == "head" for tower in anatomy.towers)
        ),
        head_classes=heads,
        native_dtype=native_dtype,
        total_parameters=_total(parts, model),
        tied_weights=_tied(model),
        input_embeddings=anatomy.input_embeddings,
        input_embeddings_error=anatomy.input_embeddings_error,
        input_gradients_error=(
            input_gradients.why_not(model) if anatomy.input_embeddings_error else None
        ),
        supports_gradient_checkpointing=_supports_checkpointing(model),
        built_in_adapters=_built_in_names(model),
    )
    return found, where


def _complete(found: Structure, where: Mapping[str, int], model: Any, asked: Recipe) -> Structure:
    """Fill the open keys, inject, and put the result in."""
    recipe = asked
    injected: Injected | None = None
    notes: tuple[Note, ...] = ()
    if built_in_adapters.trains_its_own(model, asked):
        recipe = asked.fill({"task_type": None, **default_recipe(found, ["dtype"], False)})
        injected = built_in_adapters.read_own(model)
    elif not asked.complete:
        recipe, injected, notes = Proposal(found, model, asked).refine()
    if injected is None:
        injected = inject(model, recipe)
    found = replace(_with_wrapper(found, recipe), notes=(*found.notes, *notes))
    return _with_injection(found, where, injected)


def _with_wrapper(found: Structure, recipe: Recipe) -> Structure:
    notes = found.notes
    call = WrapperCall()
    try:
        call = wrapper_call(recipe.get("task_type"))
    except Exception as error:  # noqa: BLE001 - a PEFT that we do not know yet
        seen = library_error(error)
        text = f"the wrapper could not be asked: {seen}"
        notes = (*notes, Note("not-observed", text, str(seen)))
    return replace(
        found,
        recipe=recipe.to_json(),
        wrapper_sends=call.sends,
        wrapper_sends_none=call.none,
        wrapper_keeps=call.keeps,
        notes=notes,
    )


def _with_injection(found: Structure, where: Mapping[str, int], injected: Injected) -> Structure:
    """Count the adapted members of each group."""
    counts = [0] * len(found.groups)
    for path, times in injected.adapted.items():
        # A parameter of a linear layer that is targeted by name is counted with its layer.
        index = where.get(path, where.get(path.rpartition(".")[0]))
        if index is not None:
            counts[index] += times
    groups = tuple(
        replace(item, adapted=min(count, item.count))
        for item, count in zip(found.groups, counts, strict=True)
    )
    return replace(found, groups=groups, injection=injected.result)


def _forward_parameters(model: Any) -> tuple[tuple[ForwardParameter, ...], bool]:
    """The parameters of the class's forward, and whether it has ``**kwargs``."""
    try:
        parameters = inspect.signature(type(model).forward).parameters
    except (TypeError, ValueError):
        return (), True
    found = []
    takes_any = False
    for name, parameter in list(parameters.items())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            missing = parameter.default is parameter.empty
            found.append(ForwardParameter(name, missing, parameter.default is None))
    return tuple(found), takes_any


def _total(parts: Sequence[Any], model: Any) -> int:
    sizes: dict[int, int] = {}
    for part in parts:
        for value in part.own:
            sizes[id(value)] = elements(value, part)
    for value in model.parameters():
        sizes.setdefault(id(value), int(value.numel()))
    return sum(sizes.values())


def _tied(model: Any) -> tuple[str, ...]:
    """Groups of names that are one parameter, as ``a = b``."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    return tuple(" = ".join(found) for found in names.values() if len(found) > 1)


def _built_in_names(model: Any) -> tuple[str, ...]:
    """Names of the PEFT adapters that a model brings itself."""
    names: dict[str, None] = {}
    for module in model.modules():
        if is_adapter_layer(module):
            for attribute in module.adapter_layer_names:
                held: Any = getattr(module, attribute, None)
                if hasattr(held, "keys"):
                    names.update(dict.fromkeys(held.keys()))
    return tuple(names)


def _yes(model: Any, name: str) -> bool:
    """The answer of a predicate that remote code may have broken."""
    predicate: Callable[[], Any] | None = getattr(model, name, None)
    if not callable(predicate):
        return False
    try:
        return bool(predicate())
    except Exception:  # noqa: BLE001 - a model that cannot say so cannot be relied on to generate
        return False


def _supports_checkpointing(model: Any) -> bool:
    return bool(getattr(model, "supports_gradient_checkpointing", False))


def _heads_of(model: Any) -> tuple[HeadClass, ...]:
    """The classes that transformers has for the config of a loaded model."""
    from lora_doctor.model.auto_classes import classes_for

    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "model_type"):
        return ()
    source = {"trust_remote_code": False, "folder": None}
    return tuple(
        HeadClass(auto, cls.__name__, task) for auto, cls, task in classes_for(config, source)
    )
