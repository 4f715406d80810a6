"""A case: a recipe, a model source, and what is known about them. What a rule is handed.

Evidence is gathered when it is first asked for, at most once. What cannot be had raises
:class:`EvidenceError`; the engine turns that into a skipped rule with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_doctor.engine.child_failures import read_answer, without_answer
from lora_doctor.engine.child_tasks import ChildTasks, cost
from lora_doctor.engine.evidence_store import EvidenceStore, evidence, kinds
from lora_doctor.engine.limits import Checkpoint, TaskLimits
from lora_doctor.engine.other_rules import OtherRules
from lora_doctor.engine.settings import Settings
from lora_doctor.errors import Cause, EvidenceError
from lora_doctor.evidence.tiny_model_cache import TinyModelCache
from lora_doctor.recipe.edit import Patch
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.depth import DEPTHS, Depth
from lora_doctor.results.diagnosis import Gathered
from lora_doctor.results.note import Note
from lora_doctor.results.structure import Structure
from lora_doctor.results.supervision import Supervision
from lora_doctor.results.verification import Verification
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.model_source import ModelSource

if TYPE_CHECKING:
    from lora_doctor.evidence.optimizer import OptimizerState
    from lora_doctor.results.adapter_loading import AdapterLoading
    from lora_doctor.results.checkpoint_quantization import CheckpointQuantization
    from lora_doctor.results.dry_run import DryRun
    from lora_doctor.results.loading import Loading
    from lora_doctor.results.memory_plan import MemoryPlan
    from lora_doctor.static.adapter_files import AdapterFiles
    from lora_doctor.static.adapter_values import AdapterValues
    from lora_doctor.static.installed.environment import Environment
    from lora_doctor.static.model_files import StaticEvidence
    from lora_doctor.static.remote_code.remote_code import RemoteCode
    from lora_doctor.static.script.training_script import TrainingScript

#: Times that a proposal is bettered by what a run says of it.
_REFINEMENTS = 3


class Case:
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
        self.source = source
        self.asked = recipe
        self.settings = settings
        self.patches = patches
        self.store = EvidenceStore(str(source))
        self.other_rules = OtherRules()
        self._tasks = ChildTasks(worker, source, patches, progress)
        self._progress = progress
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
        return replace(filled, file=self.asked.file)

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
    def environment(self) -> Environment:
        """Installed versions; nothing is imported."""
        from lora_doctor.static.installed.environment import gather_environment

        origin = "installed package metadata"
        return self.store.timed("environment", origin, gather_environment)

    @evidence(of_recipe=False)
    def static(self) -> StaticEvidence:
        """The small files of the model: configs, tokenizer, safetensors headers."""
        from lora_doctor.engine.model_files import read_files, require_files

        require_files(self.source)
        self._progress(f"reading the files of {self.source}")
        return read_files(self.source, self.store)

    @evidence(of_recipe=False)
    def remote_code(self) -> RemoteCode:
        """The Python of the model's repository, read and never run."""
        static = self.static
        if not static.python_files:
            raise EvidenceError("the model's repository has no Python files")
        from lora_doctor.static.remote_code.remote_code import read_remote_code

        origin = f"{len(static.python_files)} Python files of {static.source}, read with ast"
        return self.store.timed(
            "remote_code", origin, lambda: read_remote_code(static.folder, static)
        )

    @evidence(of_recipe=False)
    def script(self) -> TrainingScript:
        """The training script that MODEL names, read and never run."""
        if self.source.kind != "script":
            raise EvidenceError("MODEL is no training script")
        from lora_doctor.static.script.training_script import read_training_script

        path = Path(self.source.name)
        origin = f"{path}, read with ast"
        return self.store.timed("script", origin, lambda: read_training_script(path))

    @evidence(of_recipe=False)
    def dry_run(self) -> DryRun:
        """What the user's own command did; raises where none was run. Whoever runs one keeps it,
        with the training contract, the optimizer and the structure that it saw."""
        raise EvidenceError("no command was run: lora-doctor dry-run -- COMMAND")

    @evidence(of_recipe=False)
    def adapter(self) -> AdapterFiles:
        """The files of the saved adapter that was given; raises without one."""
        adapter = self.settings.adapter
        if adapter is None:
            raise EvidenceError("no saved adapter was given (--adapter)")
        seconds = 0.0 if adapter.snapshot is None else round(adapter.snapshot.seconds, 4)
        origin = f"{adapter.place}: its config, and the header of its weights"
        self.store.gathered.append(Gathered("adapter", origin, seconds))
        return adapter

    @evidence(of_recipe=False)
    def adapter_values(self) -> AdapterValues:
        """What the numbers of the saved adapter are; the file is read."""
        from lora_doctor.static.adapter_values import read_values

        adapter = self.adapter
        self._require("full")
        self._fetch_adapter()
        origin = f"{adapter.place}: every number of its weights"
        return self.store.timed("adapter_values", origin, lambda: read_values(adapter))

    @evidence(of_recipe=False)
    def adapter_loading(self) -> AdapterLoading:
        """The saved adapter, loaded by the installed PEFT onto the class on the meta device."""
        from lora_doctor.results.adapter_loading import AdapterLoading

        adapter = self.adapter
        self._require("meta")
        self._progress(f"loading {adapter.place} onto {self.source} on the meta device")
        limits = self.settings.limits.of_meta()
        outcome = self._tasks.run(
            "lora_doctor.evidence.adapter:gather",
            self.asked,
            limits,
            config=adapter.config,
            tensors={name: asdict(item) for name, item in adapter.weights.tensors.items()},
            folder=None if adapter.snapshot is not None else str(adapter.folder),
        )
        origin = "PeftModel.from_pretrained on the meta device"
        self.store.gathered.append(cost("adapter_loading", origin, outcome))
        if outcome.failure:
            raise self._tasks.error("the adapter on the meta device", outcome, limits)
        return read_answer(AdapterLoading, outcome, "the adapter on the meta device")

    @evidence(of_recipe=False)
    def optimizer(self) -> OptimizerState:
        """What the user's optimizer holds of a loaded module; raises without an optimizer."""
        from lora_doctor.evidence.optimizer import read_optimizer

        given = self.settings
        if given.optimizer is None:
            raise EvidenceError(
                "no optimizer was given: lora_doctor.check(model, optimizer=optimizer)"
            )
        return self.store.timed(
            "optimizer",
            "the optimizer's groups, a scheduler on a copy",
            lambda: read_optimizer(
                self.source.module, given.optimizer, given.scheduler, given.planned_steps
            ),
        )

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
        self._progress(f"building {self.source} on the meta device")
        limits = self.settings.limits.of_meta()
        outcome = self._tasks.run("lora_doctor.evidence.meta:gather", self.asked, limits)
        origin = "the real class on the meta device, adapters by PEFT"
        self.store.gathered.append(cost("structure", origin, outcome))
        if outcome.failure:
            raise self._tasks.error("the meta device model", outcome, limits)
        return read_answer(
            Structure,
            outcome,
            "the meta device model",
            lambda found: Recipe.from_json(found.recipe),
        )

    @evidence(of_recipe=True)
    def checkpoint_quantization(self) -> CheckpointQuantization:
        """What the installed libraries make of the quantization that the checkpoint comes with;
        raises where it comes with none."""
        from lora_doctor.results.checkpoint_quantization import CheckpointQuantization

        self._require("meta")
        if self.static.quantization_config is None:
            raise EvidenceError("the checkpoint is not quantized")
        recipe = self.recipe_in_full()
        self._progress("asking what the checkpoint's quantization means")
        limits = self.settings.limits.of_meta()
        target = "lora_doctor.evidence.checkpoint_quantization:gather"
        outcome = self._tasks.run(target, recipe, limits, asked=self.asked.to_json())
        origin = "the quantizer of the installed transformers, adapters by PEFT on its layers"
        self.store.gathered.append(cost("checkpoint_quantization", origin, outcome))
        what = "the checkpoint's quantization"
        if outcome.failure:
            raise self._tasks.error(what, outcome, limits)
        return read_answer(CheckpointQuantization, outcome, what)

    @evidence(of_recipe=True)
    def loading(self) -> Loading:
        """What loading makes of the names in the checkpoint, and which weights will be random."""
        from lora_doctor.results.loading import Loading
        from lora_doctor.static.folder.checkpoint_files import stored_shapes

        if self.source.kind in ("factory", "module"):
            return self._loading_by_code()
        shapes = stored_shapes(self.static)
        self._require("meta")
        recipe = self.recipe_in_full()
        self._progress(f"loading the names of {self.source} on the meta device")
        limits = self.settings.limits.of_meta()
        outcome = self._tasks.run(
            "lora_doctor.evidence.loading:gather", recipe, limits, shapes=shapes
        )
        origin = "from_pretrained on the meta device, names and shapes of the checkpoint"
        self.store.gathered.append(cost("loading", origin, outcome))
        if outcome.failure:
            raise self._tasks.error("loading on the meta device", outcome, limits)
        return read_answer(Loading, outcome, "loading on the meta device")

    def _loading_by_code(self) -> Loading:
        """The same, where the user's own code loads the model."""
        from lora_doctor.results.loading import Loading

        self._require("meta")
        recipe = self.recipe_in_full()
        if self.source.kind == "module":
            from lora_doctor.evidence.loading_by_code import of_module

            return self.store.timed(
                "loading",
                "names in the checkpoint that the loaded model's config names",
                lambda: of_module(self.source.module, recipe),
            )
        self._progress(f"calling {self.source} twice")
        limits = self.settings.limits.of_meta()
        outcome = self._tasks.run("lora_doctor.evidence.loading_by_code:gather", recipe, limits)
        origin = "the factory, called twice, and the names in the checkpoint that it loads"
        self.store.gathered.append(cost("loading", origin, outcome))
        if outcome.failure:
            raise self._tasks.error("what the factory loads", outcome, limits)
        return read_answer(Loading, outcome, "what the factory loads")

    @evidence(of_recipe=True)
    def memory_plan(self) -> MemoryPlan:
        """What the recipe and its alternatives take on a GPU, counted on the meta device."""
        from lora_doctor.results.memory_plan import MemoryPlan

        self._require("meta")
        if self.source.kind == "module":
            raise EvidenceError(
                "the memory plan is made from a class on the meta device; this module is loaded"
            )
        recipe = self.recipe_in_full()
        self._progress("counting memory on the meta device")
        limits = self.settings.limits.of_meta()
        outcome = self._tasks.run("lora_doctor.memory_plan.gather:gather", recipe, limits)
        origin = "a training step of the real class on the meta device"
        self.store.gathered.append(cost("memory_plan", origin, outcome))
        if outcome.failure:
            raise self._tasks.error("the memory plan", outcome, limits)
        return read_answer(MemoryPlan, outcome, "the memory plan")

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
        self._progress(f"looking at rows of {data.training.name}")
        limits = self.settings.limits.of_tiny()
        outcome = self._tasks.run(
            "lora_doctor.evidence.supervision:gather",
            self.recipe,
            limits,
            data={
                "file": str(data.training),
                "evaluation": str(data.evaluation) if data.evaluation else None,
                "rows": data.rows,
                "samples": data.samples,
            },
        )
        origin = f"rows of {data.training.name} through the model's tokenizer"
        self.store.gathered.append(cost("supervision", origin, outcome))
        if outcome.failure:
            raise self._tasks.error("rows of the training data", outcome, limits)
        return read_answer(Supervision, outcome, "rows of the training data")

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
    def gathered(self) -> Sequence[Gathered]:
        """The evidence so far, in the order in which it was gathered: origin and cost."""
        return self.store.gathered

    def reaches(self, depth: Depth) -> bool:
        """Whether this run goes as deep as ``depth``."""
        deepest = "static" if self.source.kind == "script" else self.settings.depth
        return DEPTHS.index(deepest) >= DEPTHS.index(depth)

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
        error = None if self.has(name) else self.store.error(name)
        return "" if error is None else str(error)

    def cause_of(self, name: str) -> Cause | None:
        """What a library or the model's code raised, where this evidence cannot be had for it."""
        error = None if self.has(name) else self.store.error(name)
        return None if error is None else error.cause

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

    def close(self) -> None:
        """Remove what the tasks of this case, and of those made from it, left for each other."""
        self._tiny_models.close()

    # --- gathering -----------------------------------------------------------------------------

    def _require(self, depth: Depth) -> None:
        """Raises EvidenceError where a run as deep as this cannot be had."""
        from lora_doctor.engine.model_files import needs_remote_code

        if not self.reaches(depth):
            raise EvidenceError(self.too_shallow(depth))
        if self.source.kind not in ("folder", "hub", "arch"):
            return
        # Bad input is told from the files, before anything heavy is started.
        if self.has("static") and needs_remote_code(self.static, self.source):
            raise EvidenceError(
                "the model's classes are code of its repository, which is not run without "
                "--trust-remote-code",
                remedy="trust",
            )

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
