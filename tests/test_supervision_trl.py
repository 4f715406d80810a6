"""Rows as ``check --data`` makes them are the rows that TRL's SFTTrainer trains on.

Runs where TRL is installed; nothing else can say what it really does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.chat_models import CHATS, PAIRS, TEMPLATES, THOUGHT, chat, write_model, write_rows
from tests.supervised_training import IGNORED, codes, look

trl = pytest.importorskip("trl")
pytest.importorskip("datasets")
MERGED = [{"prompt": f"{row['prompt']} ", "completion": row["completion"].strip()} for row in PAIRS]
LONG = [chat("one two three four five six seven " * 4, "four"), *CHATS]


@pytest.mark.parametrize(
    ("template", "rows", "recipe"),
    [
        ("chatml", CHATS, {}),
        ("chatml_marked", CHATS, {"assistant_only_loss": True}),
        ("chatml_end_outside", CHATS, {"assistant_only_loss": True}),
        ("chatml", PAIRS, {}),
        ("chatml", PAIRS, {"completion_only_loss": False}),
        ("chatml", CHATS, {"completion_only_loss": True}),
        ("chatml", MERGED, {}),
        ("llama3", THOUGHT, {}),
        ("chatml_marked", LONG, {"assistant_only_loss": True, "max_length": 36}),
        ("chatml", [{"text": "The sky is blue."}, {"text": "four<|im_end|>"}], {}),
        ("qwen2.5", CHATS, {"assistant_only_loss": True}),
    ],
    ids=str,
)
def test_rows_are_those_of_the_trainer(
    template: str, rows: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any], tmp_path: Path
) -> None:
    folder = model_with(template, tmp_path)
    found = look(folder, write_rows(tmp_path / "rows.jsonl", rows), {"max_length": 512, **recipe})
    trained = batch_of(folder, rows, {"max_length": 512, **recipe}, tmp_path)
    # TRL drops rows of which the limit leaves nothing; here they are told.
    kept = found.rows_seen - found.cut_to_nothing.count
    assert len(trained) == kept
    assert found.supervised_tokens == sum(sum(flags) for flags in trained)
    for row in found.shown:
        if row.number not in found.cut_to_nothing.numbers:
            place = row.number - 1 - sum(n < row.number for n in found.cut_to_nothing.numbers)
            assert [piece.supervised for piece in row.pieces] == trained[place]


@pytest.mark.parametrize(
    ("template", "rows", "recipe", "code"),
    [
        ("chatml", CHATS, {"assistant_only_loss": True}, "LD908"),
        ("chatml", PAIRS, {"assistant_only_loss": True}, "LD903"),
        ("gemma", [{"messages": [{"role": "system", "content": "x"}, *CHATS[0]["messages"]]}], {},
         "LD919"),
    ],
)  # fmt: skip
def test_what_is_an_error_is_refused_by_the_trainer(
    template: str,
    rows: Sequence[Mapping[str, Any]],
    recipe: Mapping[str, Any],
    code: str,
    tmp_path: Path,
) -> None:
    folder = model_with(template, tmp_path)
    found = look(folder, write_rows(tmp_path / "rows.jsonl", rows), recipe)
    assert codes(found, recipe)[code] == "error"
    with pytest.raises(Exception, match=r"template|conversational|System role"):
        batch_of(folder, rows, recipe, tmp_path)


def model_with(template: str, tmp_path: Path) -> Path:
    folder = write_model(tmp_path / "model", template=template if template in TEMPLATES else None)
    if template == "qwen2.5":  # of which TRL has a copy with generation marks
        from trl.chat_template_utils import qwen2_5_chat_template

        (folder / "chat_template.jinja").write_text(qwen2_5_chat_template, encoding="utf-8")
    return folder


def batch_of(
    folder: Path, rows: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any], tmp_path: Path
) -> list[list[bool]]:
    """Which tokens of each row the trainer's own collator has labels for, padding left out."""
    from datasets import Dataset
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False, **recipe
    )
    trainer = trl.SFTTrainer(
        model=LlamaForCausalLM(AutoConfig.from_pretrained(folder)),
        args=arguments,
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    flags = []
    for labels, mask in zip(batch["labels"], batch["attention_mask"], strict=True):
        real = [label for label, one in zip(labels.tolist(), mask.tolist(), strict=True) if one]
        flags.append([False, *(label != IGNORED for label in real[1:])])
    return flags
