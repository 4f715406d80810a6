"""LD606: the checkpoint lacks weights of the class, and the adapter folder will not contain
them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    Proof,
    Rule,
    Severity,
    Symptom,
    entries_for,
    pattern_of,
    quoted,
)
from lora_doctor.rules._round_trip import difference, matches, trained_whole
from lora_doctor.static.folder.layers import stack_mismatches

if TYPE_CHECKING:
    from lora_doctor.rule_api import Loading, Verification

#: A round trip without random weights gives the same logits to the last digits.
_SAME = 1e-6
#: Of the class's parameters: with more of them missing it is not a head or a pooler that the
#: checkpoint was saved without, but its names that do not fit.
_MOST_OF_A_MODEL = 0.5
_HERE = "from_pretrained on the meta device, names in the checkpoint"


class WeightsNotInCheckpoint(Rule):
    """The class has weights that the checkpoint lacks, and the adapter folder does not contain
    them.

    ## What happens
    `from_pretrained` reports that some weights were newly initialized. Training runs and saves.
    Each time the adapter is loaded the model gives other outputs, because those weights are random.

    ## Why
    Examples: a classifier on a base checkpoint, the pooler of a BERT that was saved as a masked
    language model, the projector of a composed model, a head that a factory adds. Weights without a
    tensor in the checkpoint are initialised at random while the model is loaded. Unless the
    `task_type` (`SEQ_CLS`, `TOKEN_CLS`) or `modules_to_save` covers them, PEFT freezes them, and an
    adapter folder does not contain frozen weights. The adapters are then trained for weights that
    exist only in this process. Adapters on such a layer do not help: they are saved, the weights
    under them are not.

    lora-doctor lets the installed transformers load a state dict with the names and shapes of the
    checkpoint, so its renames and ties apply. A factory is called twice, and weights with other
    values the second time are random; for a loaded model, only the weights missing in its
    checkpoint are known. Where no weight file is available, the class that `config.json` says the
    checkpoint was saved from is compared: a head that it does not have is missing. Weights that the
    class initialises with a constant (biases and norms in most classes) are the same after every
    loading and not reported, nor are weights on which, in an executed training, no output of the
    model depends.

    ## Versions
    All.

    ## Fix
    Name the modules in `modules_to_save`: they are then trained in full and saved with the
    adapters, without adapters on them. Or save a complete checkpoint once, before any training, and
    always load that one.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD606"
    name = "weights-not-in-checkpoint"
    summary = "Some weights are random after every loading, and PEFT does not save them."
    depth = "meta"
    symptoms = (
        Symptom(r"Some weights of \w+ were not initialized from the model checkpoint", aside=True),
        Symptom(
            r"those params were newly initialized because missing from the checkpoint",
            aside=True,
            unless=r"\.base_layer\.",
        ),
    )
    descriptions = (
        Symptom(
            r"\b(?:different|random|other) (?:outputs?|results?|scores?)\b.{0,40}\b(?:each|eve"
            r"ry) time\b.{0,40}\bload"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/base_without_head",
            {
                "model_class": "AutoModelForSequenceClassification",
                "task_type": None,
                "target_modules": ["q_proj", "v_proj"],
            },
            why="a classifier on the checkpoint of a language model, and nothing that saves it",
        ),
        Example(
            "broken",
            "tests/folders/pooler_missing",
            {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]},
            why="PEFT saves the classifier for this task type, but not the pooler before it",
        ),
        Example(
            "healthy",
            "tests/folders/base_without_head",
            {
                "model_class": "AutoModelForSequenceClassification",
                "task_type": "SEQ_CLS",
                "target_modules": ["q_proj", "v_proj"],
            },
            why="PEFT trains and saves the classifier for this task type",
        ),
        Example(
            "healthy",
            "tests/folders/base_without_head",
            {"target_modules": ["q_proj", "v_proj"]},
            why="the language model that the checkpoint is",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        loading = case.loading
        modules, others = _named_elsewhere(case, loading)
        if not modules and not others:
            if loading.error is not None:
                raise EvidenceError(f"PEFT refuses the recipe: {loading.error}")
            if loading.saved_class:
                raise EvidenceError(
                    "no weight names could be read (model.safetensors), and the class it was "
                    f"saved from, {loading.saved_class}, lacks no module"
                )
            return
        run = _run_of(case)
        severity = _severity(case, loading, run)
        if severity is not None:
            yield self._random(case, loading, run, severity, (modules, others))

    def _random(
        self,
        case: Case,
        loading: Loading,
        run: Verification | None,
        severity: Severity,
        found: tuple[Sequence[str], Sequence[str]],
    ) -> Finding:
        modules, others = found
        parts = list(dict.fromkeys(map(pattern_of, (*modules, *others))))
        unsaved = loading.unsaved
        unclear = "" if severity == "error" else _unclear(case, run)
        here = _how_known(case, loading)
        return self.finding(
            severity,
            f"The checkpoint has no weights for {quoted(parts, 4)}: they are random after "
            f"every loading, and the adapter folder will not contain them{unclear}.",
            location=Location("recipe", "modules_to_save"),
            evidence=(
                Measurement("not in the checkpoint", quoted(parts, 8), here),
                Measurement(
                    "frozen and not saved",
                    f"{unsaved.parameters:,} parameters of {unsaved.of:,}",
                    "requires_grad and modules_to_save after get_peft_model",
                ),
                *_unplaced(loading),
                *(difference(run, "save-reload", "logits after loading, with new random weights")
                  if run is not None else ()),
            ),
            proof=Proof("executed", "the adapters were saved and loaded onto a base model with "
                                    "other random weights, as from_pretrained creates them")
            if run is not None and severity == "error"
            else _proof(case, loading),
            fixes=_fixes(case, loading, modules, others),
            explains=("save-reload",),
        )  # fmt: skip


def _named_elsewhere(case: Case, loading: Loading) -> tuple[list[str], list[str]]:
    """Modules and parameters, but for the layers that LD613 finds missing as a whole."""
    unsaved = loading.unsaved
    layers: list[str] = []
    static = case.static if case.has("static") else None  # none of a model that code loads
    if static is not None and static.weights.value is not None:
        for found in stack_mismatches(static.config, static.weights.value):
            layers += [f".{found.stack}.{number}." for number in found.missing]

    def told(path: str) -> bool:
        return any(layer in f".{path}." for layer in layers)

    return (
        [path for path in unsaved.modules if not told(path)],
        [path for path in unsaved.others if not told(path)],
    )


def _run_of(case: Case) -> Verification | None:
    """The training contract, where it was run to the round trip on such weights."""
    if not case.reaches("tiny") or not case.has("verification"):
        return None
    run = case.verification
    saving = run.saving
    met = saving is not None and (saving.random.modules or saving.random.others)
    return run if met else None


def _severity(case: Case, loading: Loading, run: Verification | None) -> Severity | None:
    """``None`` where a run has shown that nothing depends on these weights."""
    if loading.unsaved.share > _MOST_OF_A_MODEL:
        return "error"
    check = run.check("save-reload") if run is not None else None
    if run is None or check is None or check.status == "skipped":
        return "warning"
    if check.status == "failed":
        own_loss = all(batch.loss != "surrogate" for batch in run.batches)
        return "error" if own_loss else "warning"
    # Numbers of a quantized weight are not drawn anew: that the logits are the same says nothing.
    stored = case.has("static") and case.static.quantization_config is not None
    redrawn = not case.recipe.quantized and not stored
    fed = redrawn and not any(note.is_gap for note in run.notes)
    same = isinstance(check.value, float) and check.value <= _SAME
    return None if fed and same else "warning"


def _how_known(case: Case, loading: Loading) -> str:
    if loading.saved_class:
        return f"config.json: saved from {loading.saved_class}, which has none"
    if case.source.kind == "factory":
        return "other values when the factory was called again"
    if case.source.kind == "module":
        return "weight names of the checkpoint that the model's config names"
    return _HERE


def _proof(case: Case, loading: Loading) -> Proof:
    if loading.saved_class:
        return Proof("inferred", "both classes were constructed, and their modules compared")
    if case.source.kind == "factory":
        return Proof("measured", "the factory was called twice, and these values differed")
    if case.source.kind == "module":
        return Proof(
            "inferred", ("the weight names of the checkpoint were loaded by the model's class")
        )
    return Proof(
        "measured", ("the weight names of the checkpoint were loaded by the full-size class")
    )


def _unclear(case: Case, run: Verification | None) -> str:
    if case.source.kind == "module":
        return ", unless your code loads them from elsewhere"
    if run is None:
        return "; whether the loss depends on them was not tested"
    return "; whether your loss depends on them is unknown"


def _unplaced(loading: Loading) -> Iterator[Measurement]:
    if loading.unplaced:
        yield Measurement(
            "in the checkpoint, not used by the class",
            f"{loading.unplaced} of {loading.tensors} tensors, such as "
            f"{quoted(loading.unplaced_examples, 2)}",
            _HERE,
        )


def _fixes(
    case: Case, loading: Loading, modules: Sequence[str], others: Sequence[str]
) -> tuple[Fix, ...]:
    if loading.unsaved.share > _MOST_OF_A_MODEL:
        return (
            Fix(
                "Load the class that the checkpoint was saved from, or rename its tensors to the "
                "names that this class has.",
                "manual",
            ),
        )
    complete = Fix(
        "Or save a complete checkpoint once, before any training: load the model, call "
        "model.save_pretrained(DIR), and from then on use DIR as the base model for training "
        "and loading.",
        "manual",
    )
    if others or not modules:
        return (complete,)
    names = entries_for(modules, case.structure)
    whole = Fix(
        f"Train and save {quoted(names, 4)} with the adapters (modules_to_save).",
        "unsafe",
        _trained_whole(case, names, modules),
    )
    return (whole, complete)


def _trained_whole(case: Case, names: Sequence[str], modules: Sequence[str]) -> tuple[Edit, ...]:
    """The modules in ``modules_to_save``, and no adapters on them."""
    edits = (Edit("modules_to_save", trained_whole(case, names)),)
    targets = case.recipe.get("target_modules")
    if not isinstance(targets, list):
        return edits
    left = [entry for entry in targets if not any(matches(path, entry) for path in modules)]
    return (Edit("target_modules", left), *edits) if left and left != targets else edits
