"""LD206: adapters that get no gradient, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lora_doctor.rule_api import (
    MODALITIES,
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
    Symptom,
    at_an_end,
    edits_excluding,
    edits_without,
    quoted,
    require_named_layers,
    targets_without,
)
from lora_doctor.rules._ablation import holds, with_edits
from lora_doctor.rules._training_signal import SAME_LOSS

if TYPE_CHECKING:
    from lora_doctor.rule_api import UnusedAdapterReading, Verification

#: Why a layer's adapter learns nothing, in the words of a sentence about it.
_WHY = {
    "not-run": "no forward runs these layers",
    "weight-read": "the weight is read without calling the layer, so the adapter is bypassed",
    "no-grad": "the model runs these layers with gradients disabled",
    "unused": "no gradient flows back from the loss to their output",
    "zero": "their gradient is exactly zero: their output does not change the loss",
}
#: Kind of a tower to the modalities that reach it.
_MODALITIES = {
    kind: [one.name for one in MODALITIES if one.tower == kind] for kind in ("vision", "audio")
}
#: Reasons that no other batch takes away.
_WHATEVER_THE_BATCH = ("weight-read", "no-grad", "unused")
#: Reasons for which not one adapter may learn; of the others the batch or the loss is the cause.
_OFF_THE_WAY = ("weight-read", "no-grad")


class AdaptersThatLearnNothing(Rule):
    """Some adapters get no gradient on any batch, while the others learn.

    ## What happens
    Training runs and the loss falls, but these adapters keep their initial values: they only cost
    memory and make the file larger. With several GPUs, DDP stops at the first parameter without a
    gradient.

    ## Why
    The finding says which of these was observed:

    - The layer exists but is never run: cross-attention of a decoder used alone, a pooler, the
      pooling head of a vision tower, global attention without a global mask.
    - Its weight is used without calling the layer, by a router or a fused kernel. The adapter acts
      only when the layer is called.
    - It runs under `torch.no_grad()`, as the indexers of sparse attention do.
    - Its output is discarded, or only selects an index: the last layer of a vision tower whose
      features are taken one layer earlier.
    - The gradient arrives and is zero: the normalised weight of a single expert is always 1.
    - Nothing in a vision or audio tower reaches the loss: the batch has no image, or the text has
      no placeholder for it.

    Names such as `all-linear` and `q_proj` match these layers like any other.

    ## Versions
    All versions of PEFT.

    ## Fix
    Leave these layers out. That does not change what the model learns, so it is safe. Where a batch
    other than those tried might reach the layer (one with images, one with a global mask), it is
    offered as unsafe.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD206"
    name = "adapters-that-learn-nothing"
    summary = "Some adapters get no gradient: their layers are not run, or do not affect the loss."
    depth = "tiny"
    symptoms = (
        Symptom(SAME_LOSS),
        Symptom(r"Expected to have finished reduction in the prior iteration"),
        Symptom(r"parameters that were not used in producing loss", weight=1),
        Symptom(r"Parameters which did not receive grad"),
        Symptom(
            r"'?grad_norm'?:\s*'?0(?:\.0+)?(?![.\d])",
            unless=r"grad_norm'?:\s*'?(?:0\.0*[1-9]|[1-9])",
            weight=-1,
        ),
    )
    descriptions = (
        Symptom(
            r"\bgrad(?:ient)?[_ ]norm\W+(?:(?:is|stays?|remains?|always|still)\W+){0,3}"
            r"(?:0(?:\.0+)?|zero)(?!\.?\d)"
        ),
        Symptom(
            r"\b(?:adapters?|lora\w*)\b.{0,60}\b(?:never|not) (?:get |gets |being "
            r"|been )?(?:trained|updated|on the gradient path)"
        ),
        Symptom(r"\bno grad(?:ient)?s? (?:on|for|in|to|at|reach\w*)\b.{0,30}\b(?:lora|adapter)"),
        Symptom(
            r"(?<!weights of )\blora_[AB]\b.{0,40}\b(?:stays?|still|remains?|all|non-?zero"
            r"|unchanged|zeros?|(?:is|are) 0(?!\.?\d))\b"
        ),
    )
    told_as = (
        "lora_B stays zero during the whole training.",
        "The adapters of some layers are never updated.",
        "The training loss does not decrease.",
        "The gradient norm is always 0.",
    )
    examples = (
        Example(
            "broken",
            "arch:llava",
            {"target_modules": r".*vision_tower.*\.(q_proj|v_proj)"},
            why="the features are taken one layer before the last",
        ),
        Example(
            "broken",
            "arch:llava",
            {
                "target_modules": r".*vision_tower.*\.(q_proj|v_proj)",
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": True},
            },
            requires={"transformers": ">=5"},
            why="that layer learns nothing with any checkpointing, and the others do",
        ),
        Example(
            "broken",
            "arch:jamba",
            {"target_modules": ["q_proj", "v_proj", "x_proj", "dt_proj"]},
            why="the weight of dt_proj is multiplied by hand",
            requires={"transformers": ">=5"},
        ),
        Example(
            "broken",
            "arch:bart",
            {"target_modules": ["q_proj", "v_proj"], "model_class": "AutoModelForCausalLM"},
            why="cross-attention of a decoder that is used alone",
        ),
        Example(
            "broken",
            "arch:jamba",
            {"peft_type": "LOHA", "target_modules": ["q_proj", "dt_proj"]},
            why="no other kind of adapter acts there either",
            requires={"transformers": ">=5"},
        ),
        Example(
            "broken",
            "tests.models:torch_attention",
            {"target_modules": ["out_proj"]},
            requires={"peft": ">=0.9"},
            why="torch's attention reads the weight of out_proj, so nothing at all learns",
        ),
        Example("healthy", "tests.models:torch_attention", {"target_modules": ["after"]}),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj", "v_proj"]}),
        Example(
            "healthy",
            "arch:bart",
            {"target_modules": ["q_proj", "v_proj"], "model_class": "AutoModelForSeq2SeqLM"},
        ),
        Example(
            "healthy",
            "arch:mixtral",
            {"target_modules": "all-linear"},
            requires={"peft": ">=0.8"},
            why="an expert that the router gave no token is no dead layer",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        require_named_layers(case.recipe)
        if "gradients" in case.explained:
            return
        seen = case.verification
        if not seen.gradients_counted and not _loss_without_gradients(seen):
            raise EvidenceError(
                "the training contract stopped before all gradients had been counted"
            )
        if case.recipe.peft_type != "LORA" and holds(seen, ("gradients",)):
            return  # what gets none is left over by the method itself, such as Shadow's last state
        unused = seen.observations.unused_adapters
        learning = any(group.with_gradient for group in seen.adapters)
        if not learning and not (unused and all(one.why in _OFF_THE_WAY for one in unused)):
            return  # nothing learns at all: another cause
        missed = {path for patch in seen.observations.instance_patches for path in patch.bypassed}
        if case.recipe.get("gradient_checkpointing") and _of(unused, "no-grad"):
            unused = _not_by_reentrance(case, unused)
        # Somebody's own function there is another matter, and LD504 tells of it.
        readings = [one for one in unused if missed.isdisjoint(one.paths)]
        unfed = _whole_towers(case, readings)
        rest = [reading for reading in readings if reading not in unfed]
        for why in _WHY:
            same = _of(rest, why)
            if same:
                yield self._finding(case, why, same)
        if unfed and (not rest or any(_was_fed(case, one.pattern) for one in unfed)):
            yield self._finding(case, "unfed", unfed)

    def _finding(self, case: Case, why: str, readings: Sequence[UnusedAdapterReading]) -> Finding:
        seen = case.verification
        batches = " and ".join(dict.fromkeys(batch.kind for batch in seen.batches))
        source = f"{seen.depth} model, {batches} batch"
        names = _names(case, readings)
        inside = sorted({one.inside for one in readings if one.inside})
        places = sorted({one.where for one in readings if one.where})
        reason = _WHY.get(why, f"nothing in it reaches the loss on a batch of {batches}")
        evidence = [
            Measurement(
                "adapters without gradient", sum(len(one.paths) for one in readings), source
            ),
            Measurement("layers", quoted(names, 6), reason),
        ]
        if inside:
            evidence.append(Measurement("nothing was run in", quoted(inside, 6), source))
        if places:
            what = "weight read by" if why == "weight-read" else "run without gradients in"
            evidence.append(Measurement(what, quoted(places, 4), source))
        if why in ("not-run", "unfed"):
            given = dict.fromkeys(name for batch in seen.batches for name in batch.inputs)
            evidence.append(Measurement("inputs of the batch", quoted(given), source))
        at = f" ({places[0]})" if places else ""
        if why == "unfed":
            shown = sorted({tower for one in readings if (tower := _tower_of(case, one.pattern))})
        else:
            shown = inside or names
        learning = any(group.with_gradient for group in seen.adapters)
        return self.finding(
            "warning" if learning else "error",
            f"The adapters in {quoted(shown, 3)} learn nothing: {reason}{at}.",
            location=Location("module", readings[0].paths[0]),
            evidence=tuple(evidence),
            proof=Proof("executed", "gradients were counted after a backward pass"),
            fixes=(_fix(case, why, readings, shown),),
            explains=("gradients", "adapters-move"),
        )


def _loss_without_gradients(seen: Verification) -> bool:
    """Whether the forward ran, and nothing that it returned depends on what is trained."""
    failure = seen.failure
    ended = failure is not None and failure.check == "gradients"
    return ended and failure is not None and "does not require grad" in failure.message


def _not_by_reentrance(
    case: Case, unused: tuple[UnusedAdapterReading, ...]
) -> tuple[UnusedAdapterReading, ...]:
    """The adapters that learn nothing without reentrant checkpointing either, which at first runs
    every layer without gradients; what it alone cuts off is LD501's."""
    options: dict[str, Any] = dict(case.recipe.get("gradient_checkpointing_kwargs") or {})
    if options.get("use_reentrant") is False:
        return unused
    edit = Edit("gradient_checkpointing_kwargs", {**options, "use_reentrant": False})
    return with_edits(case, (edit,)).observations.unused_adapters


def _of(readings: Sequence[UnusedAdapterReading], why: str) -> list[UnusedAdapterReading]:
    return [reading for reading in readings if reading.why == why]


def _tower_of(case: Case, pattern: str) -> str:
    """Path of the innermost vision or audio tower, or projector, that this stands in."""
    inside = [
        tower.path
        for tower in case.structure.towers
        if tower.kind in ("vision", "audio", "projector")
        and tower.path
        and pattern.startswith(f"{tower.path}.")
    ]
    return max(inside, key=len, default="")


def _whole_towers(
    case: Case, readings: Sequence[UnusedAdapterReading]
) -> list[UnusedAdapterReading]:
    """Readings in encoders of images or sound in which not one adapter learns: that is a matter of
    what the batches hold, not of their layers."""
    unused = [one for one in readings if one.why in ("not-run", "unused", "zero")]
    learning = {
        _tower_of(case, group.pattern)
        for group in case.verification.adapters
        if group.with_gradient
    }
    return [one for one in unused if _tower_of(case, one.pattern) not in {"", *learning}]


def _was_fed(case: Case, pattern: str) -> bool:
    """Whether some batch had what this place takes: without a picture, vision proves nothing."""
    tower = case.structure.tower(_tower_of(case, pattern))
    wanted = _MODALITIES.get(tower.kind, ()) if tower else ()
    kinds = [batch.kind for batch in case.verification.batches]
    return not wanted or any(word in kind for kind in kinds for word in wanted)


def _fix(
    case: Case, why: str, readings: Sequence[UnusedAdapterReading], names: Sequence[str]
) -> Fix:
    if not any(group.with_gradient for group in case.verification.adapters):
        if why == "weight-read":
            return Fix(
                "Adapt the module that uses this weight, if PEFT can, or layers that are called: "
                "no adapter learns.",
                "manual",
            )
        return Fix(
            "Run the module that holds the adapters with gradients enabled: it is called under "
            "torch.no_grad() or set_grad_enabled(False), so no adapter learns.",
            "manual",
        )
    what = f"Leave out {quoted(names, 4)}"
    edits = _edits_without(case, readings)
    if case.recipe.edit(edits).values == case.recipe.values:
        return Fix(f"{what} in your target_modules.", "manual")
    if why in _WHATEVER_THE_BATCH and not (why == "unused" and _labels_left(case)):
        return Fix(f"{what}: the adapters there learn nothing.", "safe", edits)
    return Fix(f"{what}, unless your own batches reach these layers.", "unsafe", edits)


def _labels_left(case: Case) -> list[str]:
    """Labels that the model takes and no batch had: with these, more may reach the loss."""
    given = {name for batch in case.verification.batches for name in batch.inputs}
    names = [item.name for item in case.structure.forward_parameters]
    return [name for name in names if "label" in name and name not in given]


def _edits_without(case: Case, readings: Sequence[UnusedAdapterReading]) -> tuple[Edit, ...]:
    """The recipe without these layers; empty where that cannot be said at full size."""
    recipe = case.recipe
    wholly = _unused_patterns(case, readings)
    partly = [one for one in readings if one.pattern not in wholly]
    barred = [path for one in partly for path in _layers_at_an_end(case, one)]
    at_the_ends = all(_layers_at_an_end(case, one) for one in partly)
    if not at_the_ends or recipe.get("layers_to_transform"):
        return ()
    if not barred:
        return edits_without(case.structure, recipe, wholly)
    value = targets_without(case.structure, recipe, wholly)
    if value is None:
        return ()
    return edits_excluding(case.structure, recipe, value, barred)


def _unused_patterns(case: Case, readings: Sequence[UnusedAdapterReading]) -> set[str]:
    """Patterns of which no layer learns."""
    unused = Counter(reading.pattern for reading in readings for _ in reading.paths)
    return {group.pattern for group in case.verification.adapters
            if unused.get(group.pattern) == group.count}  # fmt: skip


def _layers_at_an_end(case: Case, reading: UnusedAdapterReading) -> list[str]:
    """Paths at full size of what is unused, where exactly the first or last layers of a stack are
    and the others of this pattern learn; else nothing: the model that was run has fewer layers."""
    count = _count_of(case, reading.pattern)
    return at_an_end(case.structure, reading.pattern, reading.paths, count)


def _count_of(case: Case, pattern: str) -> int:
    """Adapters of this pattern in the model that was run."""
    return next((g.count for g in case.verification.adapters if g.pattern == pattern), 0)


def _names(case: Case, readings: Sequence[UnusedAdapterReading]) -> list[str]:
    """What to call these layers; a layer of a stack in which nothing learns by its own path."""
    learning = {g.pattern for g in case.verification.adapters if g.with_gradient == g.count}
    names: list[str] = []
    for reading in readings:
        stack = reading.pattern.partition(".*.")[0]
        ends = _layers_at_an_end(case, reading)
        if ends and not any(pattern.startswith(f"{stack}.*.") for pattern in learning):
            ends = [".".join(path.split(".")[: stack.count(".") + 2]) for path in ends]
        some = len(reading.paths) < _count_of(case, reading.pattern)
        names += ends or (reading.paths if some else [reading.pattern])
    return list(dict.fromkeys(names))
