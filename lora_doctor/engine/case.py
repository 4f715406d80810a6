"""A case: a recipe, a model source, and what is known about them. What a rule is handed.

Evidence is gathered when it is first asked for, at most once. What cannot be had raises
:class:`EvidenceError`; the engine turns that into a skipped rule with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lora_doctor.engine.child_failures import evidence_error, went_down
from lora_doctor.errors import Cause, EvidenceError, InputError
from lora_doctor.recipe.edit import Patch
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.depth import DEPTHS, Depth
from lora_doctor.results.diagnosis import Gathered
from lora_doctor.results.note import Note
from lora_doctor.results.structure import Structure
from lora_doctor.results.verification import Verification
from lora_doctor.sandbox.worker import Outcome, Worker
from lora_doctor.static.model_source import ModelSource

if TYPE_CHECKING:
    from lora_doctor.evidence.optimizer import OptimizerState
    from lora_doctor.evidence.tiny_model_cache import TinyModelCache
    from lora_doctor.results.memory_plan import Plan
    from lora_doctor.static.installed.environment import Environment
    from lora_doctor.static.model_files import StaticEvidence
    from lora_doctor.static.remote_code.remote_code import RemoteCode
    from lora_doctor.static.script.training_script import TrainingScript

T = TypeVar("T")
GIB = 1 << 30
#: Times that a proposal is bettered by what a run says of it.
_REFINEMENTS = 3


@dataclass(frozen=True)
class Limits:
    """What a run may take: seconds for each stage, resident memory of a child in bytes."""

    hub_seconds: float = 10.0
    meta_seconds: float = 120.0
    tiny_seconds: float = 180.0
    full_seconds: float = 3600.0
    memory: int = 8 * GIB


@dataclass(frozen=True)
class Settings:
    """How evidence is gathered; the same for all cases of one run."""

    depth: Depth = "tiny"
    device: str = "auto"
    steps: int = 3
    limits: Limits = Limits()
    batches: tuple[Mapping[str, Any], ...] | None = None
    #: Of a loaded module: see ``evidence.optimizer.read_optimizer``.
    optimizer: Any = None
    scheduler: Any = None
    planned_steps: int | None = None
    #: Whether the memory plan is wanted; its rule asks by itself where there is a budget.
    memory: bool = False


class Case:
    """A recipe on a model, and the evidence about it.

    ``static``, ``remote_code``, ``structure``, ``tiny`` and ``full`` raise
    :class:`EvidenceError` where they cannot be had. ``recipe`` has its open keys filled once the
    structure is known; ``asked`` is the recipe as the user gave it.
    """

    def __init__(
        self,
        source: ModelSource,
        recipe: Recipe,
        settings: Settings,
        worker: Worker,
        *,
        patches: tuple[Patch, ...] = (),
        progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.source = source
        self.asked = recipe
        self.settings = settings
        self.patches = patches
        self.gathered: list[Gathered] = []
        #: Checks of the training contract that a finding so far accounts for (set by the engine).
        self.explained: set[str] = set()
        #: Rules whose symptoms occur in a text, as ``CODE name`` (set by the engine).
        self.rules_with_symptom: Callable[[str], list[str]] = lambda text: []
        self._worker = worker
        self._progress = progress
        self._failures: dict[str, EvidenceError] = {}

    def again(self, recipe: Recipe, patches: tuple[Patch, ...]) -> Case:
        """The case after fixes: same model and limits, another recipe; nothing gathered yet but
        the files, which no recipe changes."""
        case = Case(
            self.source, recipe, self.settings, self._worker,
            patches=patches, progress=self._progress,
        )  # fmt: skip
        case.__dict__["_handed_on"] = self._tiny_model_cache
        for name in ("static", "remote_code", "script", "environment"):
            if name in self.__dict__:
                case.__dict__[name] = self.__dict__[name]
            elif name in self._failures:
                case._failures[name] = self._failures[name]
        return case

    @property
    def recipe(self) -> Recipe:
        """The recipe, with open keys filled as far as the structure is known."""
        structure = self.__dict__.get("structure")
        return Recipe.from_json(structure.recipe) if structure else self.asked

    @cached_property
    def environment(self) -> Environment:
        """Installed versions; nothing is imported."""
        from lora_doctor.static.installed.environment import gather_environment

        return self._timed("environment", "installed package metadata", gather_environment)

    @cached_property
    def static(self) -> StaticEvidence:
        """The small files of the model: configs, tokenizer, safetensors headers."""
        return self._once("static", self._gather_static)

    @cached_property
    def remote_code(self) -> RemoteCode:
        """The Python of the model's repository, read and never run."""

        def read() -> RemoteCode:
            static = self.static
            if not static.python_files:
                raise EvidenceError("the model's repository has no Python files")
            from lora_doctor.static.remote_code.remote_code import read_remote_code

            return self._timed(
                "remote_code",
                f"{len(static.python_files)} Python files of {static.source}, read with ast",
                lambda: read_remote_code(static.folder, static),
            )

        return self._once("remote_code", read)

    @cached_property
    def script(self) -> TrainingScript:
        """The training script that MODEL names, read and never run."""

        def read() -> TrainingScript:
            if self.source.kind != "script":
                raise EvidenceError("MODEL is no training script")
            from lora_doctor.static.script.training_script import read_training_script

            path = Path(self.source.name)
            return self._timed(
                "script", f"{path}, read with ast", lambda: read_training_script(path)
            )

        return self._once("script", read)

    @cached_property
    def structure(self) -> Structure:
        """The class that would be loaded, at full size on the meta device, adapters injected."""
        return self._once("structure", self._gather_structure)

    @cached_property
    def optimizer(self) -> OptimizerState:
        """What the user's optimizer holds of a loaded module; raises without an optimizer."""

        def read() -> OptimizerState:
            from lora_doctor.evidence.optimizer import read_optimizer

            given = self.settings
            if given.optimizer is None:
                raise EvidenceError(
                    "no optimizer was given: lora_doctor.check(model, optimizer=optimizer)"
                )
            return self._timed(
                "optimizer",
                "the optimizer's groups, a scheduler on a copy",
                lambda: read_optimizer(
                    self.source.module, given.optimizer, given.scheduler, given.planned_steps
                ),
            )

        return self._once("optimizer", read)

    @cached_property
    def tiny(self) -> Verification:
        """The training contract on the same classes with shrunken dimensions."""
        return self._once("tiny", lambda: self._verify("tiny"))

    @cached_property
    def full(self) -> Verification:
        """The training contract on the real weights."""
        return self._once("full", lambda: self._verify("full"))

    @cached_property
    def memory_plan(self) -> Plan:
        """What the recipe and its alternatives take on a GPU, counted on the meta device."""
        return self._once("memory_plan", self._plan_memory)

    @property
    def verification(self) -> Verification:
        """The training contract at the depth of this run."""
        return self.full if self.settings.depth == "full" else self.tiny

    def reaches(self, depth: Depth) -> bool:
        """Whether this run goes as deep as ``depth``."""
        return DEPTHS.index(self.settings.depth) >= DEPTHS.index(depth)

    def too_shallow(self, depth: Depth) -> str:
        """Why there is no evidence of this depth; empty when the run reaches it."""
        if self.reaches(depth):
            return ""
        if self.source.kind == "script":
            return "MODEL is a training script, which is only read; give the model that it trains"
        return f"needs --depth {depth}; this run stops at {self.settings.depth}"

    def has(self, name: str) -> bool:
        """Whether this evidence can be had; gathers it."""
        try:
            getattr(self, name)
        except EvidenceError:
            return False
        return True

    def why_not(self, name: str) -> str:
        """The reason why this evidence cannot be had; empty when it can."""
        return "" if self.has(name) else str(self._failures.get(name, ""))

    def cause_of(self, name: str) -> Cause | None:
        """What a library or the model's code raised, where this evidence cannot be had for it."""
        failure = None if self.has(name) else self._failures.get(name)
        return failure.cause if failure is not None else None

    @property
    def unexplained(self) -> tuple[str, ...]:
        """Failed checks of the training contract that no finding accounts for."""
        failed = (check.name for check in self.verification.failed_checks)
        return tuple(name for name in failed if name not in self.explained)

    # --- gathering -----------------------------------------------------------------------------

    def _once(self, name: str, gather: Callable[[], T]) -> T:
        if name in self._failures:
            raise self._failures[name]
        try:
            return gather()
        except EvidenceError as error:
            self._failures[name] = error
            if not any(piece.name == name for piece in self.gathered):
                self.gathered.append(Gathered(name, str(self.source), 0.0, str(error)))
            raise

    def _timed(self, name: str, origin: str, gather: Callable[[], T]) -> T:
        start = time.perf_counter()
        value = gather()
        self.gathered.append(Gathered(name, origin, round(time.perf_counter() - start, 4)))
        return value

    def _gather_static(self) -> StaticEvidence:
        from lora_doctor.static.installed.environment import known_architectures
        from lora_doctor.static.model_files import gather_static, unknown_architecture

        source = self.source
        if source.kind == "arch":
            known = known_architectures()
            if known and source.name not in known:
                raise InputError(
                    f"MODEL arch:{source.name}: {unknown_architecture(source.name, known)}"
                )
            raise EvidenceError(f"{source} is a default config; it has no files")
        if source.kind == "script":
            raise EvidenceError("MODEL is a training script, which has no model files")
        if source.folder is None:
            raise EvidenceError(f"{source} has no files: it is made by code")
        self._progress(f"reading the files of {source}")
        folder, snapshot = Path(source.folder), source.snapshot
        if snapshot is None:
            return self._timed(
                "static", f"files in {folder}", lambda: gather_static(folder, source=str(source))
            )
        self.gathered.append(
            Gathered("hub", snapshot.note or f"{snapshot.endpoint}, small files of "
                     f"{snapshot.source}", round(snapshot.seconds, 4))
        )  # fmt: skip
        return self._timed(
            "static",
            f"small files of {snapshot.source}",
            lambda: gather_static(
                folder,
                source=snapshot.source,
                listing=snapshot.listing,
                weights=snapshot.weights,
            ),
        )

    def _gather_structure(self) -> Structure:
        self._needs("meta")
        if self.source.kind == "module":
            from lora_doctor.evidence.meta import describe_module

            return self._timed(
                "structure",
                f"the loaded {self.source.name}",
                lambda: describe_module(self.source.module, self.asked),
            )
        self._progress(f"building {self.source} on the meta device")
        outcome = self._run("lora_doctor.evidence.meta:gather", self.settings.limits.meta_seconds)
        self._keep("structure", "the real class on the meta device, adapters by PEFT", outcome)
        if outcome.failure:
            raise evidence_error("the meta device model", outcome, self._worker)
        return Structure.from_json(outcome.value)

    def _plan_memory(self) -> Plan:
        from lora_doctor.results.memory_plan import Plan

        self._needs("meta")
        if self.source.kind == "module":
            raise EvidenceError(
                "the memory plan is made from a class on the meta device; this module is loaded"
            )
        recipe = self.recipe_in_full()
        self._progress("counting memory on the meta device")
        limit = self.settings.limits.meta_seconds
        outcome = self._run("lora_doctor.memory_plan.gather:gather", limit, recipe=recipe)
        self._keep("memory_plan", "a training step of the real class on the meta device", outcome)
        if outcome.failure:
            raise evidence_error("the memory plan", outcome, self._worker)
        return Plan.from_json(outcome.value)

    def _verify(self, depth: Depth) -> Verification:
        self._needs(depth)
        if self.source.kind == "module":
            from lora_doctor.evidence.loaded_module import verify_module

            self._progress("running the training contract on the loaded module")
            batches = self.settings.batches
            return self._timed(
                depth,
                f"the loaded {self.source.name}, on a copy that shares its weights",
                lambda: verify_module(
                    self.source.module,
                    self.recipe_in_full(),
                    batches=[dict(batch) for batch in batches] if batches else None,
                    steps=self.settings.steps,
                ),
            )
        if depth == "full" and self.source.folder is None:
            raise EvidenceError(f"{self.source} has no weights to load")
        self._progress(f"running the training contract ({depth} model)")
        recipe = self.recipe_in_full()
        limits = self.settings.limits
        extra = {"made": self.tiny_model_file(recipe)} if depth == "tiny" else {}
        outcome = self._run(
            f"lora_doctor.evidence.{depth}:gather",
            limits.tiny_seconds if depth == "tiny" else limits.full_seconds,
            recipe=recipe,
            **extra,
            steps=self.settings.steps,
            device="cpu"
            if depth == "tiny" and self.settings.device == "auto"
            else self.settings.device,
        )
        origin = "shrunken model, random weights" if depth == "tiny" else "the real weights"
        self._keep(depth, origin, outcome)
        if outcome.failure is None:
            return Verification.from_json(outcome.value)
        if outcome.failure.kind in ("crash", "timeout", "memory"):
            # The run itself went down: that is an answer about the recipe, not a missing one.
            return went_down(outcome, depth)
        raise evidence_error(f"the {depth} model", outcome, self._worker)

    def close(self) -> None:
        """Remove what the tasks of this case, and of those made from it, left for each other."""
        if "_handed_on" in self.__dict__:
            self._tiny_model_cache.close()

    @cached_property
    def _tiny_model_cache(self) -> TinyModelCache:
        from lora_doctor.evidence.tiny_model_cache import TinyModelCache

        return TinyModelCache()

    def tiny_model_file(self, recipe: Recipe) -> str:
        """Where tasks of this case leave the tiny model for each other."""
        return self._tiny_model_cache.file(self.source, recipe, self.patches)

    def recipe_in_full(self) -> Recipe:
        """The recipe with every open key filled: the structure is gathered for it."""
        _ = self.structure
        return self.recipe

    def refine_proposal(self) -> None:
        """Better what *we* proposed by what a real run says of it; the last result is not run yet.

        A forward that fails hides what its backward would show: hence more than one round.
        """
        from lora_doctor.proposal.refine import may_refine, refined

        reasons: tuple[str, ...] = ()
        for _ in range(_REFINEMENTS):
            if not self.reaches("tiny") or not may_refine(self.asked) or not self.has("tiny"):
                return
            changes, more = refined(
                self.asked, self.recipe, self.structure, self.tiny, self._layer_numbers
            )
            if not changes:
                return
            reasons += more
            self.asked = self.recipe.override(changes, "proposed")
            for name in ("structure", "tiny"):
                del self.__dict__[name]
            again = self.structure
            told = (Note("choice", reason) for reason in reasons)
            self.__dict__["structure"] = replace(again, notes=(*again.notes, *told))

    def _layer_numbers(self, patterns: Sequence[str]) -> Mapping[str, Sequence[int]]:
        """The numbers that layers of these patterns have in their stack at full size."""
        limit = self.settings.limits.meta_seconds
        outcome = self._run(
            "lora_doctor.evidence.meta:gather_layer_numbers", limit, patterns=list(patterns)
        )
        return outcome.value if outcome.failure is None else {}

    def _needs(self, depth: Depth) -> None:
        if not self.reaches(depth):
            raise EvidenceError(self.too_shallow(depth))
        if self.source.kind in ("folder", "hub", "arch"):
            # Bad input is told from the files, before anything heavy is started.
            try:
                static = self.static
            except EvidenceError:
                return
            if static.auto_map and not self.source.trust_remote_code and not _is_builtin(static):
                raise EvidenceError(
                    "the model's classes are code of its repository, which is not run without "
                    "--trust-remote-code"
                )

    def _run(
        self, target: str, seconds: float, recipe: Recipe | None = None, **extra: Any
    ) -> Outcome:
        arguments = {
            "source": self.source.to_json(),
            "recipe": (recipe or self.asked).to_json(),
            "patches": [patch.to_json() for patch in self.patches],
            **extra,
        }
        return self._worker.run(
            target,
            arguments,
            time_limit=seconds,
            memory_limit=self.settings.limits.memory,
            progress=self._progress,
            import_cwd=self.source.kind == "factory",
        )

    def _keep(self, name: str, origin: str, outcome: Outcome) -> None:
        reason = outcome.failure.message if outcome.failure else None
        self.gathered.append(
            Gathered(name, origin, round(outcome.seconds, 3), reason, outcome.peak_rss or None)
        )


def _is_builtin(static: StaticEvidence) -> bool:
    """Whether the installed transformers has the classes, remote code or not."""
    from lora_doctor.static.installed.environment import known_architectures

    known = known_architectures()
    return bool(known) and static.model_type in (known or ())
