"""What is found out by building the class that would be loaded: the evidence of depth meta."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from lora_doctor.engine.child_tasks import (
    ADAPTED_PART,
    ADAPTER_LOADING,
    ADAPTER_STEPS,
    CHAT_TEMPLATE,
    CHECKPOINT_QUANTIZATION,
    LOADING,
    LOADING_BY_CODE,
    MEMORY_PLAN,
    MISUSED_VALUES,
    PROCESSED_IMAGE,
    REFUSED_ARGUMENTS,
    STRUCTURE,
    ChildTasks,
    supervision_of,
)
from lora_doctor.engine.evidence_store import evidence
from lora_doctor.engine.written_evidence import WrittenEvidence
from lora_doctor.errors import EvidenceError
from lora_doctor.recipe.recipe import Recipe

if TYPE_CHECKING:
    from lora_doctor.results.adapted_part import AdaptedPart
    from lora_doctor.results.adapter_loading import AdapterLoading
    from lora_doctor.results.adapter_steps import AdapterSteps
    from lora_doctor.results.chat_template import ChatTemplate
    from lora_doctor.results.checkpoint_quantization import CheckpointQuantization
    from lora_doctor.results.loading import Loading
    from lora_doctor.results.memory_plan import MemoryPlan
    from lora_doctor.results.misused_values import MisusedValues
    from lora_doctor.results.processed_image import ProcessedImage
    from lora_doctor.results.refused_arguments import AskedArguments
    from lora_doctor.results.structure import Structure
    from lora_doctor.results.supervision import Supervision


#: One that puts an adapter on, and one that does something with it.
_FEWEST_STEPS = 2


class MetaEvidence(WrittenEvidence):
    """The part of a :class:`~lora_doctor.engine.case.Case` for which the class is built, or the
    tokenizer loaded, and nothing is trained."""

    #: Of the case that this is a part of.
    _tasks: ChildTasks

    @property
    def recipe(self) -> Recipe:
        """The recipe, with open keys filled as far as the structure is known."""
        structure = MetaEvidence.structure.known(self)
        if structure is None:
            return self.asked
        filled = Recipe.from_json(structure.recipe)
        asked = self.asked
        return replace(
            filled, file=asked.file, places=asked.places, set_up=asked.set_up, written=asked.written
        )

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
        from lora_doctor.recipe.program.saved_adapter import loaded_sparingly
        from lora_doctor.results.adapter_loading import AdapterLoading

        self._progress(f"loading {adapter.place} onto {self.source} on the meta device")
        return self._tasks.gather(
            ADAPTER_LOADING,
            AdapterLoading,
            self.asked,
            self.settings.limits.of_meta(),
            config=adapter.config,
            tensors={name: asdict(item) for name, item in adapter.weights.tensors.items()},
            folder=str(adapter.folder)
            if adapter.snapshot is None and not adapter.pickled
            else None,
            sparing=self.has("program") and loaded_sparingly(self.program) is not None,
        )

    @evidence(of_recipe=True)
    def adapter_steps(self) -> AdapterSteps:
        """The adapter calls of the program, made again by the installed PEFT; raises where it has
        one adapter, or does not say all about them."""
        from lora_doctor.recipe.program.adapter_steps import adapter_steps
        from lora_doctor.results.adapter_steps import AdapterSteps

        steps = adapter_steps(self.program)
        if len(steps) < _FEWEST_STEPS:
            raise EvidenceError("the program does not put several adapters on, or not all is known")
        self._require("meta")
        self._progress(f"making the {len(steps)} adapter calls on the meta device")
        return self._tasks.gather(
            ADAPTER_STEPS,
            AdapterSteps,
            self.asked,
            self.settings.limits.of_meta(),
            steps=[step.to_json() for step in steps],
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
    def adapted_part(self) -> AdaptedPart:
        """What PEFT makes of the part that the program hands to ``get_peft_model``; raises where it
        hands over the whole model."""
        from lora_doctor.recipe.program.order import one_line
        from lora_doctor.recipe.program.wrapping import adapted_part
        from lora_doctor.results.adapted_part import AdaptedPart

        found = adapted_part(self.program)
        if found is None:
            raise EvidenceError("the program hands no part of its model to get_peft_model")
        self._require("meta")
        call, path = found
        place = call.place
        return self._tasks.gather(
            ADAPTED_PART,
            AdaptedPart,
            self.recipe_in_full(),
            self.settings.limits.of_meta(),
            path=path,
            call={"code": one_line(call), "file": str(place.file), "line": place.line},
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
    def refused_arguments(self) -> AskedArguments:
        """What the classes of the Trainer's arguments, or the framework's own parser, refuse of the
        values in the user's file; raises where there are none."""

        from lora_doctor.recipe.files.format import framework_named
        from lora_doctor.recipe.program.made_arguments import made_arguments
        from lora_doctor.results.refused_arguments import AskedArguments

        self._require("meta")
        calls = made_arguments(self.program) if self.has("program") else []
        framework, entries = "", {}
        if self.has("set_up"):
            framework = framework_named(self.set_up.format).sources.distribution
            unknown = self.set_up.unknown  # which have a rule of their own
            entries = {k: v for k, v in self.set_up.entries.items() if k not in unknown}
        if not calls and not framework:
            raise EvidenceError("no arguments of a Trainer are written out with all their values")
        self._progress("making the arguments of the Trainer")
        return self._tasks.gather(
            REFUSED_ARGUMENTS,
            AskedArguments,
            self.asked,
            self.settings.limits.of_meta(),
            calls=[
                {"name": call.name, "values": call.values, "callbacks": call.callbacks}
                for call in calls
            ],
            framework=framework,
            entries=entries,
        )

    @evidence(of_recipe=True)
    def misused_values(self) -> MisusedValues:
        """What the installed classes do with single values of the user's file that are of another
        type than they declare, or that no key can have; raises where the file has no values."""

        from lora_doctor.engine.written_values import written_values
        from lora_doctor.results.misused_values import MisusedValues

        if not self.goes_to("meta"):
            raise EvidenceError(self.too_shallow("meta"))
        values = written_values(self)
        if not values:
            raise EvidenceError("the user's file has no values that could be of another type")
        self._progress("using values as they are written")
        return self._tasks.gather(
            MISUSED_VALUES,
            MisusedValues,
            self.asked,
            self.settings.limits.of_meta(),
            values=[asdict(one) for one in values],
        )

    @evidence(of_recipe=False)
    def chat_template(self) -> ChatTemplate:
        """The chat template in the model's folder, tried on short conversations; raises without
        one."""
        from lora_doctor.results.chat_template import ChatTemplate
        from lora_doctor.static.folder.chat_template import template_of

        self._require("meta")
        template = template_of(self.static)
        return self._tasks.gather(
            CHAT_TEMPLATE,
            ChatTemplate,
            self.asked,
            self.settings.limits.of_meta(),
            template=template.text,
            file=template.file,
        )

    @evidence(of_recipe=True)
    def processed_image(self) -> ProcessedImage:
        """One image through the processor in the model's folder; raises without one."""
        from lora_doctor.results.processed_image import ProcessedImage

        self._require("meta")
        if self.static.json_file("processor_config.json").value is None:
            self.static.json_file("preprocessor_config.json").require()
        self._progress("processing an image")
        return self._tasks.gather(
            PROCESSED_IMAGE, ProcessedImage, self.recipe_in_full(), self.settings.limits.of_meta()
        )

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

    def _classes(self) -> dict[str, object]:
        """What the program says about the number of classes; see ``evidence/supervision.py``."""
        if not self.has("program"):
            return {"classes": None, "by_default": False}
        from lora_doctor.recipe.program.label_count import label_count

        given = label_count(self.program)
        return {"classes": given, "by_default": given is None}

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
                **self._classes(),
            },
        )
