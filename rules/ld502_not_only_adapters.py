"""LD502: no adapter is trainable, or other weights are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Patch,
    Proof,
    Rule,
    Symptom,
    quoted,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import FrozenAdapters, Structure

#: What fails in a training in which no adapter is trainable.
_UNTRAINED = ("attaches", "forward", "gradients", "steps", "adapters-move", "loss-falls")


class NotOnlyAdapters(Rule):
    """The trainable weights are not the adapters: none of the adapters is trainable, or other
    weights are.

    ## What happens
    With no trainable adapter the backward raises `element 0 of tensors does not require grad and
    does not have a grad_fn`, or an optimizer gets an empty parameter list. With other weights
    trainable nothing is raised: they take gradients and optimizer states as in full fine-tuning,
    they change, and the saved adapter does not contain them, so the model loaded later is not the
    one that was trained.

    ## Why
    Several causes: `requires_grad` was set by hand after wrapping; a checkpoint was loaded for
    inference (`is_trainable=False`); the recipe is the config of a saved adapter, whose
    `inference_mode: true` makes PEFT freeze what it loads; `prepare_model_for_kbit_training` froze
    adapters that were already in the model; or the model has built-in adapters and leaves its head
    trainable or, where `from_pretrained` makes everything trainable, all weights.

    ## Versions
    All versions of PEFT. From transformers 5 on, `from_pretrained` makes weights trainable that
    `__init__` had frozen.

    ## Fix
    For a model that is loaded: a patch that freezes everything but its adapters once it is loaded,
    or prepared for k-bit training. It changes what the model learns, so it is applied only with
    `--unsafe-fixes`. For a recipe with `inference_mode: true`: `false`. For a model in your own
    code: freeze it, then set `requires_grad` on the adapters by name. Weights that should be
    trained in full belong in `modules_to_save`, so that they are saved.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD502"
    name = "not-only-adapters"
    summary = "No adapter is trainable, or weights other than adapters would be trained."
    depth = "meta"
    symptoms = (
        Symptom(r"element 0 of (?:tensors|variables) does not require grad"),
        Symptom(r"optimizer got an empty parameter list"),
        Symptom(r"trainable params:\s*0(?![,\d]|\.\d)"),
        # As other programs than PEFT print it; and where nearly everything is trained.
        Symptom(r"(?i)trainable param\w*:\s*0(?:\.0+)?\s?%"),
        Symptom(r"trainable params:.{1,80}?trainable%:\s*(?:9\d(?:\.\d+)?|100(?:\.0+)?)(?![.\d])"),
        Symptom(r"(?i)\bno trainable param\w*"),
        Symptom(r"cannot perform fine-tuning on purely quantized models"),
        Symptom(
            r"element 0 of (?:tensors|variables) does not require grad",
            context=r"trainable params:\s*0(?![,\d]|\.\d)",
            weight=2,
        ),
    )
    descriptions = (
        Symptom(r"\b(?:0|zero|no) trainable param\w*"),
        Symptom(
            r"\btrainable.param\w*\W+(?:(?:is|are|still|shows?|says?|prints?)\s+){0,2}(?:0|zero)(?!\.?\d)"
        ),
    )
    told_as = (
        "There are zero trainable parameters: the optimizer has nothing that is trained.",
        "All parameters are trainable, not only the adapters.",
    )
    examples = (
        Example(
            "broken",
            "tests.models:own_adapters_and_head",
            why="a built-in adapter whose head is trained along and not saved",
        ),
        Example(
            "broken",
            "tests.models:own_adapters_frozen",
            why="a built-in adapter that somebody froze",
        ),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "inference_mode": True},
            why="the config of a saved adapter, trained from",
        ),
        Example("healthy", "tests.models:llama_with_own_adapters"),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj", "v_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        frozen = case.dry_run.frozen if case.has("dry_run") else None
        if frozen is not None:
            yield self._seen_frozen(frozen)
            return
        structure = case.structure
        injection = structure.injection
        on_top = structure.built_in is not None and structure.built_in.wrapped
        if not injection.ok or on_top:  # an adapter on top of built-in ones is LD302's matter
            return
        if case.recipe.for_inference and not injection.trainable_adapter_parameters:
            yield self._for_inference(case, structure)
            return
        if case.recipe.peft_type != "LORA" or not injection.adapter_parameters:
            return
        other, count = _others(structure)
        trainable, of, unit = _adapters(structure)
        if not trainable:
            rest = f"; {quoted(other, 2)} would be trained instead" if other else ""
            yield self.finding(
                "error",
                f"No adapter is trainable: 0 of {of:,} adapter {unit} (0% of the model) "
                f"require a gradient{rest}.",
                location=Location("module", structure.model_class),
                evidence=_evidence(structure, other, count),
                proof=Proof("measured", "requires_grad was read from the model"),
                fixes=_fixes(case, structure),
                explains=_UNTRAINED,
            )
        elif other and not _seen_lost(case):
            share = count / max(1, injection.total_parameters)
            yield self.finding(
                "warning",
                f"{count:,} parameters outside the adapters would be trained too ({share:.1%} "
                f"of the model): {quoted(other, 4)}; the saved adapter does not contain them.",
                location=Location("module", other[0]),
                evidence=_evidence(structure, other, count),
                proof=Proof("measured", "requires_grad was read from the model"),
                fixes=_fixes(case, structure),
                explains=("attaches",),
            )

    def _seen_frozen(self, frozen: FrozenAdapters) -> Finding:
        """Of a model that the user's own command goes to train."""
        if frozen.adapter:
            how = f"{frozen.adapter} was loaded for inference"
            fix = "Load it for training: PeftModel.from_pretrained(model, DIR, is_trainable=True)."
        else:
            how = "requires_grad is off for all of them"
            fix = "Keep requires_grad on for the adapters, or add them afterwards."
        known = frozen.file and frozen.line
        return self.finding(
            "error",
            f"No adapter is trainable in the model that the command trains: {how}.",
            location=Location("file", frozen.file, frozen.line)
            if known
            else Location("module", "the model with adapters"),
            evidence=(
                Measurement(
                    "adapter tensors", f"0 of {frozen.tensors:,} trainable", "requires_grad of "
                                                                             "the command's "
                                                                             "model"
                ),
            ),
            proof=Proof("measured", "requires_grad was read from the command's model"),
            fixes=(Fix(fix, "manual"),),
            explains=_UNTRAINED,
        )  # fmt: skip

    def _for_inference(self, case: Case, structure: Structure) -> Finding:
        injection = structure.injection
        return self.finding(
            "error",
            "No adapter is trainable: the recipe has inference_mode: true, so PEFT freezes the "
            "adapters that it adds.",
            location=Location("recipe", "inference_mode"),
            evidence=(
                Measurement("inference_mode", "true", "recipe"),
                Measurement(
                    "adapter parameters",
                    f"0 of {injection.adapter_parameters:,} trainable",
                    f"requires_grad in {structure.model_class} after get_peft_model",
                ),
            ),
            proof=Proof("measured", "requires_grad was read from the model"),
            fixes=(
                Fix(
                    "Make the adapters trainable: inference_mode: false.",
                    "safe",
                    (Edit("inference_mode", False),),
                ),
                Fix(
                    "Or, to continue from a saved adapter instead of a new one: "
                    "PeftModel.from_pretrained(model, DIR, is_trainable=True); check MODEL "
                    "--adapter DIR --depth full tests that.",
                    "manual",
                ),
            ),
            explains=_UNTRAINED,
        )


def _seen_lost(case: Case) -> bool:
    """Whether these are whole modules that a real save and load has lost: LD602 says so."""
    saving = case.verification.saving if case.reaches("tiny") and case.has("verification") else None
    return saving is not None and bool(saving.lost) and not saving.lost_elsewhere


def _adapters(structure: Structure) -> tuple[int, int, str]:
    """How much of the adapters is trainable, of how much, as the model comes out of loading."""
    if structure.built_in is not None:
        states = structure.built_in.adapters
        return sum(s.trainable for s in states), sum(s.tensors for s in states), "tensors"
    injection = structure.injection
    return injection.trainable_adapter_parameters, injection.adapter_parameters, "parameters"


def _others(structure: Structure) -> tuple[tuple[str, ...], int]:
    """Patterns of trainable weights that are no adapter, as the model comes out of loading."""
    if structure.built_in is not None:
        return structure.built_in.base_trainable, structure.built_in.base_trainable_parameters
    return structure.injection.trainable_other, structure.injection.trainable_other_parameters


def _evidence(structure: Structure, other: tuple[str, ...], count: int) -> tuple[Measurement, ...]:
    source = f"requires_grad in {structure.model_class}"
    trainable, of, unit = _adapters(structure)
    lines = [Measurement(f"adapter {unit}", f"{trainable:,} of {of:,} trainable", source)]
    places = [group.pattern for group in structure.groups if group.adapted]
    if not trainable and places:
        lines.append(Measurement("adapters in", quoted(places, 4), structure.model_class))
    if other:
        text = f"{count:,}: {quoted(other, 6)}"
        lines.append(Measurement("other trainable parameters", text, source))
    built_in = structure.built_in
    if built_in is not None:
        lines.append(
            Measurement("built-in adapters",
                    quoted([state.name for state in built_in.adapters]), structure.model_class)
        )  # fmt: skip
        if built_in.loading_unfreezes:
            lines.append(
                Measurement("from_pretrained", "makes every weight trainable again",
                        "installed transformers, run on a model of two weights")
            )  # fmt: skip
    return tuple(lines)


def _fixes(case: Case, structure: Structure) -> tuple[Fix, ...]:
    built_in = structure.built_in
    names = [state.name for state in built_in.adapters] if built_in is not None else ["lora_"]
    by_hand = Fix(
        f"Freeze the model, then set requires_grad on the parameters with {quoted(names)} in "
        "their name; list modules to be trained in full in modules_to_save.",
        "manual",
    )
    if built_in is None or case.source.kind not in ("hub", "folder"):
        return (by_hand,)
    active = [state.name for state in built_in.adapters if state.active]
    patch = Fix(
        f"Train only {quoted(active or names)}: everything else is frozen once the model is "
        "loaded (lora_doctor.apply as the first line of the training script).",
        "unsafe",
        patch=Patch("own_adapters_only"),
    )
    return patch, by_hand
