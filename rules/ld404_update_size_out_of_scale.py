"""LD404: a LoRA scaling with which a step changes the weights far too much or too little."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
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
    Recipe,
    Rule,
)
from lora_doctor.rules._ablation import judged

if TYPE_CHECKING:
    from lora_doctor.rule_api import Structure, UpdateReading

#: Of the weight, by one step; see the docstring for where the two come from.
TOO_LARGE = 2e-2
TOO_SMALL = 2e-5
TYPICAL_RATE = 2e-4
USUAL_SCALING = 2.0


class UpdateSizeOutOfScale(Rule):
    """With the scaling from `lora_alpha` and `r`, a step changes the weights by far more, or far
    less, than with any common recipe.

    ## What happens
    Too large: the loss jumps in the first steps and stays high, or becomes NaN; a smaller learning
    rate seems to help. Too small: the loss hardly changes, as if there were no adapter.

    ## Why
    The effective weight is `W + scaling * B A`, with `scaling = lora_alpha / r`, or `lora_alpha /
    sqrt(r)` with `use_rslora`. Adam's first step changes each element of B by the learning rate,
    whatever the gradient, so the weight changes, relative to its RMS, by about `scaling * rate *
    sqrt(r / 3) / (sqrt(inputs) * RMS of the weight)`. Turning on rsLoRA without changing
    `lora_alpha` multiplies every step by `sqrt(r)`; taking `lora_alpha` for the scaling itself (1)
    divides it by `r`.

    Full fine-tuning changes a weight by its learning rate: 1e-5 to 5e-5 at an RMS of 0.02, that is
    0.05 to 0.25% per step. Usual LoRA recipes (`r` 8 to 64, `lora_alpha` `r` to `4 r`, or QLoRA's
    16 over 64, at 1e-4 to 5e-4, on 768 to 8192 inputs) lie between 0.01 and 1.7%. This rule
    reports more than 2% and, at a learning rate of 2e-4 or more, less than 0.002%. Without a
    `learning_rate` in the recipe it assumes 2e-4. Where real weights are not available, the model
    is assumed to be trained: an RMS of about `1 / sqrt(inputs)` where that is above the RMS at
    initialisation. PEFT's own example for ViT (`r` 16, `lora_alpha` 16, 5e-3, 768 inputs) changes
    such weights by 1.2%.

    ## Versions
    All; `use_rslora` since PEFT 0.8.

    ## Fix
    A `lora_alpha` that makes the scaling 2. It changes what the model learns, so it is not applied
    by default. Smaller steps do not help against overflow of activations in float16 (`LD402`): the
    base model overflows too.

    ## Links
    https://arxiv.org/abs/2312.03732
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD404"
    name = "update-size-out-of-scale"
    summary = "LoRA's scaling makes each update far too large or far too small."
    depth = "tiny"
    told_as = ("With a large alpha the loss explodes, the updates of LoRA are too large.",)
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "r": 16, "lora_alpha": 2048},
        ),
        Example(
            "broken",
            "arch:llama",
            {
                "target_modules": ["q_proj", "v_proj"],
                "r": 256,
                "lora_alpha": 512,
                "use_rslora": True,
            },
            requires={"peft": ">=0.8"},
            why="twice the rank was right without rsLoRA",
        ),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "r": 64, "lora_alpha": 1},
            why="1 was meant as the scaling",
        ),
        Example(
            "healthy",
            "arch:vit",
            {
                "model_class": "AutoModelForImageClassification",
                "modules_to_save": ["classifier"],
                "r": 16,
                "lora_alpha": 16,
                "learning_rate": 5e-3,
            },
            why="PEFT's own example, which trains",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "r": 64, "lora_alpha": 256},
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "r": 64, "lora_alpha": 16},
            why="QLoRA's own",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen = judged(case)
        readings = seen.observations.updates
        if not readings:
            if case.recipe.peft_type != "LORA":
                return
            steps = seen.check("steps")
            if steps is not None and steps.status == "passed":
                raise EvidenceError("no linear layer has a LoRA adapter that starts at zero")
            raise EvidenceError("the training contract stopped before the first optimizer step")
        own = seen.observations.user_weights
        rate = float(case.recipe.get("learning_rate") or TYPICAL_RATE)
        updates = [_Update.of(item, None if own else case.structure) for item in readings]
        # A scaling of 0 is told by LD221, and no usual one is a multiple of it.
        for scaling in sorted({update.reading.scaling for update in updates} - {0}):
            alike = [update for update in updates if update.reading.scaling == scaling]
            middle = _median(alike)
            large = middle.relative * middle.grown * rate > TOO_LARGE
            if large or middle.relative * max(rate, TYPICAL_RATE) < TOO_SMALL:
                yield self._finding(case, alike, middle, rate, own, large)

    def _finding(
        self,
        case: Case,
        alike: list[_Update],
        middle: _Update,
        rate: float,
        own: bool,
        large: bool,
    ) -> Finding:
        used = rate if large else max(rate, TYPICAL_RATE)
        reading, share = middle.reading, middle.relative * used * (middle.grown if large else 1)
        verdict = "far too much" if large else "far too little"
        typical = "" if case.recipe.get("learning_rate") else ", which is typical,"
        lora_alpha, root = case.recipe.get("lora_alpha"), case.recipe.get("use_rslora")
        usual = USUAL_SCALING * math.sqrt(16 / reading.rank) / abs(reading.scaling)
        source = "measured in the first optimizer step"
        if not own:
            source += " of the tiny model, scaled to the shapes of the real one"
        evidence = [
            Measurement(
                "scaling",
                f"{reading.scaling:g}",
                f"lora_alpha {lora_alpha} over "
                f"{'the square root of ' if root else ''}r {reading.rank}",
            ),
            Measurement(
                "learning rate", used, "recipe" if not typical and used == rate else "typical"
            ),
        ]
        for update in sorted(alike, key=lambda item: -item.relative)[:4]:
            outputs, inputs = update.shape
            size = update.relative * used * (update.grown if large else 1)
            evidence.append(
                Measurement(f"first update of {update.reading.pattern}, {outputs} x {inputs}",
                        f"{_percent(size)} of the weight's RMS", source)
            )  # fmt: skip
        evidence.append(
            Measurement("the same with r 16, lora_alpha 32",
                        f"{_percent(share * usual)} of the weight's RMS",
                        "it grows with the scaling and the square root of r")
        )  # fmt: skip
        return self.finding(
            "warning",
            f"At a learning rate of {used:g}{typical} the first step changes the adapted "
            f"weights by {_percent(share)} of their RMS, {verdict}. The scaling is "
            f"{reading.scaling:g}.",
            location=Location("recipe", "lora_alpha"),
            evidence=tuple(evidence),
            proof=Proof(
                "measured",
                ("the adapter's A and B were compared before and after an optimizer step"),
            ),
            fixes=_fixes(case, reading, share, large),
            explains=("loss-falls",),
        )


@dataclass(frozen=True)
class _Update:
    """How a first step changes these weights. ``relative``: to the weight, over the learning rate.
    ``shape``: of the weight that this is about, outputs and inputs. ``grown``: what is left of it
    where training has made the weight larger than it began, 0 to 1."""

    reading: UpdateReading
    relative: float
    shape: tuple[int, int]
    grown: float = 1.0

    @classmethod
    def of(cls, reading: UpdateReading, structure: Structure | None) -> _Update:
        """As measured, or with a ``structure`` for the layers that it has in full size.

        The update has the same size whatever the number of inputs, the weight grows with its square
        root, unless it was drawn for its number of inputs (the default of torch's linear layer). In
        a batch of few tokens, where gradients have one direction, the signs of A's gradient agree
        with A: that adds ``2 rank / pi`` to the inputs, which is nothing but in a small layer.

        A trained weight keeps the size of what goes through it, with numbers of about one over the
        square root of its inputs. In a narrow model that is more than the 0.02 that they began
        with, and a step is the smaller for it.
        """
        relative = reading.update_norm / reading.weight_norm / reading.learning_rate
        outputs, inputs = reading.shape
        full = _full_shape(reading, structure)
        if full is None:
            return cls(reading, relative, reading.shape)
        rms = reading.weight_norm / math.sqrt(reading.layers * outputs * inputs)
        by_inputs = abs(rms * math.sqrt(3 * inputs) - 1) < 0.1
        factor = 1.0 if by_inputs else inputs / full[1]
        agreeing = 2 * reading.rank / math.pi
        factor *= (1 + agreeing / full[1]) / (1 + agreeing / inputs)
        begun = rms * math.sqrt(inputs if by_inputs else full[1])
        grown = min(1.0, begun)
        return cls(reading, relative * math.sqrt(factor), full, grown)


def _full_shape(reading: UpdateReading, structure: Structure | None) -> tuple[int, int] | None:
    groups = structure.groups if structure is not None else ()
    for group in groups:
        if group.pattern == reading.pattern and len(group.shape) >= 2:
            rows, columns = group.shape[0], math.prod(group.shape[1:])
            return (columns, rows) if group.kind == "conv1d" else (rows, columns)
    return None


def _median(updates: list[_Update]) -> _Update:
    """The middle one: a few odd layers are no reason to change the scaling of all."""
    return sorted(updates, key=lambda item: item.relative)[len(updates) // 2]


def _percent(share: float) -> str:
    return f"{share * 100:.2g}%" if share < 1 else f"{share * 100:.0f}%"


def _fixes(case: Case, reading: UpdateReading, share: float, large: bool) -> tuple[Fix, ...]:
    wanted = USUAL_SCALING * _divisor(case.recipe, reading.rank)
    lora_alpha = max(1, round(wanted))
    after = share * lora_alpha / wanted * USUAL_SCALING / abs(reading.scaling)
    adapted = bool(case.structure.built_in_adapters)
    patterns = case.recipe.get("alpha_pattern") or case.recipe.get("rank_pattern")
    if large and after > TOO_LARGE:
        return (
            Fix("Train with a smaller learning rate; the scaling is in the usual range.", "manual"),
        )
    if not large and (abs(reading.scaling) >= USUAL_SCALING or after < TOO_SMALL):
        return (
            Fix("Train with a larger learning rate; the scaling is in the usual range.", "manual"),
        )
    title = f"to {lora_alpha}, so that the scaling is {USUAL_SCALING:g}."
    if adapted or patterns:
        where = "alpha_pattern" if patterns else "the LoraConfig of the adapter"
        return (Fix(f"Set lora_alpha, in {where}, {title}", "manual"),)
    return (Fix(f"Set lora_alpha {title}", "unsafe", (Edit("lora_alpha", lora_alpha),)),)


def _divisor(recipe: Recipe, rank: int) -> float:
    return math.sqrt(rank) if recipe.get("use_rslora") else float(rank)
