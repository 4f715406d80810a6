"""LD112: the adapter of a class without input embeddings cannot be saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

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
    own_vocabulary,
)
from lora_doctor.static.installed.saved_embeddings import saves_resized_embeddings

if TYPE_CHECKING:
    from lora_doctor.rule_api import ErrorReport

#: Frames of PEFT's saving.
_SAVING = r"get_peft_model_state_dict\b"


class SavingWithoutInputEmbeddings(Rule):
    """Saving the adapter asks the model for its input embeddings, and `get_input_embeddings`
    raises.

    ## What happens
    Training runs, and the first checkpoint fails with `NotImplementedError` (`get_input_embeddings
    not auto-handled for Wav2Vec2Model`): nothing is saved. Affected are CTC models, which have an
    output vocabulary and no token embeddings (Wav2Vec2, HuBERT, WavLM, Wav2Vec2-BERT).

    ## Why
    PEFT saves the embeddings with the adapter where they may have changed: where `lm_head` is a
    target (`all-linear` includes it), and where the vocabulary is another than the checkpoint's
    (`from_pretrained(..., vocab_size=len(tokenizer))`). It then asks for the input embeddings too.

    ## Versions
    `lm_head` as a target: all versions of PEFT. Another vocabulary: PEFT 0.9 and later.

    ## Fix
    By hand: let `get_input_embeddings` of the class return None before the adapter is added. PEFT
    then saves the adapter and `modules_to_save` as usual.

    ## Links
    https://huggingface.co/docs/transformers/tasks/asr
    """

    code = "LD112"
    name = "saving-without-input-embeddings"
    summary = "Saving the adapter asks for input embeddings, and the class has none."
    depth = "tiny"
    symptoms = (
        Symptom(r"get_input_embeddings` not auto.handled", context=_SAVING, weight=1),
        Symptom(r"\bNotImplementedError\b", raised_in="modeling_", context=_SAVING),
    )
    examples = (
        Example(
            "broken",
            "arch:wav2vec2",
            {"model_class": "AutoModelForCTC", "target_modules": ["q_proj", "v_proj", "lm_head"]},
            why="an adapter on the output head",
        ),
        Example(
            "healthy",
            "arch:wav2vec2",
            {
                "model_class": "AutoModelForCTC",
                "target_modules": ["q_proj", "v_proj"],
                "modules_to_save": ["lm_head"],
            },
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        asked = case.structure.input_embeddings_error
        if asked is None:
            return
        saved = case.verification.check("save-reload")
        if saved is not None and saved.status == "failed" and _same(asked, saved.detail):
            yield self._found(
                case,
                "Saving the adapter fails: PEFT takes the output head among the targets for an "
                "embedding, asks for the input embeddings as well, and "
                f"{case.structure.model_class}.get_input_embeddings raises {asked.type}.",
                (Measurement("save_pretrained", saved.detail, "tiny model, installed PEFT"),),
                proof=Proof("executed", "the adapter was trained and saved on a tiny model"),
                explains=("save-reload",),
            )
        elif saves_resized_embeddings() and case.has("program"):
            yield from self._resized(case, asked)

    def _resized(self, case: Case, asked: ErrorReport) -> Iterator[Finding]:
        """The script loads the model with a vocabulary of its own."""
        own, size = own_vocabulary(case.program), case.static.config.get("vocab_size")
        if own is None or (own.size is not None and own.size == size):
            return
        differs = own.size is not None and size is not None
        fails = (
            "saving the adapter fails: PEFT saves the embeddings as well, and "
            f"{case.structure.model_class}.get_input_embeddings raises {asked.type}."
        )
        yield self._found(
            case,
            f"The vocabulary is not the checkpoint's ({own.size} instead of {size}): {fails}"
            if differs
            else f"Where this vocabulary has another size than the checkpoint's, {fails}",
            (
                Measurement("vocab_size of the script", own.size or "computed by it",
                            f"from_pretrained, line {own.place.line}"),
                Measurement("of the checkpoint", size or "the default of its class", "config.json"),
                Measurement("get_input_embeddings", f"{asked.type}: {asked.message}",
                            "full-size model, meta device"),
            ),
            location=Location("file", own.place.file, own.place.line),
            severity="error" if differs else "warning",
            proof=Proof("measured", "the class was asked for its embeddings, and raised"),
        )  # fmt: skip

    def _found(
        self, case: Case, message: str, evidence: tuple[Measurement, ...], **more: Any
    ) -> Finding:
        name = case.structure.model_class
        return self.finding(
            more.pop("severity", "error"),
            message,
            location=more.pop("location", Location("module", name)),
            evidence=evidence,
            fixes=(
                Fix(
                    f"Before the adapter is added: {name}.get_input_embeddings = lambda self: None",
                    "manual",
                ),
            ),
            **more,
        )


def _same(asked: ErrorReport, detail: str) -> bool:
    return asked.type in detail and (asked.message or "") in detail
