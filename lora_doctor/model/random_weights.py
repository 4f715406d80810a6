"""Weights that a checkpoint lacks: which ``from_pretrained`` makes at random at every loading.

The installed transformers is asked: it loads a state dict with the names and shapes of the
checkpoint and without storage, so that its renames, ties and exceptions hold. Nothing is read.

Runs where torch and transformers are imported.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.model.auto_classes import quiet
from lora_doctor.model.module_path import pattern_of
from lora_doctor.results.loading import MissingWeight, OtherSize
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.text import one_line

#: Shape of each tensor in elements; ``None`` where only its name is known, from an index.
Shapes = Mapping[str, Sequence[int] | None]
#: Modules with more numbers are not initialised to see whether their class draws them.
_MOST_INITIALISED = 1 << 24


@dataclass(frozen=True)
class Loaded:
    """A model on the meta device that was loaded from names. ``missing``: its parameters that the
    checkpoint lacks. ``unplaced``: names in the checkpoint that it has no place for.
    ``other_sizes``: those that it has in another shape, which an ordinary loading refuses."""

    model: Any
    missing: tuple[str, ...]
    unplaced: tuple[str, ...]
    other_sizes: tuple[OtherSize, ...] = ()


def load_names(cls: Any, config: Any, shapes: Shapes) -> Loaded:
    """``cls.from_pretrained`` with tensors of these names, shapes and no storage.

    Raises:
        EvidenceError: this transformers cannot load them so, or the class refuses them.
    """
    config = copy.deepcopy(config)
    quantized = vars(config).pop("quantization_config", None) is not None
    options = {"ignore_mismatched_sizes": True}
    model, info = _from_pretrained(cls, config, shapes, options)
    unplaced = tuple(sorted(info["unexpected_keys"]))
    missing = _own_names(model, info["missing_keys"])
    if quantized:
        missing = [name for name in missing if not _is_packed(name, unplaced)]
        # bitsandbytes packs a weight under its own name, into another shape.
        return Loaded(model, tuple(missing), unplaced)
    others = tuple(_other_sizes(model, info.get("mismatched_keys") or (), shapes))
    return Loaded(model, tuple(missing), unplaced, others)


def _other_sizes(model: Any, keys: Iterable[Any], shapes: Shapes) -> Iterator[OtherSize]:
    """The weights that transformers says do not fit, and whose shape the checkpoint tells under
    the same name. ``keys``: names, or tuples that begin with one."""
    names = {key if isinstance(key, str) else str(key[0]) for key in keys}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    stored = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    for name, value in model.named_parameters(remove_duplicate=False):
        if name not in names and name.removeprefix(prefix) not in names:
            continue
        shape = stored.get(name.removeprefix(prefix))
        if shape is not None and tuple(shape) != tuple(value.shape):
            yield OtherSize(name, tuple(shape), tuple(value.shape))


def _own_names(model: Any, keys: Sequence[str]) -> list[str]:
    """The parameters of the model that these keys mean, which older releases compare, and tell,
    without the name of the base model, or with it in front of a base model."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    spelled = ((key, f"{prefix}{key}", key.removeprefix(prefix)) for key in keys)
    found = (next((name for name in forms if name in names), None) for forms in spelled)
    return [name for name in found if name is not None]


def _from_pretrained(
    cls: Any, config: Any, shapes: Shapes, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The first way of giving meta tensors to ``from_pretrained`` that this transformers takes."""
    reasons = []
    for way in (_onto_meta, _under_meta):
        try:
            with quiet():
                model, info = way(cls, copy.deepcopy(config), _tensors(shapes), options)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reasons.append(f"{type(error).__name__}: {one_line(error, 200)}")
        else:
            return model, info
    # Newer releases refuse the second way; what they said of the first is the reason.
    told = reasons[0] if "anti-pattern" in reasons[-1] else reasons[-1]
    raise EvidenceError(f"{cls.__name__} cannot be loaded from the names of the checkpoint: {told}")


def _tensors(shapes: Shapes) -> dict[str, Any]:
    import torch

    return {
        name: torch.empty(tuple(shape or (0,)), device="meta") for name, shape in shapes.items()
    }


def _onto_meta(cls: Any, config: Any, tensors: dict[str, Any], options: Any) -> Any:
    """As transformers does since it builds every model on the meta device first."""
    return cls.from_pretrained(
        None, config=config, state_dict=tensors, output_loading_info=True, device_map="meta",
        **options,
    )  # fmt: skip


def _under_meta(cls: Any, config: Any, tensors: dict[str, Any], options: Any) -> Any:
    """As transformers did before: into a model that is built where torch builds it."""
    import torch
    from accelerate import init_empty_weights

    # `torch.Tensor(16)` in a constructor does not ask which device is the default.
    with torch.device("meta"), init_empty_weights(), _tied_by_storage():
        return cls.from_pretrained(
            None, config=config, state_dict=tensors, output_loading_info=True, **options
        )


@contextlib.contextmanager
def _tied_by_storage() -> Iterator[None]:
    """Older releases take tensors at one address for tied, and on the meta device all are at 0."""
    place = importlib.import_module("transformers.modeling_utils")
    before = getattr(place, "id_tensor_storage", None)
    if before is None:
        yield
        return
    place.id_tensor_storage = lambda tensor: (  # type: ignore[attr-defined]
        tensor.device, tensor.untyped_storage()._cdata, tensor.numel(),
    )  # fmt: skip
    try:
        yield
    finally:
        place.id_tensor_storage = before  # type: ignore[attr-defined]


def _is_packed(name: str, unplaced: Sequence[str]) -> bool:
    """Whether a quantized checkpoint has this weight in another form: `qweight`, `weight_packed`,
    `gate_up_proj_blocks`. Its quantizer puts those in the place of what the class has."""
    owner = f"{name.rpartition('.')[0]}."
    return any(other.startswith(owner) for other in unplaced)


# --- what of it is random -------------------------------------------------------------------------


def describe_missing(loaded: Loaded) -> tuple[MissingWeight, ...]:
    """The missing parameters by pattern, and whether the class draws them anew each time."""
    return described(loaded, drawn_anew(loaded.model, loaded.missing))


def described(loaded: Loaded, drawn: Collection[str]) -> tuple[MissingWeight, ...]:
    """The missing parameters by pattern; ``drawn``: those that are others after each loading."""
    model = loaded.model
    total = Counter(pattern_of(name) for name, _ in model.named_parameters(remove_duplicate=False))
    sizes = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, list[str]] = {}
    for name in loaded.missing:
        found.setdefault(pattern_of(name), []).append(name)
    return tuple(
        MissingWeight(
            pattern=pattern,
            count=len(names),
            of=total[pattern],
            parameters=sum(int(sizes[name].numel()) for name in names),
            drawn=any(name in drawn for name in names),
            names=() if len(names) == total[pattern] else tuple(names),
        )
        for pattern, names in found.items()
    )


def drawn_anew(model: Any, names: Sequence[str]) -> set[str]:
    """Which of these parameters the class initialises with other values each time.

    Their modules are initialised twice, by the class's own ``_init_weights``, from different seeds.
    Biases and norms begin with a constant in nearly every class.
    """
    owners: dict[str, list[str]] = {}
    for full in names:
        path, _, leaf = full.rpartition(".")
        owners.setdefault(path, []).append(leaf)
    drawn: set[str] = set()
    answers: dict[tuple[Any, ...], set[str]] = {}
    for path, own in owners.items():
        module = model.get_submodule(path)
        # Experts and layers are alike: one of a kind is asked.
        kind = (type(module), pattern_of(path), tuple(own))
        if kind not in answers:
            answers[kind] = _drawn_in(model, path, own)
        drawn |= {f"{path}.{name}" if path else name for name in answers[kind]}
    return drawn


def _drawn_in(model: Any, path: str, own: Sequence[str]) -> set[str]:
    import torch

    module = model.get_submodule(path)
    matrices = {name for name in own if getattr(module, name).dim() > 1}
    if sum(int(p.numel()) for p in module.parameters()) > _MOST_INITIALISED:
        return matrices
    initialise = _initialiser(model, path)
    try:
        first, second = (_initialised(module, initialise, seed) for seed in (1, 2))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return matrices  # a class of one's own may look at more than the module
    drawn = set()
    for name in own:
        one, two = getattr(first, name), getattr(second, name)
        untouched = bool(torch.isnan(one.float()).any())
        if untouched and not _built_without_storage():
            drawn |= {name} & matrices  # its constructor has filled it: torch's own linear layers
        elif untouched or not torch.equal(one, two):
            drawn.add(name)
    return drawn


def _initialiser(model: Any, path: str) -> Callable[[Any], None]:
    """``_init_weights`` of the innermost model that has the module."""
    owner, current = model, model
    for part in path.split(".") if path else ():
        current = getattr(current, part)
        if hasattr(current, "_init_weights"):
            owner = current
    initialise: Callable[[Any], None] = owner._init_weights
    return initialise


def _initialised(module: Any, initialise: Callable[[Any], None], seed: int) -> Any:
    import torch

    twin = copy.deepcopy(module).to_empty(device="cpu")
    for part in twin.modules():
        vars(part).pop("_is_hf_initialized", None)
    with torch.no_grad():
        for parameter in twin.parameters():
            vars(parameter).pop("_is_hf_initialized", None)
            if parameter.is_floating_point():
                parameter.fill_(float("nan"))
        torch.manual_seed(seed)
        initialise(twin)
    return twin


def _built_without_storage() -> bool:
    """Whether loading builds on the meta device: what ``_init_weights`` leaves is then memory as it
    was found."""
    import transformers

    return any(
        name.startswith("_move_missing_keys_from_meta")
        for name in dir(transformers.PreTrainedModel)
    )


# --- the same in another model of the class -------------------------------------------------------


def missing_in(model: Any, missing: Sequence[MissingWeight]) -> dict[str, bool]:
    """Which parameters of a model of this class, of whatever size, its checkpoint lacks: their
    names, and whether they are drawn anew."""
    return missing_among((name for name, _ in model.named_parameters()), missing)


def missing_among(own: Iterable[str], missing: Sequence[MissingWeight]) -> dict[str, bool]:
    """The same of the names of its parameters."""
    patterns = {item.pattern: item.drawn for item in missing if not item.names}
    names = {name: item.drawn for item in missing for name in item.names}
    found = {}
    for name in own:
        drawn = names.get(name, patterns.get(pattern_of(name)))
        if drawn is not None:
            found[name] = drawn
    return found


def loaded_again(fresh: Callable[[], Any], random: Sequence[str]) -> Callable[[], Any]:
    """A maker of bases as loading makes them: the same weights, and new ones for these names, drawn
    with the mean and the spread of the old."""
    if not random:
        return fresh

    def make() -> Any:
        import torch

        base = fresh()
        named = dict(base.named_parameters())
        generator = torch.Generator().manual_seed(1)
        for name in random:
            parameter = named.get(name)
            if parameter is None or not parameter.is_floating_point() or parameter.numel() < 2:
                continue
            old = parameter.detach().float()
            new = torch.randn(tuple(old.shape), generator=generator).to(old.device)
            # A tensor of its own: the old one may be somebody else's memory.
            parameter.data = (old.mean() + new * old.std()).to(parameter.dtype)
        return base

    return make
