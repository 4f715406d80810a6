"""Shrink any transformers config and build its model: the same classes, tiny dimensions.

The numbers are chosen from the roles of the config's entries (`apply`, `layers`). A trial forward
follows; where construction or forward raises, the entries that the error names get their old values
back, then whole roles do, one after the other, within a limit.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_doctor.static.installed.missing_package import missing_package
from lora_doctor.tiny_model.batch.make_batch import make_batch
from lora_doctor.tiny_model.batch.result import Batch, BatchError
from lora_doctor.tiny_model.config_roles import tree
from lora_doctor.tiny_model.faults_of_code import is_fault_of_code
from lora_doctor.tiny_model.model_error import ModelError
from lora_doctor.tiny_model.shrink.absent_parts import all_absent
from lora_doctor.tiny_model.shrink.apply import apply_sizes
from lora_doctor.tiny_model.shrink.build import TooBig, build_small, read_back
from lora_doctor.tiny_model.shrink.config_mending import mend
from lora_doctor.tiny_model.shrink.image import first_grid
from lora_doctor.tiny_model.shrink.relax import relax, relax_too_big
from lora_doctor.tiny_model.shrink.repair import repair
from lora_doctor.tiny_model.shrink.sections import sections_of_code
from lora_doctor.tiny_model.shrink.sizes import Changes, Sizes
from lora_doctor.tiny_model.shrink.timm_towers import fit_towers, with_sizes

MAX_ATTEMPTS = 14
TIME_LIMIT = 20.0  # seconds, for all attempts together
# A loss that the model could compute but for a gap or a contradiction in its config.
_LOST_LOSS = re.compile(r"object has no attribute|shape '\[-1, \d+\]' is invalid")
#: Roles whose numbers are those of a tokenizer or processor: ids and their number, positions,
#: pixels and patches, the tokens of an image, frames of sound.
DATA_ROLES = frozenset({"vocab", "ids", "positions", "image", "patch", "merge", "tokens", "chunk"})
#: Roles whose numbers are widths in the layers, which code around a model may have written down.
WIDTH_ROLES = frozenset({"width", "heads", "kv_heads", "head_dim", "rotary", "channels", "state"})
_TOLERANCE = 6  # times max_parameters, where nothing smaller can be built


class ShrinkError(Exception):
    """No tiny model could be built; `reason` is one line and ends in the last exception."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Shrunk:
    """A tiny model: CPU, float32, random weights, in training mode.

    `steps` says what was changed and which error was answered how; `batch` is the input that
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
    keep_roles: frozenset[str] = frozenset(),
) -> Shrunk:
    """Build a tiny model of the class that `build` constructs.

    Args:
        config: a `PretrainedConfig`, default or real; it is not changed.
        build: makes the `nn.Module` with random weights from the shrunken config.
        max_parameters: aim for the size of the tiny model; five times as much is accepted where
            the smallest widths do not get below it.
        try_forward: run a training batch through it and answer errors; False only builds.
        seed: of the random weights.
        keep_roles: roles of entries (`config_roles`) that keep their values: `DATA_ROLES` where the
            batches are somebody's own.

    Raises:
        ShrinkError: no attempt could be built within `max_parameters`.
    """
    goal = _Goal(build, max_parameters, try_forward, seed, keep_roles)
    search = _Search(goal, config)
    end = time.monotonic() + TIME_LIMIT
    while search.queue and search.attempts < MAX_ATTEMPTS:
        if search.attempts and time.monotonic() >= end:
            break
        found = search.attempt()
        if found is not None:
            return found
    return search.best()


@dataclass(frozen=True)
class _Goal:
    """What `shrink` was called with, but for the config."""

    build: Callable[[Any], Any]
    max_parameters: int
    try_forward: bool
    seed: int
    keep_roles: frozenset[str] = frozenset()

    def limit(self, sizes: Sizes) -> int:
        """Parameters that a model of these sizes may have. At the smallest widths, those that are
        left are written in the code (convolutions, tables)."""
        return self.max_parameters * (1 if sizes.base > 32 else _TOLERANCE)


class _Queue:
    """Choices of sizes to try; each is tried once, those that an error calls for first."""

    def __init__(self, start: Sizes) -> None:
        self.restart(start)

    def restart(self, start: Sizes) -> None:
        """Forget all others: the config is another one now."""
        self._pending = [start]
        self._seen = [start]

    def add(self, options: Sequence[Sizes]) -> None:
        fresh = [option for option in options if option not in self._seen]
        self._seen.extend(fresh)
        self._pending.extend(fresh)
        self._pending.sort(key=lambda option: option.origin != "called for")

    def pop(self) -> Sizes:
        return self._pending.pop(0)

    def __bool__(self) -> bool:
        return bool(self._pending)


@dataclass(frozen=True)
class _Attempt:
    """A choice of sizes, the config that it gives, and what was changed in it."""

    sizes: Sizes
    config: Any
    changes: Changes


@dataclass
class _Search:
    """The attempts so far. `config` is completed on the way where it has gaps of its own."""

    goal: _Goal
    config: Any
    attempts: int = 0
    #: Entries that were empty in the config, as ``entry = value``.
    filled: list[str] = field(default_factory=list)
    #: One line for each attempt that was not good enough.
    errors: list[str] = field(default_factory=list)
    last_error: str = "nothing tried"
    #: The model whose batch exercises most, of those that could be built.
    built: Shrunk | None = None
    #: Whether a config counts only when it can be saved and loaded.
    must_load: bool = True
    #: Whether towers that only have a name in the config were given their sizes.
    towers_have_sizes: bool = False

    def __post_init__(self) -> None:
        grid = first_grid(tree(copy.deepcopy(self.config)))
        self.start = Sizes(grid=grid, keep_roles=self.goal.keep_roles)
        self.queue = _Queue(self.start)

    def attempt(self) -> Shrunk | None:
        """Try the next sizes; the model where it is good enough to stop."""
        sizes = self.queue.pop()
        small, changes = apply_sizes(self.config, sizes)
        if self.towers_have_sizes:
            fit_towers(self.config, small, "depth" in sizes.keep_roles, changes)
        small, refused = read_back(small) if self.must_load else (small, None)
        attempt = _Attempt(sizes, small, changes)
        if refused is not None and read_back(self.config)[1] is None:
            self._not_loaded(attempt, refused)
            return None
        self.attempts += 1
        steps = self._steps(attempt)
        try:
            model = build_small(
                small, self.goal.build, self.goal.limit(sizes), self.goal.seed, steps
            )
        except TooBig as error:
            self._too_big(attempt, error)
            return None
        except Exception as error:  # noqa: BLE001 - constructors raise anything
            self._not_built(attempt, error)
            return None
        shrunk = Shrunk(model, small, steps, self.attempts)
        return self._run(attempt, shrunk) if self.goal.try_forward else shrunk

    def best(self) -> Shrunk:
        """The best of the models that could be built.

        Raises:
            ShrinkError: there is none.
        """
        if self.built is None:
            raise ShrinkError(
                f"{type(self.config).__name__}: no tiny model in {self.attempts} attempts; "
                f"last objection: {self.last_error}"
            )
        self.built.attempts = self.attempts
        if self.built.batch is None:
            self.built.steps.append(f"no forward worked: {self.errors[0]}")
        return self.built

    def _steps(self, attempt: _Attempt) -> list[str]:
        steps = [f"empty before: {', '.join(self.filled)}"] if self.filled else []
        steps += attempt.changes.steps()
        return steps + ([attempt.sizes.why] if attempt.sizes.why else [])

    def _not_loaded(self, attempt: _Attempt, error: Exception) -> None:
        """A cheap attempt, no model was built; when nothing helps, one that is not saved will
        do."""
        objection = ModelError.of(error)
        self.last_error = objection.told
        self._go_on(self._options(attempt, [objection]))
        if not self.queue:
            self.must_load = False
            self.queue.restart(self.start)

    def _too_big(self, attempt: _Attempt, error: TooBig) -> None:
        self.last_error = str(error)
        if not self.towers_have_sizes:
            sized = with_sizes(self.config)
            if sized is not self.config:  # what was too big may be a tower that only has a name
                self.config, self.towers_have_sizes = sized, True
                self.queue.restart(self.start)
                return
        self.queue.add(relax_too_big(attempt.sizes, error, attempt.config))

    def _not_built(self, attempt: _Attempt, error: Exception) -> None:
        missing = missing_package(error)
        if missing:  # no number of the config changes that
            raise ShrinkError(f"it {missing}") from error
        objection = ModelError.of(error)
        self.last_error = objection.told
        if self._fill_gaps(attempt, error):
            return
        options = self._options(attempt, [objection])
        self._go_on(sections_of_code(attempt.sizes, attempt.config, error) + options)

    def _run(self, attempt: _Attempt, shrunk: Shrunk) -> Shrunk | None:
        """Run a batch; the model with it where it takes all that it can and has a loss."""
        # What was found before need not be found again; only what would be fuller.
        before = self.built.batch if self.built is not None else None
        left_out = len(before.left_out) if before else 0
        try:
            batch = make_batch(shrunk.model, seed=self.goal.seed, left_out=left_out or None)
        except BatchError as error:
            self.last_error = error.reason
            if any(self._fill_gaps(attempt, raised, running=True) for raised in error.raised):
                return None
            if any(is_fault_of_code(raised) for raised in error.raised):
                return self._refused_whatever_its_size(shrunk, error)
            errors = error.forward_errors
        else:
            shrunk.batch = batch
            lost = [error for error in batch.objections if _LOST_LOSS.search(error.words)]
            if _is_whole(shrunk) and not self._repairs_of_loss(attempt, shrunk, lost):
                return shrunk
            errors = batch.forward_errors + lost
            self.last_error = errors[0].told
        if self.built is None or _fuller(shrunk.batch, self.built.batch):
            self.built = shrunk
        self._go_on(self._options(attempt, errors, shrunk.model))
        return None

    def _refused_whatever_its_size(self, shrunk: Shrunk, error: BatchError) -> Shrunk:
        """What to stop with: the best so far, or this model without a batch."""
        self.errors.insert(0, error.reason)
        if self.built is None or self.built.batch is None:
            self.built = shrunk
        return self.best()

    def _repairs_of_loss(
        self, attempt: _Attempt, shrunk: Shrunk, lost: list[ModelError]
    ) -> list[Sizes]:
        """Sizes with which a model may have a loss that it lost to its config."""
        if shrunk.batch.loss != "surrogate" or not lost:
            return []
        return repair(attempt.sizes, shrunk.model, shrunk.config, lost)

    def _options(
        self, attempt: _Attempt, errors: list[ModelError], model: Any = None
    ) -> list[Sizes]:
        """What to try next after these errors of building, or of running `model`."""
        options = repair(attempt.sizes, model, attempt.config, errors)
        return options + relax(attempt.sizes, errors, attempt.changes)

    def _go_on(self, options: list[Sizes]) -> None:
        self.errors.append(self.last_error)
        self.queue.add(options)

    def _fill_gaps(self, attempt: _Attempt, error: BaseException, running: bool = False) -> bool:
        """Whether the config itself is at fault, whatever its sizes, and could be completed; the
        same sizes are tried again then."""
        if len(self.filled) >= MAX_ATTEMPTS:
            return False
        mended = mend(self.config, error, running)
        if mended is None:
            return False
        self.config = mended.config
        self.filled.extend(mended.changes)
        self.queue.restart(attempt.sizes)
        self.attempts -= 1
        return True


def _is_whole(shrunk: Shrunk) -> bool:
    """Whether the batch leaves out no input but those that the config has no tower for."""
    batch = shrunk.batch
    return not batch.left_out or all_absent(shrunk.model, shrunk.config, batch.forward_errors)


def _fuller(batch: Batch | None, other: Batch | None) -> bool:
    """Whether `batch` exercises more than `other`, or has a loss where that one has none."""
    if batch is None or other is None:
        return batch is not None
    return (len(batch.left_out), batch.loss == "surrogate") < (
        len(other.left_out),
        other.loss == "surrogate",
    )
