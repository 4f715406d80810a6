"""LD646: rows of the training data have more tokens than the model has positions."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    LongRow,
    Measurement,
    Proof,
    Rule,
    Symptom,
    excerpt,
)


class RowsLongerThanPositions(Rule):
    """The longest rows have more tokens than the model has positions.

    ## What happens
    Training runs until the first such row comes: `IndexError: index out of range in self`, on a GPU
    `device-side assert triggered`; or `The expanded size of the tensor must match the existing
    size`; of Whisper `Labels' sequence length 495 cannot exceed the maximum allowed length of 448
    tokens`.

    ## Why
    BERT, RoBERTa, GPT-2, OPT and others learn an embedding for each position, and there are no more
    than the config says. RoBERTa's table has two rows that are no positions: with
    `max_position_embeddings` 514, 512 tokens fit. Truncation does not help where the limit is too
    high, or where the tokenizer has none (`model_max_length`), because `truncation=True` then cuts
    nothing. Whisper's tokenizer lets 1024 tokens pass, and its decoder has 448 positions. Models
    with rotary positions take any length.

    ## Versions
    All. Found by running a tiny model with as many positions as the real one on a row of this
    length.

    ## Fix
    A limit of so many tokens: `max_length` where the rows are tokenized, or in the trainer's
    arguments. It cuts the longer rows. A transcription that is cut leaves the end of the
    recording without text: such rows are better left out (`dataset.filter`). A script that filters
    its rows is not asked.

    ## Links
    https://github.com/huggingface/transformers/issues/10832,
    https://github.com/pysentimiento/robertuito/issues/3,
    https://github.com/huggingface/transformers/pull/33196
    """

    code = "LD646"
    name = "rows-longer-than-positions"
    summary = "Rows of the training data have more tokens than the model has positions."
    depth = "tiny"
    symptoms = (
        Symptom(
            r"IndexError: index out of range in self",
            context=r"(?:position_embeddings|embed_positions|\bwpe)\(",
            weight=1,
        ),
        Symptom(r"Labels' sequence length \d+ cannot exceed the maximum allowed length"),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/few_positions",
            {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]},
            data="tests/data/rows/long_texts.jsonl",
            why="a tokenizer without a limit, and 30 positions",
        ),
        Example(
            "healthy",
            "tests/folders/few_positions",
            {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "max_length": 30},
            data="tests/data/rows/long_texts.jsonl",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/chats.jsonl",
            why="rotary positions",
        ),
        Example(
            "broken",
            "tests/folders/few_decoder_positions",
            {"target_modules": ["q_proj", "v_proj"]},
            data="tests/data/rows/transcripts.jsonl",
            why="Whisper, whose decoder takes 30 tokens of text",
        ),
        Example(
            "healthy",
            "tests/folders/few_decoder_positions",
            {"target_modules": ["q_proj", "v_proj"], "max_length": 30},
            data="tests/data/rows/transcripts.jsonl",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if _filters_rows(case):
            return
        found = case.long_row
        if found.error is None or not found.most:
            return
        part = "the model's decoder" if found.decoded else "the model"
        seen = case.supervision
        limit = seen.max_length
        yield self.finding(
            "error" if limit is not None else "warning",
            f"Row {seen.longest_row:,} has {seen.longest:,} tokens"
            + (f", cut to {found.length:,}," if found.length < seen.longest else "")
            + f" and {part} takes at most {found.most:,}: training fails with "
            f"{excerpt(found.error).rstrip('.')}"
            + ("." if limit is not None else ", unless the rows are cut when they are tokenized."),
            location=Location("recipe", "max_length"),
            evidence=(
                Measurement("longest row", f"{seen.longest:,} tokens", seen.origin),
                Measurement("max_length", "not given" if limit is None else limit, "the recipe"),
                Measurement(f"most tokens that {part} takes", found.most,
                            "a tiny model with as many positions"),
                Measurement("with more", str(found.error), found.error.where),
            ),
            proof=Proof("executed", "a tiny model with as many positions as the real one was run "
                        f"on a row of {found.length:,} tokens, and on shorter ones"),
            fixes=(_fix(found),),
        )  # fmt: skip


def _fix(found: LongRow) -> Fix:
    """A text that is cut ends before what the recording says: that is nothing to apply."""
    if found.decoded:
        return Fix(f"Leave out rows whose text has more than {found.most:,} tokens.", "manual")
    cut = Edit("max_length", found.most)
    return Fix(f"Cut the rows at {found.most:,} tokens.", "unsafe", (cut,))


def _filters_rows(case: Case) -> bool:
    """Whether a script leaves some rows out: those that are too long may be among them."""
    return case.has("program") and any(
        call.method == "filter" for call in case.program.program.calls
    )
