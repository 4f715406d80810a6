"""LD931: rows have fewer labels than tokens."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Location, Measurement, Proof, Rule
from lora_doctor.rules._training_signal import signal

_SOURCE = "rows spread over the training set, beside what the collator made of them"
_SCRIPT = """\
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForTokenClassification, AutoTokenizer, BertConfig, DataCollatorForTokenClassification,
    Trainer, TrainingArguments,
)

config = BertConfig(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=64, num_labels=3,
)
model = get_peft_model(
    AutoModelForTokenClassification.from_config(config),
    LoraConfig(r=4, target_modules=["query", "value"], task_type="TOKEN_CLS"),
)
tokenizer = AutoTokenizer.from_pretrained("tests/folders/chat_model")
words = ["one", "two", "of", "colourful", "answers", "in", "eight"]


def row(number):
    named = [words[(number + place) % 7] for place in range(4)]
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in named]
    tags = [LABELS for place, tokens in enumerate(ids)]
    return {"input_ids": sum(ids, []), "labels": [tag for part in tags for tag in part]}


Trainer(
    model,
    TrainingArguments("out", per_device_train_batch_size=4, max_steps=20, report_to=[]),
    train_dataset=[row(number) for number in range(64)],
    data_collator=DataCollatorForTokenClassification(tokenizer),
).train()
"""


class LabelsFewerThanTokens(Rule):
    """Rows have fewer labels than tokens, and the collator pads the labels at the end.

    ## What happens
    No error is raised, and the loss falls. But after the first word that is split into several
    tokens, each label is on the wrong token, and the last tokens have none: accuracy stays low, or
    the model learns the order of the labels.

    ## Why
    A dataset for token classification (NER) has one label for each word. The tokenizer splits words
    into several tokens and adds special tokens, and does not know the labels.
    `DataCollatorForTokenClassification` pads the labels of every row with -100.

    ## Versions
    All.

    ## Fix
    Tokenize the words with `is_split_into_words=True` and give each token the label of its word by
    `word_ids()`, -100 for special tokens. It changes what is trained.

    ## Links
    https://github.com/huggingface/transformers/pull/19940,
    https://huggingface.co/docs/transformers/tasks/token_classification
    """

    code = "LD931"
    name = "labels-fewer-than-tokens"
    summary = "Rows have fewer labels than tokens, so that labels are on the wrong tokens."
    depth = "static"
    told_as = ("labels and input_ids have different lengths.",)
    examples = (
        Example(
            "broken",
            "",
            script=_SCRIPT.replace("LABELS", "[place % 3]"),
            why="a label for each word, and several tokens in some",
        ),
        Example(
            "healthy",
            "",
            script=_SCRIPT.replace("LABELS", "[place % 3] + [-100] * (len(tokens) - 1)"),
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = signal(case).filled_labels
        if found is None or not found.short:
            return
        yield self.finding(
            "warning",
            f"{found.short} of {found.rows} rows have fewer labels than tokens (one of them "
            f"{found.labels} labels for {found.tokens} tokens), so labels belong to other tokens.",
            location=Location("environment", "training data"),
            evidence=(
                Measurement("rows with fewer labels than tokens", found.short, _SOURCE),
                Measurement("labels of the first such row", found.labels, _SOURCE),
                Measurement("its tokens", found.tokens, _SOURCE),
            ),
            proof=Proof("measured", _SOURCE),
            fixes=(
                Fix(
                    "Tokenize with is_split_into_words=True, and label tokens by word_ids().",
                    "manual",
                ),
            ),
        )
