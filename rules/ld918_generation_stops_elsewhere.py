"""LD918: answers end in a token at which generation does not stop."""

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
    Rule,
    Symptom,
)
from lora_doctor.rules._supervision import about, looked_at, proof


class GenerationStopsElsewhere(Rule):
    """The token that ends every answer in training is none at which generation stops.

    ## What happens
    The model learns to end its answers, and nobody listens: generation goes on behind the token,
    usually with a turn of the user made up.

    ## Why
    A chat template on a base model, whose `generation_config.json` and tokenizer name its own
    end-of-text token.

    ## Versions
    All. Newer releases of the Trainer write the tokenizer's `eos_token` into the generation config,
    which helps where that is the token.

    ## Fix
    The token that ends answers as `eos_token` (TRL's `eos_token`), so that it is saved with the
    model. It changes tokenizer and generation.

    ## Links
    https://huggingface.co/docs/trl/sft_trainer
    """

    code = "LD918"
    name = "generation-stops-elsewhere"
    summary = "Answers end in a token at which generation does not stop."
    depth = "meta"
    descriptions = (
        Symptom(
            r"\b(?:never|not|doesn.t|does not|won.t|fails? to) (?:produc|generat|emit"
            r"|output|learn|predict)\w*.{0,30}\b(?:eos|end.of.(?:turn|text|sequence)"
            r"|stop token)",
            weight=-1,
        ),
        Symptom(
            r"\b(?:outputs?|generat\w+|answers?|model|responses?)\b.{0,40}"
            r"\b(?:never (?:ends?|stops?|terminates?)|(?:does not|doesn.t"
            r"|won.t) (?:stop|end|terminate)|endless|without stopping|run on)"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model_stops_elsewhere",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/chats.jsonl",
            why="turns end in <|im_end|>, generation at <|endoftext|>",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model_stops_elsewhere",
            {"target_modules": ["q_proj"], "eos_token": "<|im_end|>"},
            data="tests/data/rows/chats.jsonl",
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.supervision
        facts, ends = found.tokenizer, found.end_tokens
        if not ends or not facts.stop_known or set(ends) & set(facts.stop_ids):
            return
        end = facts.name(ends[0])
        stops = [facts.name(one) for one in facts.stop_ids]
        yield about(
            self.finding(
                "warning",
                f"Answers end in {end}, and generation stops at {', '.join(stops)} only: it would "
                f"go on "
                "behind every answer.",
                location=Location("recipe", "eos_token"),
                evidence=(
                    looked_at(found),
                    Measurement("answers end in", end, f"{found.end_trained.count:,} rows"),
                    Measurement(
                        "generation stops at", stops, "generation_config.json, the tokenizer"
                    ),
                ),
                proof=proof(found),
                fixes=(Fix(f"Name {end} as eos_token.", "unsafe", (Edit("eos_token", end),)),),
            ),
            found.end_trained,
        )
