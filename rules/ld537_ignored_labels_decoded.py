"""LD537: a metric decodes the labels with the -100 by which they are padded."""

from __future__ import annotations

from collections.abc import Iterator

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
    labels_decoded,
)

_PROOF = Proof("read", "the function, and the parameters of the installed collator")


class IgnoredLabelsDecoded(Rule):
    """`compute_metrics` hands the labels to `batch_decode` as they are, and they hold -100.

    ## What happens
    `OverflowError: number too small to fit in target type` in the first evaluation, `can't convert
    negative int to unsigned` in older releases of tokenizers, `IndexError: piece id is out of
    range` from a sentencepiece tokenizer. The steps up to there are lost if none was saved.

    ## Why
    The collator pads the labels with -100, so that the loss ignores it, and the Trainer pads with
    -100 where batches have different lengths. No token has that id.

    Reported if the collator is one of transformers that pads labels by its default, and the
    function hands the labels to nothing else and sets them to nothing else.

    ## Versions
    All.

    ## Fix
    By hand: `labels = np.where(labels != -100, labels, tokenizer.pad_token_id)` before decoding;
    the same for the predictions of `predict_with_generate`.

    ## Links
    https://github.com/huggingface/transformers/pull/10046,
    https://github.com/huggingface/transformers/pull/22693
    """

    code = "LD537"
    name = "ignored-labels-decoded"
    summary = "A metric decodes the labels with the -100 by which they are padded."
    depth = "static"
    symptoms = (
        Symptom(
            r"OverflowError: (?:number too small to fit|can't convert negative int|out of range)"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/labels_decoded.py",
            depth="static",
            why="the labels are decoded as they are",
        ),
        Example("healthy", "tests/scripts/labels_restored.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run evaluates itself
        for place, found in labels_decoded(case.program):
            yield self.finding(
                "error",
                "compute_metrics decodes labels that are padded with -100, which is not a token "
                "id: the first evaluation fails.",
                location=Location("file", place.file, (place.line or 1) + found.line - 1),
                evidence=(Measurement("decoded", found.code, str(place)),),
                proof=_PROOF,
                fixes=(
                    Fix("Put the padding token in the place of -100 before decoding.", "manual"),
                ),
            )
