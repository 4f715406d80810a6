"""Dry runs of what needs more than the stacks have: TRL, datasets. See `nox -s dry_run`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_dry_run import SCRIPTS, dry_run, place, rules

__all__ = ["place"]  # the fixture

pytest.importorskip("trl")
pytest.importorskip("datasets")

_IMPORTS = """
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
"""
_LORA = 'LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")'


@pytest.fixture
def chat(place: Path) -> Path:
    """The same folder with a tokenizer and a file of conversations."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    ids = {token: number for number, token in enumerate([*special, *letters])}
    made = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>",
    )  # fmt: skip
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    )
    tokenizer.save_pretrained(str(place / "model"))
    with open(place / "chat.jsonl", "w", encoding="utf-8") as file:
        for number in range(3000):
            turns = [("user", f"hello {number}"), ("assistant", "the quick fox")]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    return place


def run(place: Path, script: str, *words: str, code: int = 0) -> dict[str, Any]:
    (place / "script.py").write_text(_IMPORTS + script)
    return dry_run(place, sys.executable, "script.py", *words, code=code)


def test_sft_from_the_command_line_keeps_the_lengths_of_its_sets(chat: Path) -> None:
    """3000 rows of which 500 are held out, and 64 are tokenized: the script does not notice."""
    report = run(
        chat,
        f"""
from transformers import HfArgumentParser
from trl import SFTConfig, SFTTrainer

(training,) = HfArgumentParser((SFTConfig,)).parse_args_into_dataclasses()
data = load_dataset("json", data_files="chat.jsonl", split="train").train_test_split(test_size=500)
assert len(data["train"].map(lambda row: {{"length": len(row["messages"])}})) == 2500
trainer = SFTTrainer(
    model="model", args=training, train_dataset=data["train"], eval_dataset=data["test"],
    processing_class=AutoTokenizer.from_pretrained("model"), peft_config={_LORA},
)
trainer.train()
assert "eval_loss" in trainer.evaluate()
trainer.save_model()
trainer.push_to_hub()
""",
        "--output_dir", "out", "--per_device_train_batch_size", "2", "--bf16", "True",
        "--push_to_hub", "--report_to", "wandb",
    )  # fmt: skip
    made = report["dry_run"]
    assert (made["trained_by"], made["planned_steps"], made["rows"]) == ("SFTTrainer", 3750, 2500)
    assert report["verdict"] == "healthy"
    assert made["origins"]["per_device_train_batch_size"] == "command line"


def test_a_template_without_generation_marks_is_the_users_own_error(chat: Path) -> None:
    report = run(
        chat,
        f"""
from trl import SFTConfig, SFTTrainer

trainer = SFTTrainer(
    model="model",
    args=SFTConfig(output_dir="out", assistant_only_loss=True),
    train_dataset=load_dataset("json", data_files="chat.jsonl", split="train"),
    processing_class=AutoTokenizer.from_pretrained("model"),
    peft_config={_LORA},
)
trainer.train()
""",
        code=1,
    )
    assert rules(report)[0] == "LD002"
    assert "generation" in report["findings"][0]["message"]
    assert report["findings"][0]["location"]["path"] == "script.py"


def test_dpo_whose_forward_has_no_labels(chat: Path) -> None:
    report = run(
        chat,
        f"""
from trl import DPOConfig, DPOTrainer

rows = [{{"prompt": f"hi {{n}} ", "chosen": "the fox", "rejected": "fox"}} for n in range(300)]
trainer = DPOTrainer(
    model=AutoModelForCausalLM.from_pretrained("model", dtype="bfloat16"),
    args=DPOConfig(output_dir="out", per_device_train_batch_size=2, max_steps=100),
    train_dataset=Dataset.from_list(rows),
    processing_class=AutoTokenizer.from_pretrained("model"),
    peft_config={_LORA},
)
trainer.train()
trainer.save_model("out")
""",
    )
    assert report["verdict"] == "healthy"
    assert report["dry_run"]["trained_by"] == "DPOTrainer"


def test_a_data_set_that_cannot_be_had_is_told_with_its_line(chat: Path) -> None:
    report = run(chat, '\n\nload_dataset("json", data_files="nowhere.jsonl")\n', code=2)
    assert "script.py:7" in report["undetermined"]
    assert not report["findings"]


def notebook(path: Path, *cells: str) -> None:
    """A notebook as Jupyter saves one."""
    made = [
        {"cell_type": "code", "execution_count": None, "id": f"c{number}", "metadata": {},
         "outputs": [], "source": cell}
        for number, cell in enumerate(cells)
    ]  # fmt: skip
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.write_text(
        json.dumps(
            {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        )
    )


def test_a_notebook_is_run_with_a_guest_in_its_kernel(place: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    script = (SCRIPTS / "bare_loop.py").read_text()
    notebook(place / "train.ipynb", "print('first cell')", script)
    report = dry_run(place, "train.ipynb", code=1)
    assert "LD503" in rules(report)
    assert report["dry_run"]["origins"]["r"].startswith("cell [2]:")


def test_an_exception_in_a_cell_is_told_with_its_number(place: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook(place / "train.ipynb", "rows = []", "def first():\n    return rows[0]\n", "first()")
    report = dry_run(place, "train.ipynb", code=1)
    [finding] = report["findings"]
    assert (finding["rule"], finding["location"]["path"], finding["location"]["line"]) == (
        "LD002", "cell [2]", 2,
    )  # fmt: skip
