"""LD405: an untrained projection whose output has another RMS than the token embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import Case, Example, Finding, Fix, Location, Measurement, Proof, Rule
from lora_doctor.rules._user_weights import observed, of_batch

if TYPE_CHECKING:
    from lora_doctor.rule_api import ConnectionReading, Observations

#: Ratio of projected to token embeddings: above these it is told, and warned of; small ones always.
LARGE, FAR_TOO_LARGE, SMALL = 10.0, 100.0, 0.1
_TARGETS = r"llm\..*\.(q_proj|v_proj)"
_TRAINED = ["ln_speech", "ln_audio", "speech_llama_proj"]


class ProjectionScale(Rule):
    """A projection into the language model's embedding space is still at its initialisation, and
    the RMS of its output differs from that of the token embeddings it is placed among.

    ## What happens
    Nothing fails. A language model adds the output of each layer to its residual stream. Embeddings
    that are a hundred times too large hardly change from layer to layer, and are closer to overflow
    in fp16; embeddings a tenth of the right RMS are drowned out by the first layer's output.
    Training has to find the scale first: a slow start, a plateau, a connector that seems to be
    ignored.

    ## Why
    `nn.Linear` initialises its weights so that inputs with an RMS of 1 give outputs with an RMS of
    0.58. Token embeddings have an RMS of 0.02 in Llama and of about 1 in Gemma, which multiplies
    its embeddings by the square root of the hidden size. Another `std` helps only if it is the
    right one: with 768 inputs, `normal_(std=0.02)` gives 0.55, where the default gives 0.58. Both
    are measured: rows of the projection's output are found again among the embeddings that the
    language model was called with. Only projections whose weights are distributed like an
    initialisation are reported, in a loaded module or with real weights: trained projections are
    often large, and that is fine.

    ## Versions
    All.

    ## Fix
    By hand: scale the initial weights by the measured ratio, or end the projection in a norm whose
    weight starts at the RMS of the token embeddings. A ratio between 10 and 100 is common (a
    default projection before Llama) and is reported as info, not as a warning.

    ## Links
    https://docs.pytorch.org/docs/stable/nn.init.html
    """

    code = "LD405"
    name = "projection-scale"
    summary = "An untrained projection feeds embeddings whose RMS is far from the model's own."
    depth = "tiny"
    examples = (
        Example(
            "broken",
            "tests.salmonn:projection_too_large",
            {"target_modules": _TARGETS, "modules_to_save": _TRAINED},
        ),
        Example(
            "broken",
            "tests.salmonn:projection_too_small",
            {"target_modules": _TARGETS, "modules_to_save": _TRAINED},
        ),
        Example(
            "healthy",
            "tests.salmonn:projection_in_scale",
            {"target_modules": _TARGETS, "modules_to_save": _TRAINED},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen = observed(case)
        for reading in seen.connections:
            if reading.fresh and reading.reference_rms > 0:
                ratio = reading.output_rms / reading.reference_rms
                if ratio >= LARGE or ratio <= SMALL:
                    yield self._out_of_scale(reading, ratio, seen)

    def _out_of_scale(
        self, reading: ConnectionReading, ratio: float, seen: Observations
    ) -> Finding:
        batch, severity = of_batch(seen)
        if LARGE <= ratio < FAR_TOO_LARGE:
            severity = "info"
        comparison = (
            f"{ratio:.3g} times the RMS of" if ratio > 1 else f"1/{1 / ratio:.3g} of the RMS of"
        )
        return self.finding(
            severity,
            f"{reading.path} ({reading.class_name}), still at its initialisation, feeds "
            f"{reading.into} embeddings with {comparison} its token embeddings.",
            location=Location("module", reading.path),
            evidence=(
                Measurement(f"RMS of the output of {reading.path}",
                        f"{reading.output_rms:.3g}", f"measured on {batch}, before training"),
                Measurement(f"RMS of the output of {reading.reference}",
                        f"{reading.reference_rms:.3g}", "measured on the same batch"),
                Measurement("ratio", f"{ratio:.3g}", f"info from {LARGE:g}, warning from "
                                                     f"{FAR_TOO_LARGE:g} and below {SMALL:g}"),
                Measurement("its weights", reading.fresh, "tested: moments, and spread over rows"),
                Measurement("trained", reading.trainable, "its parameters under this recipe"),
            ),
            proof=Proof("measured", f"its rows were found in the inputs_embeds of {reading.into}"),
            fixes=(
                Fix(
                    "After building the model, scale its initial weights to the RMS of the "
                    "token embeddings: `with torch.no_grad(): "
                    f"{reading.path}.weight.mul_({1 / ratio:.3g})`, and its bias likewise. Do "
                    "this only before training starts.",
                    "manual",
                ),
            ),
        )  # fmt: skip
