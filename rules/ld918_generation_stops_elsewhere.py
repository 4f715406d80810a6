"""LD918: answers end with a token at which generation does not stop."""

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
    """Generation does not stop at the token that ends every answer in training.

    ## What happens
    The model learns to end its answers, but generation ignores the token and continues, usually
    inventing the user's next turn.

    ## Why
    A chat template is used with a base model, whose `generation_config.json` and tokenizer name
    another end-of-text token.

    ## Versions
    All. Newer releases of the Trainer write the tokenizer's `eos_token` into the generation config,
    which helps if that is the token.

    ## Fix
    Set the token that ends answers as `eos_token` (TRL's `eos_token`), so that it is saved with the
    model. That changes the tokenizer and generation.

    ## Links
    https://huggingface.co/docs/trl/sft_trainer
    """

    code = "LD918"
    name = "generation-stops-elsewhere"
    summary = "Answers end with a token at which generation does not stop."
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
    told_as = (
        "After fine-tuning the model does not stop generating.",
        "Generation never ends, it continues to the maximum number of tokens.",
        "The fine-tuned model repeats its answer again and again.",
        "The model goes on with the next question of the user after its answer.",
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
                f"Answers end with {end}, but generation stops only at {', '.join(stops)}: it "
                "would continue after every answer.",
                location=Location("recipe", "eos_token"),
                evidence=(
                    looked_at(found),
                    Measurement("answers end with", end, f"{found.end_trained.count:,} rows"),
                    Measurement(
                        "generation stops at", stops, "generation_config.json, the tokenizer"
                    ),
                ),
                proof=proof(found),
                fixes=(Fix(f"Set eos_token to {end}.", "unsafe", (Edit("eos_token", end),)),),
            ),
            found.end_trained,
        )
