"""What a trainer makes of its sets: how many steps, what it is evaluated on, columns it drops."""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts import cut_sets
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.plain import plain

#: Rows of the evaluation set that are looked for, among so many of the training set.
_EVALUATED, _TRAINED = 64, 512
#: Where an object says of itself where it lies in memory, nothing can be compared.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def prepare(acting: Acting) -> None:
    """Once there is a Trainer."""
    acting.after("transformers.trainer", lambda module: _columns(acting, module))


# --- columns ------------------------------------------------------------------------------------


def _columns(acting: Acting, module: ModuleType) -> None:
    told: set[str] = set()

    def tell(trainer: Any, names: Iterable[str]) -> None:
        kept = set(getattr(trainer, "_signature_columns", None) or ())
        dropped = sorted(set(names) - kept - told)
        if dropped and kept:
            told.update(dropped)
            acting.journal.tell(
                "dropped_columns", names=dropped, needed=_needed(trainer.model, dropped)
            )

    def removed(original: Any, trainer: Any, dataset: Any, *more: Any, **named: Any) -> Any:
        try:
            return original(trainer, dataset, *more, **named)
        finally:
            if trainer.args.remove_unused_columns:
                tell(trainer, getattr(dataset, "column_names", None) or ())

    def around_collator(
        original: Any, trainer: Any, collator: Any, *more: Any, **named: Any
    ) -> Any:
        def seen(features: Any) -> Any:
            first = features[0] if isinstance(features, list) and features else None
            if isinstance(first, Mapping):
                tell(trainer, map(str, first))
            return inner(features)

        inner = original(trainer, collator, *more, **named)
        return inner if inner is collator else seen

    acting.replaced.around(module.Trainer, "_remove_unused_columns", removed)
    if "_get_collator_with_removed_columns" in vars(module.Trainer):
        acting.replaced.around(
            module.Trainer, "_get_collator_with_removed_columns", around_collator
        )


def _needed(model: Any, dropped: Iterable[str]) -> dict[str, str]:
    """Columns that the forward of a model of transformers inside this one takes, by its class."""
    from transformers import PreTrainedModel

    found: dict[str, str] = {}
    for inner in model.modules() if hasattr(model, "modules") else ():
        if isinstance(inner, PreTrainedModel):
            taken = inspect.signature(type(inner).forward).parameters
            for name in dropped:
                if name in taken:
                    found.setdefault(name, type(inner).__name__)
            break  # the outermost one is what the user would call
    return found


# --- steps and evaluation -----------------------------------------------------------------------


def tell(acting: Acting, trainer: Any, args: Any, state: Any, *, own_schedule: bool) -> None:
    """The plan of the run, and the set that it is evaluated on.

    Args:
        own_schedule: the scheduler is the script's own: it knows nothing of the arguments.
    """
    with acting.ours():
        try:
            plan = None if own_schedule else _plan(trainer, args, state)
            evaluation = _evaluation(trainer)
        except Exception as error:  # noqa: BLE001 - sets of the user's own may raise what they like
            acting.journal.tell("no_sets", reason=f"{type(error).__name__}: {error}"[:300])
            return
    acting.journal.tell("sets", plan=plan, evaluation=evaluation)


def _plan(trainer: Any, args: Any, state: Any) -> dict[str, Any] | None:
    rows = _length(getattr(trainer, "train_dataset", None))
    if not rows:
        return None
    batch = int(args.train_batch_size) * int(args.gradient_accumulation_steps)
    batch *= int(getattr(args, "world_size", 1) or 1)
    return {
        "rows": rows,
        "steps_per_epoch": max(1, math.ceil(rows / batch)),
        "steps": max(1, int(state.max_steps)),
        "warmup_steps": _warmup(args, state),
        "rows_per_step": batch,
    }


def _warmup(args: Any, state: Any) -> int:
    """Steps until the learning rate is reached."""
    if plain(args.lr_scheduler_type) == "constant":
        return 0
    return int(args.get_warmup_steps(int(state.max_steps)))


def _evaluation(trainer: Any) -> dict[str, int] | None:
    """How many rows the evaluation set has, and how many of some of them are trained on."""
    held = getattr(trainer, "eval_dataset", None)
    train = getattr(trainer, "train_dataset", None)
    rows = _length(held)
    if rows is None or isinstance(held, Mapping):
        return None
    if held is train:
        return {"rows": rows, "rows_in_training": rows}
    if not rows or not _length(train) or cut_sets.share_rows(held, train):
        return {"rows": rows, "rows_in_training": 0}
    known = {_fingerprint(row) for row in _some(train, _TRAINED)} - {None}
    same = sum(_fingerprint(row) in known for row in _some(held, min(rows, _EVALUATED)))
    return {"rows": rows, "rows_in_training": same}


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None


def _some(data: Any, most: int) -> Iterable[Any]:
    """Rows spread over a set."""
    length = len(data)
    count = min(length, most)
    return (data[number * length // count] for number in range(count))


def _fingerprint(row: Any) -> str | None:
    """The same for rows that are the same; ``None`` where that cannot be told."""
    text = repr(_plain(row))
    return None if _ADDRESS.search(text) else hashlib.blake2b(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in sorted(value.items(), key=str)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.tobytes() if hasattr(value, "tobytes") else value
