"""Shrink any transformers config and build its model: the same classes, tiny dimensions.

The numbers are chosen from the roles of the config's entries (`shrink_rules`, `shrink_layers`). A
trial forward follows; where construction or forward objects, the entries that the objection names
get their old values back, then whole roles do, one after the other, within a limit.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_doctor.static.installed.missing_package import missing_package
from lora_doctor.text import error_summary
from lora_doctor.tiny_model.config_roles import tree
from lora_doctor.tiny_model.shrink.absent_parts import all_absent
from lora_doctor.tiny_model.shrink.apply import apply_sizes
from lora_doctor.tiny_model.shrink.build import TooBig, build_small, read_back
from lora_doctor.tiny_model.shrink.config_mending import mend
from lora_doctor.tiny_model.shrink.image import first_grid
from lora_doctor.tiny_model.shrink.repair import relax, relax_too_big, repair
from lora_doctor.tiny_model.shrink.sections import sections_of_code
from lora_doctor.tiny_model.shrink.sizes import Sizes
from lora_doctor.tiny_model.shrink.timm_towers import settle_towers, with_sizes

MAX_ATTEMPTS = 14
TIME_LIMIT = 20.0  # seconds, for all attempts together
# A loss that the model could compute but for a gap or a contradiction in its config.
_LOST_LOSS = re.compile(r"object has no attribute|shape '\[-1, \d+\]' is invalid")
_TOLERANCE = 6  # times max_parameters, where nothing smaller can be built


class ShrinkError(Exception):
    """No tiny model could be built; `reason` is one line and ends in the last exception."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Shrunk:
    """A tiny model: CPU, float32, random weights, in training mode.

    `steps` says what was changed and which objection was answered how; `batch` is the input that
    the trial forward accepted (None where no forward was found to work: the last step says why).
    """

    model: Any
    config: Any
    steps: list[str]
    attempts: int
    batch: Any = None


def shrink(
    config: Any,
    build: Callable[[Any], Any],
    *,
    max_parameters: int = 5_000_000,
    try_forward: bool = True,
    seed: int = 0,
) -> Shrunk:
    """Build a tiny model of the class that `build` constructs.

    Args:
        config: a `PretrainedConfig`, default or real; it is not changed.
        build: makes the `nn.Module` with random weights from the shrunken config.
        max_parameters: aim for the size of the tiny model; five times as much is accepted where
            the smallest widths do not get below it.
        try_forward: run a training batch through it and answer objections; False only builds.
        seed: of the random weights.

    Raises:
        ShrinkError: no attempt could be built within `max_parameters`.
    """
    from lora_doctor.tiny_model.batch.make_batch import make_batch
    from lora_doctor.tiny_model.batch.result import Batch, BatchError

    start = Sizes(grid=first_grid(tree(copy.deepcopy(config))))
    pending = [start]
    seen = [start]

    def take(options: list[Sizes]) -> bool:
        """Put new options in line; whether any is left to try."""
        fresh = [option for option in options if option not in seen]
        seen.extend(fresh)
        pending.extend(fresh)
        pending.sort(key=lambda option: option.step not in ("named", "repaired"))
        return bool(pending)

    built: Shrunk | None = None
    last = "nothing tried"
    objections: list[str] = []
    gaps: list[str] = []
    attempts = 0
    checked = True
    spoken = False

    def complete(error: BaseException | None, sizes: Sizes, running: bool = False) -> bool:
        """Whether the config itself is at fault, whatever its numbers, and could be completed."""
        nonlocal config, pending, seen, attempts
        mended = mend(config, error, running) if error and len(gaps) < MAX_ATTEMPTS else None
        if mended is None:
            return False
        config = mended.config
        gaps.extend(mended.changes)
        pending, seen, attempts = [sizes], [sizes], attempts - 1
        return True

    end = time.monotonic() + TIME_LIMIT
    while pending and attempts < MAX_ATTEMPTS and (attempts == 0 or time.monotonic() < end):
        sizes = pending.pop(0)
        small, changes = apply_sizes(config, sizes)
        if spoken:
            settle_towers(config, small, "depth" in sizes.keep_roles, changes)
        small, refused = read_back(small) if checked else (small, None)
        if refused is not None and read_back(config)[1] is None:
            # A cheap attempt, no model was built; when nothing helps, one that is not saved will do
            last = error_summary(refused)
            objections.append(last)
            more = repair(sizes, None, small, [last]) + relax(sizes, last, changes)
            if not take(more):
                checked, pending, seen = False, [start], [start]
            continue
        attempts += 1
        steps = [f"empty before: {', '.join(gaps)}"] if gaps else []
        steps += changes.steps() + ([sizes.why] if sizes.why else [])
        # At the smallest widths what is left over stands in the code (convolutions, tables).
        limit = max_parameters * (1 if sizes.base > 32 else _TOLERANCE)
        try:
            model = build_small(small, build, limit, seed, steps)
        except TooBig as error:
            last = str(error)
            sized = config if spoken else with_sizes(config)
            spoken = spoken or sized is not config
            if sized is not config:  # what was too big may be a tower that only has a name
                config, pending, seen = sized, [start], [start]
                continue
            take(relax_too_big(sizes, error, small))
            continue
        except Exception as error:
            missing = missing_package(error)
            if missing:  # no number of the config changes that
                raise ShrinkError(f"it {missing}") from error
            last = error_summary(error)
            if complete(error, sizes):
                continue
            more = repair(sizes, None, small, [last]) + relax(sizes, last, changes)
            more = sections_of_code(sizes, small, error) + more
        else:
            if not try_forward:
                return Shrunk(model, small, steps, attempts)
            batch: Batch | None = None
            try:
                # What was found before need not be found again; only what would be fuller.
                had = len(built.batch.left_out) if built is not None and built.batch else 0
                batch = make_batch(model, seed=seed, left_out=had or None)
            except BatchError as error:
                last, heard = error.reason, error.forward_errors
                if any(complete(raised, sizes, running=True) for raised in error.raised):
                    continue
            else:
                lost = [note.text for note in batch.notes if _LOST_LOSS.search(note.reason)]
                unable = batch.loss == "surrogate" and bool(lost)
                repairs = repair(sizes, model, small, lost) if unable else []
                whole = not batch.left_out or all_absent(model, small, batch.forward_errors)
                if whole and not repairs:
                    return Shrunk(model, small, steps, attempts, batch)
                heard = batch.forward_errors + lost
                last = heard[0]
            if built is None or (batch is not None and _fuller(batch, built.batch)):
                built = Shrunk(model, small, steps, attempts, batch)
            more = repair(sizes, model, small, heard) + relax(sizes, " ".join(heard), changes)
        objections.append(last)
        take(more)
    if built is not None:
        built.attempts = attempts
        if built.batch is None:
            built.steps.append(f"no forward worked: {objections[0]}")
        return built
    raise ShrinkError(
        f"{type(config).__name__}: no tiny model in {attempts} attempts; last objection: {last}"
    )


def _fuller(batch: Any, other: Any) -> bool:
    """Whether `batch` exercises more than `other`, or has a loss where that one has none."""
    if other is None:
        return True
    return (len(batch.left_out), batch.loss == "surrogate") < (
        len(other.left_out),
        other.loss == "surrogate",
    )
