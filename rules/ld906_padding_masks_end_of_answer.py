"""LD906: the padding token also ends answers, and is masked there as padding."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.rules._supervision import about, looked_at, portion, proof


class PaddingMasksEndOfAnswer(Rule):
    """`pad_token` is the end-of-text token, and the collator masks every padding token in the
    labels, also the one that ends the answer.

    ## What happens
    The end token is never trained on, so the model never learns to stop.

    ## Why
    `tokenizer.pad_token = tokenizer.eos_token` is in many tutorials. transformers'
    `DataCollatorForLanguageModeling` sets labels to -100 by token id. TRL's collator pads by
    position and does not.

    ## Versions
    All.

    ## Fix
    A separate padding token: one that is in the vocabulary and does not occur in the rows. Which
    one does not matter, because it is masked in loss and attention; but the labels of the rows
    change.

    ## Links
    https://github.com/huggingface/transformers/issues/23230
    """

    code = "LD906"
    name = "padding-masks-end-of-answer"
    summary = "The padding token also ends answers, and is masked there as padding."
    depth = "meta"
    descriptions = (
        Symptom(
            r"\b(?:never|not|doesn.t|does not|won.t|fails? to) (?:produc|generat|emit"
            r"|output|learn|predict)\w*.{0,30}\b(?:eos|end.of.(?:turn|text|sequence)"
            r"|stop token)",
            weight=1,
        ),
        Symptom(
            r"\b(?:outputs?|generat\w+|answers?|model|responses?)\b.{0,40}"
            r"\b(?:never (?:ends?|stops?|terminates?)|(?:does not|doesn.t"
            r"|won.t) (?:stop|end|terminate)|endless|without stopping|run on)",
            weight=-1,
        ),
        Symptom(
            r"\A(?=.*\bpad\w*)(?=.*\beos\w*)(?=.*\b(?:mask(?:s|ed|ing)|same|never|forget\w*|en"
            r"dless\w*|(?:not|n't) (?:seem to )?(?:be )?(?:stop|end|generat|emit|learn)\w*)\b)"
            r".+",
            unless=r"\b(?:no|without)\b.{0,12}\bmask|\bunmasked\b",
        ),
    )
    told_as = (
        "The pad token is the EOS token, and the model does not generate EOS after training.",
        "With pad_token == eos_token the model does not learn when to stop.",
    )
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model_padded_by_end",
            {"target_modules": ["q_proj"], "data_collator": "DataCollatorForLanguageModeling"},
            data="tests/data/rows/chats.jsonl",
            why="the collator of transformers masks every <|im_end|>",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"], "data_collator": "DataCollatorForLanguageModeling"},
            data="tests/data/rows/chats.jsonl",
            depth="meta",
            why="<pad> is a token of its own",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.supervision
        rows, facts = found.end_masked_as_pad, found.tokenizer
        unknown = not found.executed and case.recipe.get("data_collator") is None
        possible = unknown and facts.pad_id is not None and facts.pad_id in facts.end_ids
        if not rows and not (possible and found.end_trained):
            return
        pad = facts.name(facts.pad_id)
        told = (
            f"{pad} ends the answer in {portion(rows, found)}, but is also the padding token "
            "and masked as padding: the model does not learn where an answer ends."
            if rows
            else f"{pad} is both the padding token and the token that ends answers. TRL's "
            "collator pads by position; a collator that masks by token id "
            "(DataCollatorForLanguageModeling of transformers) would mask it at the end "
            "of every answer."
        )
        free = next(iter(facts.unused_special_tokens), "")
        fix = (
            Fix(f"Pad with {free}, which occurs in no row.", "unsafe", (Edit("pad_token", free),))
            if free
            else Fix("Use a separate padding token.", "manual")
        )
        yield about(
            self.finding(
                "warning" if rows else "info",
                told,
                location=Location("recipe", "pad_token"),
                evidence=(
                    looked_at(found),
                    Measurement("padding token", pad, "the tokenizer"),
                    Measurement("end-of-answer token", facts.end_name, "template or tokenizer"),
                    Measurement("rows in which it is masked", rows.count, found.loss_from),
                ),
                proof=proof(found)
                if rows
                else Proof("inferred", "the tokenizer; which collator makes the labels is unknown"),
                fixes=(fix,),
            ),
            rows,
        )
