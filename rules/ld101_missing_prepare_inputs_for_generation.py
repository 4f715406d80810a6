"""LD101: PEFT's wrapper needs prepare_inputs_for_generation and the class lacks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Edit,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Patch,
    Proof,
    Rule,
    Symptom,
    pretrained_model_generates,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import AdaptedPart, Structure

METHOD = "prepare_inputs_for_generation"
#: Taken from a GenerationMixin too, by the SEQ_2_SEQ_LM wrapper of PEFT to 0.18 at least.
SEQ2SEQ_METHOD = "_prepare_encoder_decoder_kwargs_for_generation"
GENERATING = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
#: Everything after the wrapper fails with it.
CONSEQUENCES = (
    "builds", "attaches", "forward", "starts-at-base", "loss-finite", "gradients", "steps",
    "adapters-move", "loss-falls", "save-reload", "merge",
)  # fmt: skip

_PATCHED = Fix(
    "Patch PEFT's wrapper before the model is loaded, so that it works without the method "
    "(lora_doctor.apply as the first line of the training script).",
    "safe",
    patch=Patch("peft_without_generation"),
)


class MissingPrepareInputsForGeneration(Rule):
    """The PEFT wrapper of this `task_type` reads `prepare_inputs_for_generation` from the model,
    and the model's class does not have it.

    ## What happens
    With `task_type` `CAUSAL_LM` or `SEQ_2_SEQ_LM`, `get_peft_model` raises `AttributeError: ... has
    no attribute 'prepare_inputs_for_generation'`, and so does `PeftModel.from_pretrained` of a
    published adapter whose config says so. A class that defines `prepare_inputs_for_generation`
    itself may still lack methods of `GenerationMixin`: `SEQ_2_SEQ_LM` then fails at
    `_prepare_encoder_decoder_kwargs_for_generation`. In releases where `PreTrainedModel` itself
    could generate, wrapping worked and the first forward failed instead, because a class without a
    head takes no `labels`.

    ## Why
    One of three causes. A base class without a head was loaded (`AutoModel`, `LlamaModel`). Or
    the class has a head, but inherits only from `PreTrainedModel`, which stopped being a
    `GenerationMixin`. Or code of the model's repository calls `get_peft_model` on its own inner
    model inside `__init__`, so that the model cannot even be loaded.

    ## Versions
    `get_peft_model` fails from transformers 4.50 on, where `PreTrainedModel` is no longer a
    `GenerationMixin`; before that the forward fails. With a plain `nn.Module`: any version.

    ## Fix
    Load the class with the head. For an embedding model use `task_type` `FEATURE_EXTRACTION`. Where
    a class with a head exists this is a manual step, because an adapter trained on the class
    without a head has no effect on the class with one: it loads with a warning at most, and the
    model answers like the base model. For a class that has its own head, leave `task_type` out: the
    adapters are the same, only PEFT's generation helper is missing. For remote code that wraps
    inside `__init__`, a patch of the constructor of PEFT's wrapper, installed before the model is
    loaded.

    Adding a dummy method to the class is not a fix: the model trains but cannot generate, and the
    saved adapter does not load on the unpatched class.

    ## Links
    https://huggingface.co/docs/peft/package_reference/peft_model
    """

    code = "LD101"
    name = "missing-prepare-inputs-for-generation"
    summary = "PEFT's wrapper needs prepare_inputs_for_generation and the class lacks it."
    depth = "static"
    symptoms = (
        Symptom(r"has no attribute ['\"]prepare_inputs_for_generation['\"]", "transformers>=4.50"),
        Symptom(rf"has no attribute ['\"]{SEQ2SEQ_METHOD}['\"]", "transformers>=4.50"),
        Symptom(
            r"\w+Model\.forward\(\) got an unexpected keyword argument "
            r"'(labels|decoder_input_ids)'",
            "transformers<4.50, a class without a head",
        ),
        Symptom(
            r"['\"]\w*(?:For[A-Z]\w+|Model\w*|LM\w*)['\"] object has no attribute "
            r"['\"]generate['\"]",
            "transformers>=4.50",
        ),
    )
    told_as = (
        "My model class has no prepare_inputs_for_generation, which PEFT needs for CAUSAL_LM.",
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {
                "model_class": "AutoModel",
                "task_type": "CAUSAL_LM",
                "target_modules": ["q_proj", "v_proj"],
            },
            why="a base class without a head",
        ),
        Example(
            "broken",
            "tests.models:causal_lm_without_generation",
            {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]},
            requires={"transformers": ">=4.50"},
            why="a class with a head that is no GenerationMixin",
        ),
        Example(
            "broken",
            "arch:xlm-prophetnet",
            {
                "model_class": "AutoModelForSeq2SeqLM",
                "task_type": "SEQ_2_SEQ_LM",
                "target_modules": ["query_proj", "value_proj"],
            },
            requires={"transformers": ">=4.50,<5", "peft": "<0.21"},
            why="its own prepare_inputs_for_generation, but no GenerationMixin",
        ),
        Example(
            "broken",
            "tests.models:plain_module",
            {"task_type": "CAUSAL_LM", "target_modules": ["proj"]},
            why="a plain nn.Module",
        ),
        Example(
            "broken",
            "tests/scripts/part_adapted.py",
            requires={"transformers": ">=4.50"},
            depth="meta",
            why="the decoder, without its head, is what gets the adapters",
        ),
        Example("healthy", "tests/scripts/part_adapted_plainly.py", depth="meta"),
        Example(
            "healthy",
            "arch:llama",
            {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]},
        ),
        Example(
            "healthy",
            "arch:llama",
            {
                "model_class": "AutoModel",
                "task_type": "FEATURE_EXTRACTION",
                "target_modules": ["q_proj", "v_proj"],
            },
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("program") and case.has("adapted_part"):
            yield from self._part(case.adapted_part)
        elif case.reaches("meta") and case.has("structure"):
            yield from self._loaded(case, case.structure)
        elif case.source.kind == "factory":
            yield from self._in_factory(case)
        elif case.source.folder and case.has("remote_code"):
            yield from self._remote(case)
        elif case.reaches("meta"):
            _ = case.structure  # says why there is nothing to look at
        else:
            _ = case.remote_code

    def _part(self, part: AdaptedPart) -> Iterator[Finding]:
        """The part of the loaded model that a program hands to ``get_peft_model``."""
        error = part.error
        if error is None or not any(name in error.message for name in (METHOD, SEQ2SEQ_METHOD)):
            return
        yield self.finding(
            "error",
            f"{part.code} adapts the part {part.path}, a {part.class_name}, which is not a "
            f"GenerationMixin, and the wrapper of its task_type needs one: it raises {error.type}.",
            location=Location("file", part.file, part.line),
            evidence=(
                Measurement("the call", part.code, f"{part.file}:{part.line}"),
                Measurement("get_peft_model", str(error), f"{part.class_name} on the meta device"),
            ),
            proof=Proof("executed", "PEFT was given this part of the full-size class on the meta "
                        "device"),
            fixes=(
                Fix("Leave task_type out of the config: the adapters are the same, without PEFT's "
                    "generation helper. Or hand the whole model to get_peft_model.", "manual"),
            ),
            explains=CONSEQUENCES,
        )  # fmt: skip

    def _in_factory(self, case: Case) -> Iterator[Finding]:
        """A factory whose model wraps a part of itself while it is being built."""
        cause = case.cause_of("structure") if case.reaches("meta") else None
        if cause is None or not any(name in cause.message for name in (METHOD, SEQ2SEQ_METHOD)):
            _ = case.structure  # says why there is nothing to look at
            return
        yield self.finding(
            "error",
            f"{case.source} cannot build its model: {cause}. PEFT's wrapper was put around a "
            "class that is not a GenerationMixin.",
            location=Location("module", case.source.name),
            evidence=(Measurement("the factory raised", str(cause), "called in a child process"),),
            proof=Proof("executed", "the factory was called and failed with this message"),
            fixes=(_PATCHED,),
            explains=CONSEQUENCES,
        )

    def _loaded(self, case: Case, structure: Structure) -> Iterator[Finding]:
        """The class that would be loaded, under the recipe's own task_type."""
        task_type = case.recipe.get("task_type")
        if task_type not in GENERATING:
            return
        headless = not structure.has_head
        error = structure.injection.error
        method, there = METHOD, structure.has_prepare_inputs
        if there and error and SEQ2SEQ_METHOD in error.message:
            method, there = SEQ2SEQ_METHOD, False
        if there and not headless:
            return
        evidence = [
            Measurement(
                f"{structure.model_class}.{method}",
                "there" if there else "missing",
                "the loaded class",
            ),
            Measurement(
                "wrapper of this task_type",
                structure.injection.wrapper or f"for {task_type}",
                "installed PEFT",
            ),
            Measurement("language model head", "none" if headless else "there", "the loaded class"),
        ]
        if error:
            evidence.append(
                Measurement("get_peft_model", f"{error.type}: {error.message}", "meta device")
            )
        where = "in the forward" if there else "in get_peft_model"
        why = (
            f"{structure.model_class} has no language model head"
            if headless
            else f"{structure.model_class} is not a GenerationMixin"
        )
        yield self.finding(
            "error",
            f"{why}, and the {task_type} wrapper needs one: training fails {where}.",
            location=Location("recipe", "model_class" if headless else "task_type"),
            evidence=tuple(evidence),
            proof=Proof("executed", "PEFT wrapped the full-size class on the meta device")
            if error
            else Proof("measured", "read from the loaded class"),
            fixes=self._fixes(case, structure, task_type, headless),
            explains=CONSEQUENCES,
        )

    def _fixes(
        self, case: Case, structure: Structure, task_type: str, headless: bool
    ) -> tuple[Fix, ...]:
        fixes = []
        can_choose = case.source.kind in ("hub", "folder", "arch")
        # The head of this task_type; else the other that generates (T5 has none for CAUSAL_LM).
        heads = [
            item for item in structure.head_classes
            if item.task_type in GENERATING and item.class_name != structure.model_class
        ]  # fmt: skip
        heads.sort(key=lambda item: item.task_type != task_type)
        if headless and can_choose and heads:
            head = heads[0]
            edits = [Edit("model_class", head.auto_class)]
            if head.task_type != task_type:
                edits.append(Edit("task_type", head.task_type))
            fixes.append(
                Fix(
                    f"Load the class with the head: {head.auto_class} ({head.class_name}).",
                    "safe",
                    tuple(edits),
                )
            )
        embeds = (
            headless
            and structure.main_input_name == "input_ids"
            and bool(structure.groups_of("language"))
        )
        if fixes:
            # The names of its weights begin otherwise: onto the class with the head, such an
            # adapter loads as a warning at most, and the base model answers alone.
            if embeds:
                fixes.append(Fix(_as_embeddings(structure, heads[0].class_name), "manual"))
            return tuple(fixes)
        if embeds:
            fixes.append(
                Fix(
                    "Train it as an embedding model: task_type FEATURE_EXTRACTION.",
                    "safe",
                    (Edit("task_type", "FEATURE_EXTRACTION"),),
                )
            )
        fixes.append(
            Fix(
                "Leave task_type out: the adapters are the same, without PEFT's generation helper.",
                "safe",
                (Edit("task_type", None),),
            )
        )
        if not headless:
            fixes.append(
                Fix(
                    "If it must also generate: add GenerationMixin to the bases of "
                    f"{structure.model_class}.",
                    "manual",
                )
            )
        return tuple(fixes)

    def _remote(self, case: Case) -> Iterator[Finding]:
        """Code of the model's repository that wraps its own inner model, read and not run."""
        cause = case.cause_of("structure") if case.reaches("meta") else None
        seen = cause is not None and METHOD in cause.message
        from lora_doctor.static.remote_code.remote_code import nested_adapter_calls

        calls = nested_adapter_calls(case.remote_code)
        if not calls or _inherited():
            return
        for call in calls:
            if call.inner_has_prepare_inputs is not False:
                continue
            if call.task_type_known and call.task_type not in GENERATING:
                continue
            certain = call.task_type in GENERATING and not call.conditional
            evidence = [
                Measurement("get_peft_model is called",
                        f"in {call.class_name}.__init__ on {call.wrapped}", str(call.at)),
                Measurement("which is a", call.inner_class or "class not found",
                        str(call.inner_at or call.at)),
                Measurement(f"{call.inner_class}.{METHOD}", "missing", "bases and methods, by ast"),
                Measurement("task_type", call.task_type or "not readable", str(call.at)),
                Measurement("PreTrainedModel is a GenerationMixin", "no", "installed transformers"),
            ]  # fmt: skip
            if seen:
                evidence.append(
                    Measurement(
                        "loading", case.why_not("structure"), "meta device, code of the repository"
                    )
                )
            yield self.finding(
                "error",
                f"{call.class_name} wraps its own {call.inner_class} with PEFT while it is being "
                f"built, and {call.inner_class} lacks {METHOD}: the model "
                f"{'cannot' if seen or certain else 'may not'} be loaded.",
                location=Location("file", call.at.file, call.at.line),
                evidence=tuple(evidence),
                proof=Proof("executed", "loading it failed with this message")
                if seen
                else Proof("inferred", "read from the source"),
                fixes=(_PATCHED,),
                explains=CONSEQUENCES,
            )
            return


def _as_embeddings(structure: Structure, with_head: str) -> str:
    return (
        "For embeddings only: task_type FEATURE_EXTRACTION. The adapter then belongs to "
        f"{structure.model_class}; loaded onto {with_head} it has no effect, with a warning at "
        "most."
    )


def _inherited() -> bool:
    """Whether every class of transformers has the method.

    Raises:
        EvidenceError: there is no transformers to say.
    """
    inherited = pretrained_model_generates()
    if inherited is None:
        raise EvidenceError(
            "whether the method is inherited is read from the source of transformers, which is "
            "not installed or not laid out as expected",
            remedy="package",
        )
    return inherited
