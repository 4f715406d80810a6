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
    FIRST_BATCH,
    LONG_ROW,
    PLAIN_WEIGHTS,
    REFUSED_TRAINER,
    ChildTasks,
    cost,
)
from lora_doctor.engine.evidence_store import evidence, kinds
from lora_doctor.engine.limits import Checkpoint, TaskLimits
from lora_doctor.engine.meta_evidence import MetaEvidence
from lora_doctor.engine.other_rules import OtherRules
from lora_doctor.engine.settings import Settings
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
    from lora_doctor.results.first_batch import FirstBatch
    from lora_doctor.results.long_row import LongRow
    from lora_doctor.results.plain_weights import PlainWeights
    from lora_doctor.results.refused_trainer import AskedTrainer
    from lora_doctor.static.adapter_values import AdapterValues

#: Times that a proposal is bettered by what a run says of it.
_REFINEMENTS = 3


class Case(MetaEvidence):
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
    def written(self) -> Recipe:
        """The recipe before any fix: what the user wrote, and not what a fix of this run wrote in
        its place. A rule that asks what was meant asks this one."""
        return self._written or self.recipe

    # --- what can be known ---------------------------------------------------------------------

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

    @evidence(of_recipe=True)
    def refused_trainer(self) -> AskedTrainer:
        """What the class of the program's trainer says to its arguments and to the adapter."""
        from lora_doctor.recipe.program.made_trainer import made_trainer
        from lora_doctor.results.refused_trainer import AskedTrainer

        self._require("tiny")
        trainer = made_trainer(self.program)
        if trainer is None:
            raise EvidenceError("the script does not say all that decides about its trainer")
        recipe = self.recipe_in_full()
        self._progress(f"making {trainer.name}")
        return self._tasks.gather(
            REFUSED_TRAINER,
            AskedTrainer,
            recipe,
            self._limits("tiny", recipe),
            trainer=trainer.to_json(),
            made=self.tiny_model_file(recipe),
        )

    @evidence(of_recipe=True)
    def first_batch(self) -> FirstBatch:
        """What the installed collator and trainer make of the rows that the program says; raises
        where it does not say all of them."""
        from lora_doctor.recipe.program.first_batch import own_rows
        from lora_doctor.results.first_batch import FirstBatch

        rows = own_rows(self.program)
        if rows is None:
            raise EvidenceError("the script does not say all of its rows and of its trainer")
        self._require("tiny")
        recipe = self.recipe_in_full()
        self._progress("taking the first batch of the program's rows")
        return self._tasks.gather(
            FIRST_BATCH,
            FirstBatch,
            recipe,
            self._limits("tiny", recipe),
            plan=rows.described,
        )

    @evidence(of_recipe=True)
    def long_row(self) -> LongRow:
        """Whether the model takes a row as long as the longest of the training data."""
        from lora_doctor.results.long_row import LongRow
        from lora_doctor.supervision.row_length import length_as_trained

        if self.settings.data is None:
            raise EvidenceError("no training data was given (--data FILE)")
        self._require("tiny")
        recipe = self.recipe_in_full()
        settings = self.static.tokenizer_config.value or {}
        length = length_as_trained(self.supervision, recipe, settings)
        self._progress(f"running a row of {length:,} tokens")
        return self._tasks.gather(
            LONG_ROW,
            LongRow,
            recipe,
            self._limits("tiny", recipe),
            length=length,
            joined=bool(self.supervision.prompts),
            made=self.tiny_model_file(recipe),
        )

    @evidence(of_recipe=True)
    def plain_weights(self) -> PlainWeights:
        """What becomes of weights in floating point that are loaded with the quantization_config of
        the checkpoint."""
        from lora_doctor.results.plain_weights import PlainWeights

        self._require("tiny")
        recipe = self.recipe_in_full()
        self._progress("loading plain weights with the checkpoint's quantization")
        return self._tasks.gather(
            PLAIN_WEIGHTS,
            PlainWeights,
            recipe,
            self._limits("tiny", recipe),
            made=self.tiny_model_file(recipe),
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
        if adapter.pickled:
            raise EvidenceError(
                f"{adapter.weights_name} is a pickle, which is not loaded; convert it to "
                "safetensors",
                remedy="file",
            )
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
        origin = "tiny model, random weights" if depth == "tiny" else "the real weights"
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
