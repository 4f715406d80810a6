"""From what the guests told to what the run has to learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from lora_doctor.results.from_json import from_json
from lora_doctor.results.training_signal import (
    AdapterGradients,
    FilledLabels,
    GradientsWithoutStep,
    LongestRow,
    OneLabel,
    PreferencePairs,
    Rewards,
    StepGradients,
    TrainingSignal,
)

Records = Sequence[Mapping[str, Any]]
T = TypeVar("T")
#: Said where a verdict does not reach.
REWARDS_ALIKE = (
    "all completions of a prompt got the same reward: the tiny model writes at random; whether "
    "what the real model writes gets different rewards is not shown"
)


def signal_of(records: Records, short_path: Callable[[str], str]) -> TrainingSignal:
    """What was seen of gradients, pairs, rewards and labels. ``short_path``: a file as its user
    would write it."""
    return TrainingSignal(
        _gradients(_all(records, "step_gradients"), short_path),
        _without_step(records),
        _last(PreferencePairs, _all(records, "pairs")),
        _rewards(_all(records, "rewards"), short_path),
        _one_label(records),
        _last(LongestRow, _all(records, "longest")),
        _last(FilledLabels, _all(records, "filled_labels")),
        adapters_of(records),
    )


def adapters_of(records: Records) -> tuple[AdapterGradients, ...]:
    """Each adapter of several, as it stood after the last step that was seen."""
    found = _all(records, "several_adapters")
    told = found[-1]["adapters"] if found else ()
    return tuple(from_json(AdapterGradients, dict(one)) for one in told)


def _all(records: Records, kind: str) -> list[Mapping[str, Any]]:
    return [record for record in records if record["kind"] == kind]


def _last(kind: type[T], records: Records) -> T | None:
    if not records:
        return None
    own = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return from_json(kind, {key: item for key, item in records[-1].items() if key in own})


def _gradients(records: Records, short_path: Callable[[str], str]) -> StepGradients | None:
    """Those of the optimizer whose gradients were largest: another may have a phase of its own."""
    newest = {(record["pid"], record["of"]): record for record in records}
    best = sorted(newest.values(), key=lambda one: (one["not_finite"], float(one["largest"])))
    found = _last(StepGradients, best)
    place = best[-1].get("place") if best else None
    if found is None or not place:
        return found
    return replace(found, file=short_path(place["file"]), line=int(place["line"]))


def _without_step(records: Records) -> GradientsWithoutStep | None:
    """Where no loader was cut short: the rest of its batches may have brought a step."""
    found = _all(records, "no_step")
    if not found or any(one["cut"] for one in found) or _all(records, "trained"):
        return None
    return _last(GradientsWithoutStep, found)


def _rewards(records: Records, short_path: Callable[[str], str]) -> Rewards | None:
    """All calls together."""
    if not records:
        return None
    functions = records[-1]["functions"]
    return Rewards(
        prompts=sum(int(one["prompts"]) for one in records),
        alike=sum(int(one["alike"]) for one in records),
        same_completions=sum(int(one["same_completions"]) for one in records),
        least=min(float(one["least"]) for one in records),
        most=max(float(one["most"]) for one in records),
        functions=tuple(str(one["name"]) for one in functions),
        blind=tuple(str(one["name"]) for one in functions if one["blind"]),
        file=short_path(str(functions[0]["file"])),
        line=int(functions[0]["line"]),
    )


def _one_label(records: Records) -> OneLabel | None:
    """The class of all rows, where the loss is taken on classes."""
    found = _last(OneLabel, _all(records, "one_label"))
    if found is None:
        return None
    train, adapted = (_all(records, kind) for kind in ("train", "adapted"))
    by_label = bool(train) and "KTO" in str(train[-1]["by"])
    count = adapted[-1].get("label_count") if adapted else None
    if by_label:
        return found
    # A loss of the user's own takes the labels out of the batch before forward is called.
    batches = (*_all(records, "rows"), *_all(records, "loaded_rows"))
    given = [rows for one in batches if (rows := one["rows"].get("labels"))]
    classes = bool(given) and all(not isinstance(rows[0], list) for rows in given)
    return replace(found, classes=count) if classes and count else None
