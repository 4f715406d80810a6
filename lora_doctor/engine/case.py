"""A case: a recipe, a model source, and what is known about them. What a rule is handed.

Evidence is gathered when it is first asked for, at most once. What cannot be had raises
:class:`EvidenceError`; the engine turns that into a skipped rule with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from lora_doctor.engine.child_failures import read_answer, without_answer
from lora_doctor.engine.child_tasks import (
    ADAPTER_LOADING,
    CHECKPOINT_QUANTIZATION,
    LOADING,
    LOADING_BY_CODE,
    MEMORY_PLAN,
    STRUCTURE,
    ChildTasks,
    cost,
    supervision_of,
)
from lora_doctor.engine.evidence_store import evidence, kinds
from lora_doctor.engine.limits import Checkpoint, TaskLimits
from lora_doctor.engine.other_rules import OtherRules
from lora_doctor.engine.settings import Settings
from lora_doctor.engine.written_evidence import WrittenEvidence
from lora_doctor.errors import EvidenceError
from lora_doctor.evidence.tiny_model_cache import TinyModelCache
from lora_doctor.recipe.edit import Patch
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.depth import Depth
from lora_doctor.results.note import Note
from lora_doctor.results.verification import Verification
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.model_source import ModelSource

if TYPE_CHECKING:
    from lora_doctor.results.adapter_loading import AdapterLoading
    from lora_doctor.results.checkpoint_quantization import CheckpointQuantization
    from lora_doctor.results.loading import Loading
    from lora_doctor.results.memory_plan import MemoryPlan
    from lora_doctor.results.structure import Structure
    from lora_doctor.results.supervision import Supervision
    from lora_doctor.static.adapter_values import AdapterValues

#: Times that a proposal is bettered by what a run says of it.
_REFINEMENTS = 3


class Case(WrittenEvidence):
    """A recipe on a model, and the evidence about it.

    Each method marked ``evidence`` is an attribute: its value is gathered when first asked for, and
    it raises :class:`EvidenceError` where it cannot be had. ``recipe`` has its open keys filled
    once the structure is known; ``asked`` is the recipe as the user gave it. ``other_rules``: what
    the rules that were asked before have said.
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
        super().__init__(source, settings, progress)
        self.asked = recipe
        self.patches = patches
        self.other_rules = OtherRules()
        self._tasks = ChildTasks(worker, source, patches, self.store, progress)
        self._tiny_models = TinyModelCache()
        self._written: Recipe | None = None

    def again(self, recipe: Recipe, patches: tuple[Patch, ...]) -> Case:
        """The case after fixes: same model and limits, another recipe; nothing gathered yet but
        what no recipe changes."""
        case = Case(
            self.source, recipe, self.settings, self._tasks.worker,
            patches=patches, progress=self._progress,
        )  # fmt: skip
        case._tiny_models = self._tiny_models
        case._written = self.written
        self.store.share_with(case.store, kinds(Case, of_recipe=False))
        return case

    def beside(self, other_rules: OtherRules) -> Case:
        """This case, evidence and all, for a rule that is asked when others have been."""
        case = copy.copy(self)
        case.other_rules = other_rules
        return case

    @property
    def recipe(self) -> Recipe:
        """The recipe, with open keys filled as far as the structure is known."""
        structure = Case.structure.known(self)
        if structure is None:
            return self.asked
        filled = Recipe.from_json(structure.recipe)
        asked = self.asked
        return replace(
            filled, file=asked.file, places=asked.places, set_up=asked.set_up, written=asked.written
        )

    @property
    def written(self) -> Recipe:
        """The recipe before any fix: what the user wrote, and not what a fix of this run wrote in
        its place. A rule that asks what was meant asks this one."""
        return self._written or self.recipe

    def recipe_in_full(self) -> Recipe:
        """The recipe with every open key filled: the structure is gathered for it."""
        _ = self.structure
        return self.recipe

    # --- what can be known ---------------------------------------------------------------------

    @evidence(of_recipe=False)
    def adapter_loading(self) -> AdapterLoading:
        """The saved adapter, loaded by the installed PEFT onto the class on the meta device."""
        adapter = self.adapter
        self._require("meta")
        from lora_doctor.results.adapter_loading import AdapterLoading

        self._progress(f"loading {adapter.place} onto {self.source} on the meta device")
        return self._tasks.gather(
            ADAPTER_LOADING,
            AdapterLoading,
            self.asked,
            self.settings.limits.of_meta(),
            config=adapter.config,
            tensors={name: asdict(item) for name, item in adapter.weights.tensors.items()},
            folder=None if adapter.snapshot is not None else str(adapter.folder),
        )

    @evidence(of_recipe=False)
    def adapter_values(self) -> AdapterValues:
        """What the numbers of the saved adapter are; the file is read."""
        from lora_doctor.static.adapter_values import read_values

        adapter = self.adapter
        self._require("full")
        self._fetch_adapter()
        origin = f"{adapter.place}: every number of its weights"
        return self.store.timed("adapter_values", origin, lambda: read_values(adapter))

    @evidence(of_recipe=True)
    def structure(self) -> Structure:
        """The class that would be loaded, at full size on the meta device, adapters injected."""
        self._require("meta")
        if self.source.kind == "module":
            from lora_doctor.evidence.meta import describe_module

            return self.store.timed(
                "structure",
                f"the loaded {self.source.name}",
                lambda: describe_module(self.source.module, self.asked),
            )
        from lora_doctor.results.structure import Structure

        self._progress(f"building {self.source} on the meta device")
        return self._tasks.gather(
            STRUCTURE,
            Structure,
            self.asked,
            self.settings.limits.of_meta(),
            check=lambda found: Recipe.from_json(found.recipe),
        )

    @evidence(of_recipe=True)
    def checkpoint_quantization(self) -> CheckpointQuantization:
        """What the installed libraries make of the quantization that the checkpoint comes with;
        raises where it comes with none."""
        self._require("meta")
        if self.static.quantization_config is None:
            raise EvidenceError("the checkpoint is not quantized")
        from lora_doctor.results.checkpoint_quantization import CheckpointQuantization

        recipe = self.recipe_in_full()
        self._progress("asking what the checkpoint's quantization means")
        return self._tasks.gather(
            CHECKPOINT_QUANTIZATION,
            CheckpointQuantization,
            recipe,
            self.settings.limits.of_meta(),
            asked=self.asked.to_json(),
        )

    @evidence(of_recipe=True)
    def loading(self) -> Loading:
        """What loading makes of the names in the checkpoint, and which weights will be random."""
        from lora_doctor.static.folder.checkpoint_files import stored_shapes

        if self.source.kind in ("factory", "module"):
            return self._loading_by_code()
        shapes, saved_class = None, ""
        try:
            shapes = stored_shapes(self.static)
        except EvidenceError:
            saved_class = self._saved_class()
            if not saved_class:
                raise
        self._require("meta")
        from lora_doctor.results.loading import Loading

        recipe = self.recipe_in_full()
        self._progress(f"loading the names of {self.source} on the meta device")
        return self._tasks.gather(
            LOADING,
            Loading,
            recipe,
            self.settings.limits.of_meta(),
            shapes=shapes,
            saved_class=saved_class,
        )

    def _saved_class(self) -> str:
        """The class that the checkpoint was saved from, by its config, where another one is loaded;
        else empty."""
        named = self.static.architectures
        if self.source.kind not in ("folder", "hub") or not named or not self.reaches("meta"):
            return ""
        return named[0] if named[0] != self.structure.model_class else ""

    def _loading_by_code(self) -> Loading:
        """The same, where the user's own code loads the model."""
        self._require("meta")
        recipe = self.recipe_in_full()
        if self.source.kind == "module":
            from lora_doctor.evidence.loading_by_code import of_module

            return self.store.timed(
                "loading",
                "names in the checkpoint that the loaded model's config names",
                lambda: of_module(self.source.module, recipe),
            )
        from lora_doctor.results.loading import Loading

        self._progress(f"calling {self.source} twice")
        limits = self.settings.limits.of_meta()
        return self._tasks.gather(LOADING_BY_CODE, Loading, recipe, limits)

    @evidence(of_recipe=True)
    def memory_plan(self) -> MemoryPlan:
        """What the recipe and its alternatives take on a GPU, counted on the meta device."""
        self._require("meta")
        if self.source.kind == "module":
            raise EvidenceError(
                "the memory plan is made from a class on the meta device; this module is loaded"
            )
        from lora_doctor.results.memory_plan import MemoryPlan

        recipe = self.recipe_in_full()
        self._progress("counting memory on the meta device")
        return self._tasks.gather(
            MEMORY_PLAN,
            MemoryPlan,
            recipe,
            self.settings.limits.of_meta(),
        )

    @evidence(of_recipe=True)
    def supervision(self) -> Supervision:
        """Which tokens of the training data the loss sees, by the model's tokenizer; a dry run
        keeps here what it saw in the user's own batches. Raises where there are no rows."""
        data = self.settings.data
        if data is None:
            raise EvidenceError("no training data was given (--data FILE)")
        self._require("meta")
        if self.source.kind not in ("folder", "hub", "arch"):
            raise EvidenceError(f"{self.source} has no tokenizer; --data needs a folder or hub id")
        from lora_doctor.results.supervision import Supervision

        self._progress(f"looking at rows of {data.training.name}")
        return self._tasks.gather(
            supervision_of(data.training.name),
            Supervision,
            self.recipe,
            self.settings.limits.of_tiny(),
            data={
                "file": str(data.training),
                "evaluation": str(data.evaluation) if data.evaluation else None,
                "rows": data.rows,
                "samples": data.samples,
            },
        )

    @evidence(of_recipe=True)
    def tiny(self) -> Verification:
        """The training contract on the same classes with shrunken dimensions."""
        self._require("tiny")
        if self.source.kind == "module":
            return self._verify_module("tiny")
        recipe = self.recipe_in_full()
        device = "cpu" if self.settings.device == "auto" else self.settings.device
        return self._verify("tiny", recipe, device, made=self.tiny_model_file(recipe))

    @evidence(of_recipe=True)
    def full(self) -> Verification:
        """The training contract on the real weights."""
        self._require("full")
        if self.source.kind == "module":
            return self._verify_module("full")
        if self.source.folder is None:
            raise EvidenceError(f"{self.source} has no weights to load")
        from lora_doctor.engine.model_files import listed_bytes

        if self.settings.adapter is not None:
            self._fetch_adapter()
        return self._verify(
            "full",
            self.recipe_in_full(),
            self.settings.device,
            listed_bytes=listed_bytes(self.source),
        )

    @property
    def verification(self) -> Verification:
        """The training contract at the depth of this run."""
        return self.full if self.settings.depth == "full" else self.tiny

    # --- what a rule asks about the evidence ---------------------------------------------------

    @property
    def explained(self) -> frozenset[str]:
        """Checks of the training contract that a finding so far accounts for."""
        return self.other_rules.explained

    @property
    def unexplained(self) -> tuple[str, ...]:
        """Failed checks of the training contract that no finding accounts for."""
        failed = (check.name for check in self.verification.failed_checks)
        return tuple(name for name in failed if name not in self.explained)

    def rules_with_symptom(self, message: str) -> list[str]:
        """Rules whose symptoms occur in a message, as ``CODE name``."""
        return self.other_rules.with_symptom(message)

    # --- the proposal, bettered ----------------------------------------------------------------

    def refine_proposal(self) -> None:
        """Better what *we* proposed by what a real run says of it; the last result is not run yet.

        A forward that fails hides what its backward would show: hence more than one round.
        """
        if not self.reaches("tiny"):
            return
        from lora_doctor.proposal.refine import may_refine, refined

        reasons: tuple[str, ...] = ()
        for _ in range(_REFINEMENTS):
            if not may_refine(self.asked) or not self.has("tiny"):
                return
            changes, more = refined(
                self.asked, self.recipe, self.structure, self.tiny, self._layer_numbers
            )
            if not changes:
                return
            reasons += more
            self.asked = self.recipe.override(changes, "proposed")
            self.store.forget(kinds(Case, of_recipe=True))
            proposed = self.structure
            notes = (*proposed.notes, *(Note("choice", reason) for reason in reasons))
            self.store.keep("structure", replace(proposed, notes=notes))

    def _layer_numbers(self, patterns: Sequence[str]) -> Mapping[str, Sequence[int]]:
        """The numbers that layers of these patterns have in their stack at full size."""
        outcome = self._tasks.run(
            "lora_doctor.evidence.meta:gather_layer_numbers",
            self.asked,
            self.settings.limits.of_meta(),
            patterns=list(patterns),
        )
        return outcome.value if outcome.failure is None else {}

    # --- what tasks leave for each other -------------------------------------------------------

    def tiny_model_file(self, recipe: Recipe) -> str:
        """Where tasks of this case leave the tiny model for each other."""
        return self._tiny_models.file(self.source, recipe, self.patches)

    def start_child(self) -> None:
        """Let the child process import the libraries while files are read; it would start with its
        first task anyway."""
        if self.settings.depth != "static" and self.source.kind not in ("module", "script"):
            self._tasks.worker.start()

    def close(self) -> None:
        """Remove what the tasks of this case, and of those made from it, left for each other."""
        self._tiny_models.close()

    # --- gathering -----------------------------------------------------------------------------

    def _fetch_adapter(self) -> None:
        """The weights of an adapter on the hub into its folder in the cache, where they are not.

        Raises:
            EvidenceError: they cannot be had.
        """
        from lora_doctor.static.adapter_files import WEIGHTS

        adapter = self.adapter
        if adapter.snapshot is None or (adapter.folder / WEIGHTS).exists():
            return
        self._progress(f"downloading {adapter.place}")
        limits = self._limits("full", self.recipe)
        outcome = self._tasks.run(
            "lora_doctor.evidence.adapter:download",
            self.asked,
            limits,
            model_id=adapter.snapshot.model_id,
            commit=adapter.snapshot.commit,
            listed=adapter.weights_size,
        )
        if outcome.failure:
            raise self._tasks.error("the adapter's weights", outcome, limits)

    def _verify_module(self, depth: Depth) -> Verification:
        from lora_doctor.evidence.loaded_module import verify_module

        self._progress("running the training contract on the loaded module")
        batches = self.settings.batches
        return self.store.timed(
            depth,
            f"the loaded {self.source.name}, on a copy that shares its weights",
            lambda: verify_module(
                self.source.module,
                self.recipe_in_full(),
                batches=[dict(batch) for batch in batches] if batches else None,
                steps=self.settings.steps,
            ),
        )

    def _verify(self, depth: Depth, recipe: Recipe, device: str, **more: Any) -> Verification:
        """The training contract in the child process; ``more``: arguments of this depth."""
        self._progress(f"running the training contract ({depth} model)")
        limits = self._limits(depth, recipe)
        missing = self.loading.missing if self.has("loading") else ()
        outcome = self._tasks.run(
            f"lora_doctor.evidence.{depth}:gather",
            recipe,
            limits,
            steps=self.settings.steps,
            device=device,
            missing=[asdict(item) for item in missing],
            **more,
        )
        origin = "shrunken model, random weights" if depth == "tiny" else "the real weights"
        self.store.gathered.append(cost(depth, origin, outcome))
        if outcome.failure is None:
            return read_answer(Verification, outcome, f"the {depth} model")
        if outcome.failure.kind in ("crash", "timeout", "memory"):
            dtype = str(recipe.get("dtype") or "auto")
            if dtype == "auto" and self.has("static") and self.static.native_dtype:
                dtype = self.static.native_dtype[0]
            return without_answer(depth, (device, dtype), outcome, limits)
        raise self._tasks.error(f"the {depth} model", outcome, limits)

    def _limits(self, depth: Depth, recipe: Recipe) -> TaskLimits:
        """Of the run at this depth."""
        from lora_doctor.engine.model_files import stored_bytes

        limits = self.settings.limits
        if depth == "tiny":
            return limits.of_tiny()
        weights = self.static.weights.value if self.has("static") else None
        trained = self.structure.injection.trainable_parameters if self.has("structure") else 0
        size = stored_bytes(self.source)
        return limits.of_full(Checkpoint.of(weights, size, recipe, trained))
