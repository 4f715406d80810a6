"""LD905: no token ends the answers."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Measurement,
    Rule,
    Symptom,
)
from lora_doctor.rules._supervision import (
    about,
    is_few,
    looked_at,
    loss_on,
    of_data,
    portion,
    proof,
    which,
)


class EndOfAnswerMissing(Rule):
    """The rows end with the last word of the answer, without an end-of-text or end-of-turn token.

    ## What happens
    The model learns answers but not where they end: generation runs up to its limit.

    ## Why
    Tokenizers of decoder models do not append an end-of-text token. TRL appends one to texts and
    completions; a plain `Trainer`, a `formatting_func` and templates without an end-of-turn token
    do not.

    ## Versions
    All.

    ## Fix
    Append `tokenizer.eos_token` to each answer, or use a template that ends its turns. Continued
    pretraining on plain text needs none.

    ## Links
    https://huggingface.co/docs/trl/sft_trainer
    """

    code = "LD905"
    name = "end-of-answer-missing"
    summary = "No token ends the answers."
    depth = "meta"
    descriptions = (
        Symptom(
            r"\b(?:never|not|doesn.t|does not|won.t|fails? to) (?:produc|generat|emit"
            r"|output|learn|predict)\w*.{0,30}\b(?:eos|end.of.(?:turn|text|sequence)"
            r"|stop token)"
        ),
        Symptom(
            r"\b(?:outputs?|generat\w+|answers?|model|responses?)\b.{0,40}"
            r"\b(?:never (?:ends?|stops?|terminates?)|(?:does not|doesn.t"
            r"|won.t) (?:stop|end|terminate)|endless|without stopping|run on)",
            weight=-1,
        ),
    )
    told_as = ("The model never learned to stop: the training texts have no EOS token.",)
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "chat_template_path": "tests/data/templates/chatml_no_end.jinja",
            },
            data="tests/data/rows/chats.jsonl",
            depth="meta",
            why="the template ends no turn of the assistant",
        ),
        Example(
            "broken",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"], "data_collator": "DataCollatorForLanguageModeling"},
            data="tests/data/rows/pairs.jsonl",
            depth="meta",
            why="a plain Trainer adds no end to texts",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/pairs.jsonl",
            depth="meta",
            why="TRL adds it",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.supervision
        rows = found.end_missing
        if not rows:
            return
        # Running text, all of it supervised, needs no end.
        answers = found.prompts > 0 or found.everything.count < found.judged
        yield about(
            self.finding(
                "warning" if answers and not is_few(rows, found) else "info",
                f"{portion(rows, found)} have no token that ends the "
                f"answer{('' if answers else ' or the text')}: the model does not learn to "
                "stop.",
                location=of_data(case),
                evidence=(
                    looked_at(found),
                    loss_on(found),
                    Measurement("end-of-answer token", found.tokenizer.end_name, "the tokenizer"),
                    Measurement(
                        "rows without it", rows.count, "at the end of the supervised tokens"
                    ),
                    Measurement("rows with it", found.end_trained.count, "the same place"),
                    which(rows),
                ),
                proof=proof(found),
                fixes=(
                    Fix(
                        f"Append {found.tokenizer.end_name} to each answer before it is tokenized.",
                        "manual",
                    ),
                ),
            ),
            rows,
        )
