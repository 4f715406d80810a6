"""The adapter calls of a program, made again by the installed PEFT on the class on the meta device.

Runs in a child process. Nothing has values there, so what combining does to them is measured on a
single small layer, with adapters of the same configs.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_doctor.model.adapter_loading import contents_are, without_storage
from lora_doctor.model.error_reports import library_error
from lora_doctor.model.loading import Loader, resized
from lora_doctor.prescription.patches import install_patches
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.adapter_steps import AdapterSteps, StepFault
from lora_doctor.results.error_report import ErrorReport
from lora_doctor.static.adapter_files import read_adapter

_COMBINES = "add_weighted_adapter"
_SWAPS = "hotswap_adapter"
#: Relative to the largest output of the layer; measured on plain LoRA: 2e-7.
_TOLERANCE = 1e-3
_WIDTH, _MOST_RANK, _SPREAD = 16, 8, 0.3
#: Entries of a config that name places in the model, or values there: the small layer has others.
_OF_THE_MODEL = frozenset(
    {"target_modules", "exclude_modules", "modules_to_save", "layers_to_transform",
     "layers_pattern", "rank_pattern", "alpha_pattern", "trainable_token_indices",
     "target_parameters", "layer_replication", "auto_mapping", "task_type", "bias",
     "init_lora_weights", "ensure_weight_tying", "base_model_name_or_path", "revision",
     "megatron_config", "inference_mode", "peft_type", "peft_version", "r", "lora_alpha",
     "lora_dropout"}
)  # fmt: skip


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """An :class:`AdapterSteps` as JSON. ``steps``: each an ``AdapterStep`` as JSON."""
    import torch

    install_patches(patches)
    loader = Loader(source, Recipe.from_json(recipe))
    run = _Run(loader, resized(loader.build("meta").to("meta"), source))
    name = type(run.model).__name__
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = run.all(steps)
    return asdict(AdapterSteps(name, made, tuple(run.faults)))


class _RefusedError(Exception):
    """A call of the program's raised."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


@dataclass
class _Run:
    """The calls, one after the other. ``model``: the base, then the PEFT model."""

    loader: Loader
    model: Any
    faults: list[StepFault] = field(default_factory=list)
    #: Adapters that a call has loaded or made, in order; those that were active, or went into
    #: others or into files; and those that were made of others.
    known: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    combined: set[str] = field(default_factory=set)
    #: Adapters that a call has given the weights of others.
    swapped: set[str] = field(default_factory=set)
    #: Adapters that the program has deleted itself.
    deleted: set[str] = field(default_factory=set)

    def all(self, steps: Sequence[Mapping[str, Any]]) -> int:
        """Makes the calls up to the first that fails; how many were made."""
        for number, step in enumerate(steps):
            try:
                self._make(number, step)
            except _RefusedError as refused:
                report = library_error(refused.error)
                if _is_of_peft(report):
                    self.faults.append(StepFault(number, "refused", error=report))
                return number + 1
        return len(steps)

    def _make(self, number: int, step: Mapping[str, Any]) -> None:
        method = step["method"]
        before = set(getattr(self.model, "peft_config", {}))
        if method == "save_pretrained":
            self._saved(step)
            self.faults += self._unloadable(number, step)
            self.used |= set(self.known)
            return
        merged = _names(self._argument(step, "adapter_names", None)) or self._active()
        if method in ("merge_and_unload", "unload", "merge_adapter"):
            self.used |= set(merged)
        whole = _whole_modules(self.model) if method == "merge_and_unload" else {}
        if method == _COMBINES:
            self.used |= set(_names(self._argument(step, "adapters", 0)))
            altered = _altered(number, self._configs(step))
        try:
            result = self._call(step)
        except Exception as error:
            raise _RefusedError(error) from error
        self.deleted |= before - set(self.model.peft_config)
        self.known += [one for one in self.model.peft_config if one not in before]
        if method == _COMBINES:
            self.combined |= set(self.model.peft_config) - before
            self.faults += altered
        elif method == _SWAPS:
            self.faults += self._rescaled(number, step)
        self._judge(number, step, merged, whole, result)

    def _judge(
        self,
        number: int,
        step: Mapping[str, Any],
        merged: Sequence[str],
        whole: Mapping[str, Mapping[int, str]],
        result: Any,
    ) -> None:
        """What became of the adapters by a call that takes, merges or chooses them."""
        method = step["method"]
        if method == "merge_and_unload":
            if self._argument(step, "adapter_names", None) is None:  # else it is a choice
                self.faults += self._left_out(number)
            self.faults += _whole_left_out(number, merged, whole, result)
        elif method == "merge_adapter":
            self.faults += self._not_applied(number)
        elif method in ("set_adapter", "get_peft_model", "from_pretrained"):
            # The others were there for set_adapter, and it did not choose them.
            self.used |= set(self.known if method == "set_adapter" else self._active())

    def _base(self) -> Any:
        return resized(self.loader.build("meta").to("meta"), self.loader.source)

    def _call(self, step: Mapping[str, Any]) -> Any:
        import peft

        method, positional, keywords = step["method"], step["positional"], step["keywords"]
        if method == "from_pretrained":
            keywords.setdefault("adapter_name", positional[0] if positional else "default")
            with _weights_of(step["folder"]):
                self.model = peft.PeftModel.from_pretrained(
                    self.model, step["folder"], adapter_name=keywords["adapter_name"],
                    torch_device="cpu",
                )  # fmt: skip
        elif method == "get_peft_model":
            self.model = peft.get_peft_model(self.model, _new(step), *positional, **keywords)
        elif method == "load_adapter":
            with _weights_of(step["folder"]):
                self.model.load_adapter(step["folder"], *positional, **keywords, torch_device="cpu")
        elif method == _SWAPS:
            swap = importlib.import_module("peft.utils.hotswap").hotswap_adapter
            with _weights_of(step["folder"]):
                swap(self.model, step["folder"], *positional, **keywords)
        elif method == "add_adapter":
            self.model.add_adapter(*positional[:1], peft_config=_new(step), **keywords)
        else:
            owner = self.model.base_model if step["inner"] else self.model
            return getattr(owner, method)(*positional, **keywords)
        return None

    def _argument(self, step: Mapping[str, Any], name: str, position: int | None) -> Any:
        if name in step["keywords"]:
            return step["keywords"][name]
        given = step["positional"]
        return given[position] if position is not None and position < len(given) else None

    def _active(self) -> list[str]:
        return list(getattr(self.model, "active_adapters", ())) if self.known else []

    def _configs(self, step: Mapping[str, Any]) -> dict[str, Any]:
        names = _names(self._argument(step, "adapters", 0))
        configs = self.model.peft_config
        return {name: configs[name] for name in names if name in configs}

    def _left_out(self, number: int) -> Iterator[StepFault]:
        """Adapters that were loaded and then taken off, and that nothing has used before."""
        idle = [name for name in self.known if name not in self.used | self.deleted]
        if idle:
            merged = tuple(sorted(self.used & set(self.known)))
            yield StepFault(number, "left-out", tuple(idle), "taken off", merged=merged)

    def _not_applied(self, number: int) -> Iterator[StepFault]:
        """Active adapters in layers where others are merged: such a layer only uses its weight."""
        layer = importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer
        for module in filter(lambda one: isinstance(one, layer), self.model.modules()):
            merged, active = list(module.merged_adapters), list(module.active_adapters)
            lost = [name for name in active if name not in merged and _holds(module, name)]
            if merged and lost:
                yield StepFault(number, "left-out", tuple(lost), "active", merged=tuple(merged))
                return

    def _saved(self, step: Mapping[str, Any]) -> None:
        """Saves the adapters as each process but the first does: without the files."""
        if not hasattr(self.model, "peft_config"):
            return
        chosen = _names(self._argument(step, "selected_adapters", None)) or None
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.model.save_pretrained(
                    folder,
                    selected_adapters=chosen,
                    save_embedding_layers=False,
                    is_main_process=False,
                )
            except Exception as error:
                raise _RefusedError(error) from error

    def _rescaled(self, number: int, step: Mapping[str, Any]) -> Iterator[StepFault]:
        """What was swapped in, where it is scaled in another way than when it is loaded."""
        import peft

        name = self._argument(step, "adapter_name", 0)
        self.swapped.add(name)
        with _weights_of(step["folder"]):
            loaded = peft.PeftModel.from_pretrained(
                self._base(), step["folder"], adapter_name=name, torch_device="cpu"
            )
        detail = _other_scaling(_scalings(self.model, name), _scalings(loaded, name))
        if detail:
            yield StepFault(number, "rescaled", (name,), detail)

    def _unloadable(self, number: int, step: Mapping[str, Any]) -> Iterator[StepFault]:
        """Combined or swapped adapters whose tensors have other shapes than their config makes, or
        that it scales in another way."""
        import peft

        if not hasattr(self.model, "peft_config"):
            return
        chosen = _names(self._argument(step, "selected_adapters", None)) or self.known
        for name in chosen:
            if name not in self.combined | self.swapped:
                continue
            config = copy.deepcopy(self.model.peft_config[name])
            fresh = peft.get_peft_model(self._base(), config, adapter_name=name)
            own, made = _shapes(self.model, name), _shapes(fresh, name)
            other = [key for key in own if own[key] != made.get(key)]
            scaled = _other_scaling(_scalings(self.model, name), _scalings(fresh, name))
            if other:
                key = other[0]
                detail = f"{key} is saved as {list(own[key])}, and loading makes {made.get(key)}"
                yield StepFault(number, "not-loadable", (name,), f"{len(other)}: {detail}")
            elif scaled and name in self.swapped:
                yield StepFault(number, "rescaled", (name,), scaled)


def _whole_modules(model: Any) -> dict[str, dict[int, str]]:
    """Path of each module that adapters save as a whole, with the parameter of each adapter's."""
    kind = importlib.import_module("peft.utils.other").ModulesToSaveWrapper
    return {
        path: {id(next(one.parameters())): name for name, one in module.modules_to_save.items()}
        for path, module in model.base_model.model.named_modules()
        if isinstance(module, kind)
    }


def _whole_left_out(
    number: int, merged: Sequence[str], whole: Mapping[str, Mapping[int, str]], result: Any
) -> Iterator[StepFault]:
    """Adapters that were to be merged and whose own copy of a module is not the one that stays."""
    for path, owners in whole.items():
        kept = owners.get(id(next(result.get_submodule(path).parameters())), "")
        lost = [name for name in merged if name in owners.values() and name != kept]
        if kept and lost:
            yield StepFault(number, "left-out", tuple(lost), path, merged=(kept,))
            return


def _new(step: Mapping[str, Any]) -> Any:
    import peft

    name, values = step["config"]
    return getattr(peft, name)(**values)


def _weights_of(folder: str) -> Any:
    """PEFT reads tensors without storage in place of the file in this folder."""
    tensors = read_adapter(Path(folder)).weights.tensors
    return contents_are({name: without_storage(item) for name, item in tensors.items()})


def _names(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _holds(module: Any, name: str) -> bool:
    parts = (getattr(module, one, ()) for one in getattr(module, "adapter_layer_names", ()))
    return any(name in part for part in parts)


def _shapes(model: Any, name: str) -> dict[str, tuple[int, ...]]:
    import peft

    state = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return {key: tuple(value.shape) for key, value in state.items()}


def _scalings(model: Any, name: str) -> dict[str, float]:
    """Path of each adapted layer, with the factor of this adapter there."""
    found = ((path, getattr(module, "scaling", None)) for path, module in model.named_modules())
    return {
        path: float(factors[name])
        for path, factors in found
        if isinstance(factors, Mapping) and name in factors
    }


def _other_scaling(own: Mapping[str, float], loaded: Mapping[str, float]) -> str:
    """Where the two differ, in words; empty where they agree."""
    other = [path for path, factor in loaded.items() if own.get(path, factor) != factor]
    if not other:
        return ""
    path = other[0]
    return f"{len(other)} of {len(loaded)}: {path} by {own[path]:g} instead of {loaded[path]:g}"


def _is_of_peft(report: ErrorReport) -> bool:
    """Whether PEFT refuses, and not a tensor that has no numbers."""
    inside = "/peft/" in report.where.replace("\\", "/")
    shapes = "size mismatch for" in report.message
    return (inside or shapes) and "meta" not in report.message.lower()


# --- what combining does to values ----------------------------------------------------------------


def _altered(number: int, configs: Mapping[str, Any]) -> list[StepFault]:
    """Adapters that a combination does not give back where it has all of one of them and nothing
    of the others. Measured where all are LoRA, on a layer that each of them is put on."""
    if not configs or any(_kind(config) != "LORA" for config in configs.values()):
        return []
    measured = {name: _difference(configs, name) for name in configs}
    off = {name: value for name, value in measured.items() if value is not None}
    altered = tuple(name for name, value in off.items() if value > _TOLERANCE)
    if not altered:
        return []
    worst = max(altered, key=lambda name: off[name])
    detail = f"relative difference {off[worst]:.2g}"
    return [StepFault(number, "altered", altered, detail, _cause(configs, worst))]


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def _cause(configs: Mapping[str, Any], name: str) -> str:
    """The entry that, set to its default in all of them, takes the difference away."""
    for entry in dataclasses.fields(type(configs[name])):
        default = _default(entry)
        if entry.name in _OF_THE_MODEL or default is dataclasses.MISSING:
            continue
        if all(getattr(config, entry.name) == default for config in configs.values()):
            continue
        plain = {key: copy.copy(config) for key, config in configs.items()}
        for config in plain.values():
            setattr(config, entry.name, default)
        off = _difference(plain, name)
        if off is not None and off <= _TOLERANCE:
            return entry.name
    return ""


def _default(entry: Any) -> Any:
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return entry.default


def _difference(configs: Mapping[str, Any], name: str) -> float | None:
    """Between the outputs of a small layer with one adapter, and with a combination of all of them
    in which only that one has a weight; ``None`` where it cannot be made."""
    import peft
    import torch

    with torch.device("cpu"), torch.no_grad():
        torch.manual_seed(0)
        base = torch.nn.Sequential(torch.nn.Linear(_WIDTH, _WIDTH))
        inputs = torch.randn(4, _WIDTH)
        try:
            made = {key: _small(config) for key, config in configs.items()}
            first, *others = made
            model = peft.get_peft_model(base, made[first], adapter_name=first)
            for other in others:
                model.add_adapter(other, made[other])
            for key, value in model.named_parameters():
                if any(f".{one}." in key or key.endswith(f".{one}") for one in made):
                    value.add_(torch.randn_like(value) * _SPREAD)
            model.set_adapter(name)
            own = model(inputs)
            model.add_weighted_adapter(
                list(made), [float(key == name) for key in made], "combined", combination_type="cat"
            )
            model.set_adapter("combined")
            again = model(inputs)
        except Exception:  # noqa: BLE001 - what cannot be measured on it is not claimed
            return None
    return float((own - again).abs().max() / own.abs().max())


def _small(config: Any) -> Any:
    """The same kind of adapter, on the one layer."""
    lora = importlib.import_module("peft").LoraConfig
    known = {entry.name for entry in dataclasses.fields(lora) if entry.init}
    kept = {name: getattr(config, name) for name in known if name not in _OF_THE_MODEL}
    rank = min(config.r, _MOST_RANK)
    return lora(**kept, r=rank, lora_alpha=2 * rank, target_modules=["0"], lora_dropout=0.0)
