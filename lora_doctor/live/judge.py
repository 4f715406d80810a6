"""The rules, asked about a model that is being trained: the evidence is that of ``check`` on a
loaded module and of a dry run, gathered on the real objects."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lora_doctor.api.opening import open_case
from lora_doctor.api.options import CheckOptions
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.arguments import set_by_somebody
from lora_doctor.dry_run.acts.contract import without_autocast
from lora_doctor.dry_run.captured import Captured
from lora_doctor.dry_run.recipe import captured_recipe
from lora_doctor.engine import registry
from lora_doctor.engine.case import Case
from lora_doctor.engine.diagnose import diagnose
from lora_doctor.errors import EvidenceError
from lora_doctor.guest.journal import Journal
from lora_doctor.guest.session import Session
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.dry_run import DryRun
from lora_doctor.results.processes import Processes
from lora_doctor.results.verification import Verification

T = TypeVar("T")
#: The share of the free memory that a model may have, so that the contract is run on a copy of it:
#: the copy shares the weights, but a backward and merged weights take as much again.
_SHARE = 0.25
#: Keys of a recipe, by the dtype of an autocast.
_MIXED = {"torch.float16": "fp16", "torch.bfloat16": "bf16"}


class Kept(Journal):
    """A journal of the acts of a dry run that is kept here, and in no file."""

    def __init__(self) -> None:
        super().__init__(Session(Path(), ""))

    def tell(self, kind: str, **values: Any) -> None:
        self._told.append({"kind": kind, "time": float(len(self._told)), "pid": 0, **values})

    def captured(self) -> Captured:
        return Captured(tuple(self._told))


def acting() -> tuple[Acting, Kept]:
    """What the acts of a dry run go by, and what they tell; nothing is replaced for it."""
    found, journal = Acting(Session(Path(), "")), Kept()
    found.journal = journal
    return found, journal


@dataclass
class Training:
    """The objects of a training. ``given``: what the first training forward was called with, by
    name. ``arguments``: of a Trainer, or ``None``. ``planned``: steps of the whole run. ``mixed``:
    device type and dtype of the autocast that forward is called in. ``sums``: rank to the sum of
    the sizes of its trainable numbers, of several processes after the same steps."""

    model: Any
    optimizer: Any
    scheduler: Any = None
    planned: int | None = None
    arguments: Any = None
    given: Mapping[str, Any] = field(default_factory=dict)
    journal: Kept | None = None
    mixed: tuple[str, Any] | None = None
    sums: Mapping[str, float] | None = None


def check_selection(select: Sequence[str], ignore: Sequence[str]) -> None:
    """Raises InputError where there is no such rule."""
    registry.check_selection(_selection((select, ignore)), registry.find_rules())


def _selection(chosen: tuple[Sequence[str], Sequence[str]]) -> registry.RuleSelection:
    several = [(one,) if isinstance(one, str) else tuple(one) for one in chosen]
    return registry.RuleSelection(*several)


def judged(
    training: Training,
    chosen: tuple[Sequence[str], Sequence[str]],
    *,
    seen: Verification | None,
    why_not: str = "",
) -> Diagnosis:
    """Ask the rules.

    Args:
        training: what is asked about.
        chosen: codes of the rules that are asked, and of those that are not.
        seen: what the steps so far show; ``None``: the training contract is run on a copy.
        why_not: why that is not done.

    Raises:
        LoraDoctorError: the rules cannot be asked.
    """
    recipe = _recipe(training)
    given: CheckOptions = {
        "depth": "full",
        "batches": [_own(training.given)],
        "optimizer": training.optimizer,
    }
    if training.scheduler is not None and training.planned:
        given |= {"scheduler": training.scheduler, "planned_steps": training.planned}
    found, selection = registry.find_rules(), _selection(chosen)
    if seen is not None:
        # What failed in the training itself is not what a contract without a setting does not do.
        found = [rule for rule in found if not rule.is_comparison]
    with without_autocast(training.model), open_case(training.model, recipe, given) as case:
        _keep(case, training, seen, why_not)
        return diagnose(case, found, selection, execute_fixes=False)


def _keep(case: Case, training: Training, seen: Verification | None, why_not: str) -> None:
    store = case.store
    if seen is not None:
        store.keep("full", seen)
    elif why_not:
        store.refuse("full", EvidenceError(why_not))
    if training.sums:
        store.keep("dry_run", _several(training.sums))
    captured = training.journal.captured() if training.journal is not None else Captured(())
    supervision = captured.supervision()
    if supervision is not None:
        store.keep("supervision", supervision)
    else:
        store.refuse("supervision", EvidenceError("the first batch has no labels"))


def _several(sums: Mapping[str, float]) -> DryRun:
    """What rules about several processes look at, of those of this training."""
    count, ranks = len(sums), tuple(sorted(int(rank) for rank in sums))
    found = Processes(count, count, met=count, trained=ranks, ran_type="live run", sums=sums)
    command = (Path(sys.argv[0]).name,) if sys.argv else ()
    return DryRun(command, 0, trained_by="a loop", processes=found)


def _recipe(training: Training) -> Recipe:
    from lora_doctor.model.peft_models import own_config
    from lora_doctor.recipe.files.read_write import as_recipe

    model = training.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    stored = getattr(getattr(base, "config", None), "quantization_config", None)
    to_dict = getattr(stored, "to_dict", None)
    loading = {
        "model_class": type(base).__name__,
        "stored_quantization": to_dict() if callable(to_dict) else stored,
    }
    arguments = {} if training.arguments is None else set_by_somebody(training.arguments)
    key = _MIXED.get(str(training.mixed[1])) if training.mixed else None
    if key is not None and not (arguments.get("fp16") or arguments.get("bf16")):
        arguments[key] = True
    return captured_recipe(dict(as_recipe(own_config(model)).values), loading, arguments)


def _own(given: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of our own in the place of the user's."""
    return {
        name: value.detach().clone() if hasattr(value, "detach") else value
        for name, value in given.items()
    }


def why_no_contract(model: Any) -> str:
    """Why the training contract is not run on a copy of this model; empty where it can be."""
    sharded = why_sharded(model)
    if sharded:
        return f"{sharded}: no copy of it can be trained in one process"
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    free = _free(next((p.device for p in model.parameters()), None))
    if free is not None and size > _SHARE * free:
        return (
            f"the model has {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free, too little "
            "for the training contract on a copy; its first steps are watched instead"
        )
    return ""


def why_sharded(model: Any) -> str:
    """What cuts the model's weights into shards, in words; empty where nothing does."""
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id"):
            return "DeepSpeed has cut the weights into shards"
        if hasattr(parameter, "to_local"):
            return "FSDP has cut the weights into shards"
        if parameter.is_meta:
            return "weights of the model are not in memory"
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        return "FSDP has cut the weights into shards"
    return ""


def why_not_watched(model: Any) -> str:
    """Why gradients and steps of the parameters cannot be read in this process; empty where they
    can, of its part of them where they are cut into shards."""
    if any(hasattr(one, "ds_id") or one.is_meta for one in model.parameters()):
        return why_sharded(model)
    return ""


def autocast_of(device: Any) -> tuple[str, Any] | None:
    """Device type and dtype of the autocast that is on now; ``None`` where none is."""
    import torch

    kind = getattr(device, "type", "cpu")
    if not torch.is_autocast_enabled(kind):
        return None
    return kind, torch.get_autocast_dtype(kind)


def _free(device: Any) -> int | None:
    import torch

    kind = getattr(device, "type", "cpu")
    if kind == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    if kind != "cpu":
        return None
    import psutil

    return int(psutil.virtual_memory().available)


def apart(work: Callable[[], T]) -> T:
    """Call something in a thread of its own: autocast, gradient mode and function modes of the
    user's are of the thread. So is the current GPU, which is passed on."""
    import torch

    current = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    done: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        if current is not None:
            torch.cuda.set_device(current)
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    thread = threading.Thread(target=run, name="lora-doctor: live run")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return done[0]
