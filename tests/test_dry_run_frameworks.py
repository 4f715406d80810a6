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


def test_a_classifier_is_evaluated_saved_and_loaded_again(chat: Path) -> None:
    """PEFT writes ``modules_to_save`` into the user's config: that is no setting of theirs."""
    report = run(
        chat,
        """
import numpy
from peft import AutoPeftModelForSequenceClassification, get_peft_model
from transformers import (
    AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments
)

tokenizer = AutoTokenizer.from_pretrained("model")
model = AutoModelForSequenceClassification.from_pretrained("model", num_labels=3)
model.config.pad_token_id = tokenizer.pad_token_id
model = get_peft_model(
    model, LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["q_proj", "v_proj"])
)
rows = Dataset.from_list([{"text": f"hello {n}", "labels": n % 3} for n in range(1000)])
rows = rows.map(lambda row: tokenizer(row["text"]), num_proc=2, remove_columns=["text"])


def accuracy(predicted):
    assert predicted.predictions.shape[1] == 3
    return {"accuracy": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


trainer = Trainer(
    model,
    TrainingArguments(
        "out", per_device_train_batch_size=4, eval_strategy="steps", eval_steps=50, save_steps=50,
        load_best_model_at_end=True, metric_for_best_model="accuracy",
    ),
    train_dataset=rows,
    eval_dataset=rows.select(range(900)),
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=accuracy,
)
trainer.train(resume_from_checkpoint=True)
trainer.save_model("out/final")
AutoPeftModelForSequenceClassification.from_pretrained("out/final", num_labels=3)
""",
    )
    assert report["verdict"] == "healthy"
    assert report["recipe"]["values"]["modules_to_save"] is None
    assert "resume_from_checkpoint was left out" in " ".join(n["text"] for n in report["notes"])


def test_four_bits_by_accelerate_with_accumulation(chat: Path) -> None:
    pytest.importorskip("bitsandbytes")
    report = run(
        chat,
        """
import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch.utils.data import DataLoader
from transformers import BitsAndBytesConfig

accelerator = Accelerator(gradient_accumulation_steps=2)
four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(
    "model", quantization_config=four, device_map={"": 0}
)
model = prepare_model_for_kbit_training(model)
model = get_peft_model(
    model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
)
rows = [torch.arange(3 + n, 19 + n) for n in range(300)]
loader = DataLoader(
    rows, batch_size=2, collate_fn=lambda r: {"input_ids": torch.stack(r), "labels": torch.stack(r)}
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for batch in loader:
    with accelerator.accumulate(model):
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
accelerator.unwrap_model(model).save_pretrained("adapter")
accelerator.save_state("state")
PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("model"), "adapter")
""",
    )
    assert report["verdict"] == "healthy"
    assert report["recipe"]["values"]["load_in_4bit"] is True
    assert report["dry_run"]["ran"]["quantized"] == "True"


def test_an_adapter_of_the_real_width_is_trained_on(chat: Path) -> None:
    (chat / "adapter").mkdir()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 32,
        "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "model",
    }  # fmt: skip
    (chat / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    report = run(
        chat,
        """
import torch
from peft import PeftModel
from torch.utils.data import DataLoader

model = PeftModel.from_pretrained(
    AutoModelForCausalLM.from_pretrained("model"), "adapter", is_trainable=True
)
model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
step = 0
while step < 500:
    for ids in DataLoader([torch.arange(3 + n, 19 + n) for n in range(300)], batch_size=2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
model.save_pretrained("out")
""",
    )
    assert report["recipe"]["values"]["r"] == 16
    assert any(note["text"].startswith("not run: the loop goes on") for note in report["notes"])


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
