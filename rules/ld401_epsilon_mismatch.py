"""LD401: a norm whose epsilon determines its output, next to norms with another epsilon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.rules._user_weights import observed, of_batch

if TYPE_CHECKING:
    from lora_doctor.rule_api import EpsilonEffect, NormReading, Observations, Structure

#: A change of the norm's output that matters: this part of it, and this many times what rounding in
#: the same number format does.
CHANGE, ROUNDINGS = 0.01, 4


class EpsilonMismatch(Rule):
    """A norm has an epsilon as large as the variance of its input, so that another epsilon would
    give another output.

    ## What happens
    A norm divides by `sqrt(variance + epsilon)`. Where the variance is far above epsilon, epsilon
    does not matter: at a variance of 1, 1e-4 instead of 1e-6 changes the output by 0.005%, which
    bf16 cannot even represent. Otherwise the norm no longer normalises: at a variance of 1e-4 the
    same change is 29%. The output of a connector is then smaller than intended, and so are the
    gradients through it.

    ## Why
    Connectors are written with `eps=1e-4` or torch's default 1e-5 beside a language model with
    1e-6, and layers of a pretrained model get another epsilon than the one they were trained with
    when a framework builds them again, or when somebody has changed it. The value in the source
    says nothing by itself. What is compared is measured: the variance of the norm's input, and its
    output with both epsilons, in the recipe's dtype. That needs real weights: a loaded module, a
    factory, or `--depth full`. The random weights of a tiny model cannot show it. Norms of a
    pretrained model are compared with the epsilon that their own class sets. A connector is judged
    only while its weights are still at their initialisation: weights that were trained with an
    epsilon have to keep it.

    ## Versions
    All.

    ## Fix
    By hand: give the norm the epsilon of the norms around it. A smaller epsilon makes output and
    gradients larger, so it is not a remedy for NaN (LD410 is about an epsilon that is zero in
    fp16).

    ## Links
    https://docs.pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html
    """

    code = "LD401"
    name = "epsilon-mismatch"
    summary = "A norm's epsilon, and not its input, determines its output."
    depth = "tiny"
    symptoms = (Symptom(r"(?i)(?:rms_norm_eps|layer_norm_eps|epsilon|\beps\b) mismatch"),)
    descriptions = (
        Symptom(r"\beps(?:ilon)?\b.{0,80}\b1e-0?\d+ instead of .{0,30}\b1e-0?\d+"),
        Symptom(r"\bnorm\w*\b.{0,80}\b1e-0?\d+ instead of .{0,30}\b1e-0?\d+"),
        Symptom(r"\b(?:eps|epsilon)\b.{0,40}\b(?:ignored|not read|differs|hard-?coded|wrong)\b"),
    )
    examples = (
        Example(
            "broken",
            "tests.salmonn:quiet",
            {"target_modules": r"llm\..*\.(q_proj|v_proj)"},
            why="what reaches one connector has a variance of 1e-4, and so has its epsilon",
        ),
        Example(
            "healthy",
            "tests.salmonn:loud",
            {"target_modules": r"llm\..*\.(q_proj|v_proj)"},
            why="a hundred times the decoder's epsilon, and it changes nothing",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen = observed(case)
        common = _common_epsilon(seen, case.structure)
        alike: dict[tuple[float, float, bool], list[tuple[NormReading, EpsilonEffect]]] = {}
        for reading in seen.norms:
            effect = _effect(reading, common)
            if effect is not None:
                key = (reading.epsilon, effect.epsilon, reading.owner is None)
                alike.setdefault(key, []).append((reading, effect))
        for pairs in alike.values():
            pairs.sort(key=lambda pair: -pair[1].change)
            yield self._mismatch(pairs, seen)

    def _mismatch(
        self, pairs: list[tuple[NormReading, EpsilonEffect]], seen: Observations
    ) -> Finding:
        reading, effect = pairs[0]
        own, other = reading.epsilon, effect.epsilon
        batch, severity = of_batch(seen)
        whose = (
            "the decoder's norms have" if reading.owner is None else "its library builds it with"
        )
        others = sum(pair[0].count for pair in pairs) - 1
        low, middle, high = reading.variance
        measures = [
            Measurement("variance of its input", f"{low:.2g} to {high:.2g}, median {middle:.2g}",
                    f"measured on {batch}"),
            Measurement(f"output with {other:g} instead of {own:g}",
                    f"differs by {effect.change:.1%} of its norm, {effect.growth:.3g} times as "
                    "large", f"the layer was run with both, in {reading.dtype}"),
            Measurement(f"rounding in {reading.dtype}", f"{effect.rounding:.2%}",
                    "the same layer, against float32"),
        ]  # fmt: skip
        measures += [
            Measurement(f"the same for {alike.pattern}", f"differs by {change.change:.1%}, at a "
                    f"variance of {alike.variance[0]:.2g} to {alike.variance[2]:.2g}",
                    f"{alike.count} layers, the one that changes most")
            for alike, change in pairs[1:]
        ]  # fmt: skip
        larger = "larger" if own > other else "smaller"
        trained = (
            f"a checkpoint trained with {own:g} must keep it"
            if reading.owner is None
            else "weights published for this class expect it"
        )
        return self.finding(
            severity,
            f"{reading.path} ({reading.class_name}{_and(others)}) has {reading.attribute} "
            f"{own:g}, {whose} {other:g}, and the variance of its input is {low:.2g} to "
            f"{high:.2g}: with {other:g} its output would differ by {effect.change:.1%}.",
            location=Location("module", reading.path),
            evidence=tuple(measures),
            proof=Proof("measured", "variance and both outputs were measured in this run"),
            fixes=(
                Fix(
                    f"Build {('it' if not others else 'them')} with "
                    f"{reading.attribute}={other:g}; {trained}. Output and gradients of "
                    f"{reading.path} become {larger} ({effect.growth:.3g} times as large): it "
                    "is not a remedy for NaN.",
                    "manual",
                ),
            ),
        )


def _common_epsilon(seen: Observations, structure: Structure) -> float | None:
    """The epsilon of most norms of the language model."""
    towers = [f"{tower.path}." for tower in structure.towers if tower.kind == "language"]
    counts: dict[float, int] = {}
    for reading in seen.norms:
        if reading.owner is not None and any(reading.path.startswith(path) for path in towers):
            counts[reading.epsilon] = counts.get(reading.epsilon, 0) + reading.count
    return max(counts, key=lambda epsilon: counts[epsilon], default=None)


def _effect(reading: NormReading, common: float | None) -> EpsilonEffect | None:
    """What the epsilon does that this norm should have had, where that matters."""
    glue = common if reading.fresh else None  # trained with this epsilon: it keeps it
    wanted = glue if reading.owner is None else reading.expected
    effect = next((one for one in reading.effects if one.epsilon == wanted), None)
    if effect is None or effect.change < max(CHANGE, ROUNDINGS * effect.rounding):
        return None
    return effect


def _and(others: int) -> str:
    return f", and {others} more" if others else ""
