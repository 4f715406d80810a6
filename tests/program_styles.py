"""Training scripts and notebooks in the styles of public ones, each with a broken twin.

A style is the text of a healthy one and a replacement that breaks it; what ``fix --apply`` writes
has to be the healthy text again, byte for byte.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Style:
    """``healthy``: the text; ``right`` in it becomes ``wrong``, which is ``rule`` in the line of
    ``at`` (of ``wrong`` where that is empty)."""

    name: str
    healthy: str
    right: str
    wrong: str
    rule: str
    at: str = ""

    @property
    def broken(self) -> str:
        assert self.healthy.count(self.right) == 1, self.name
        return self.healthy.replace(self.right, self.wrong)

    @property
    def line(self) -> int:
        """The line of the broken one in which the mistake is, from 1."""
        return self.broken[: self.broken.index(self.at or self.wrong)].count("\n") + 1


_QLORA = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

model_id = "org/model"
bnb_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(model_id, quantization_config=bnb_config)
config = LoraConfig(r=64, lora_alpha=16, target_modules=["q_proj", "v_proj"])
model = prepare_model_for_kbit_training(model)  # casts the norms
model = get_peft_model(model, config)
model.print_trainable_parameters()
"""
_MAIN = '''\
#!/usr/bin/env python
"""Fine-tune."""
import argparse
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
from peft import LoraConfig, TaskType, get_peft_model


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=str, default="org/model")
    parser.add_argument("--lora-r", type=int, default=8)
    parser.add_argument("--fp16", action="store_true")
    return parser.parse_args()


def main():
    args = parse_args()
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2)
    peft_config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=args.lora_r,
        lora_alpha=args.lora_r * 2,
        target_modules=["query", "value"],
    )
    model = get_peft_model(model, peft_config)
    training_args = TrainingArguments(
        output_dir="out",
        per_device_train_batch_size=4,
        fp16=args.fp16,
    )
    trainer = Trainer(model=model, args=training_args, train_dataset=[])
    trainer.train()


if __name__ == "__main__":
    main()
'''
_CLASS = """\
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model


class Experiment:
    lora = dict(r=8, lora_alpha=16, target_modules=["q_proj"])

    def __init__(self, name):
        self.name = name
        self.config = LoraConfig(**self.lora)

    def fit(self, batches):
        model = hf.AutoModelForCausalLM.from_pretrained(self.name)
        model = get_peft_model(model, self.config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


Experiment("org/model").fit([])
"""
_STARS = """\
from transformers import *
from peft import *

model = prepare_model_for_kbit_training(
    AutoModelForCausalLM.from_pretrained(
        "org/model", quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
)
model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", lora_dropout=0.1))
"""
_ALIASES = """\
import peft as P, transformers as T
CFG = {'r': 16, 'lora_alpha': 32, 'target_modules': ['q_proj', 'v_proj']}
base = T.AutoModelForCausalLM.from_pretrained('org/model')
net = P.get_peft_model(base, P.LoraConfig(task_type='CAUSAL_LM', bias='none', **CFG))
"""
_PARSER = """\
from dataclasses import dataclass, field

from peft import LoraConfig
from transformers import AutoModelForCausalLM, HfArgumentParser
from trl import SFTConfig, SFTTrainer


@dataclass
class ScriptArguments:
    model_name: str = field(default="org/model", metadata={"help": "the model"})
    lora_r: int = field(default=8)


parser = HfArgumentParser((ScriptArguments, SFTConfig))
script_args, training_args = parser.parse_args_into_dataclasses()
model = AutoModelForCausalLM.from_pretrained(script_args.model_name)
peft_config = LoraConfig(lora_alpha=32, r=script_args.lora_r, target_modules=["q_proj"])
trainer = SFTTrainer(
    model=model,
    args=training_args,
    peft_config=peft_config,
    train_dataset=[],
)
trainer.train()
"""
_CLICK = """\
import click
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


@click.command()
@click.option("--model-name", default="org/model", help="The model.")
@click.option("-r", "--rank", type=int, default=8)
def train(model_name, rank):
    model = AutoModelForCausalLM.from_pretrained(model_name)
    model = get_peft_model(model, LoraConfig(r=rank, target_modules=["q_proj"]))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for batch in []:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    train()
"""
_TYPER = """\
import typer
from peft import PeftModel
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


def main(name: str = typer.Option("org/model"), adapter: str = "out/checkpoint-10"):
    base = AutoModelForCausalLM.from_pretrained(name)
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    trainer = Trainer(model, TrainingArguments("out"), train_dataset=[])
    trainer.train()


typer.run(main)
"""
_TABS = (
    "from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training as prepare\n"
    "from transformers import AutoModelForCausalLM, BitsAndBytesConfig\n\n"
    "def load(name):\n"
    "\tquantized = BitsAndBytesConfig(load_in_4bit = True)\n"
    "\treturn AutoModelForCausalLM.from_pretrained(name, quantization_config = quantized)\n\n"
    "def build():\n"
    "\tmodel = load('org/model')\n"
    "\tmodel = prepare(model)\n"
    "\tmodel = get_peft_model(model, LoraConfig(r = 4, target_modules = ['q_proj']))\n"
    "\treturn model\n\n"
    "build()\n"
)
_CRLF = (
    "# -*- coding: utf-8 -*-\r\n"
    "# Feinabstimmung für Größe und 漢字\r\n"
    "from peft import LoraConfig, get_peft_model\r\n"
    "from transformers import AutoModelForCausalLM\r\n\r\n"
    "model = AutoModelForCausalLM.from_pretrained('org/model')  # das Modell, größer\r\n"
    "model = get_peft_model(\r\n"
    "    model,\r\n"
    "    LoraConfig(\r\n"
    "        r=8,  # Rang ≤ 16\r\n"
    "        lora_alpha=16,  # Stärke\r\n"
    "        target_modules=['q_proj'],\r\n"
    "    ),\r\n"
    ")\r\n"
)
_DECORATED = """\
import functools

from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


def logged(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)

    return inner


class Run:
    @staticmethod
    def resume(path="out"):
        return PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained("org/model"),
            path,
            is_trainable=True,
        )


@logged
def train():
    trainer = Trainer(model=Run.resume(), args=TrainingArguments("out"), train_dataset=[])
    trainer.train()


if __name__ == "__main__": train()
"""
_SPACED = """\
from unsloth import FastLanguageModel
from peft import LoraConfig
max_seq_length = 2048 # Choose any!
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name = "org/model",
    max_seq_length = max_seq_length,
    load_in_4bit = False,
)
config = LoraConfig(
    r = 16, # Choose any number > 0 !
    target_modules = ["q_proj", "k_proj", "v_proj", "o_proj",],
    lora_alpha = 16,
    lora_dropout = 0, # Supports any
)
"""

SCRIPTS = (
    Style(
        "qlora", _QLORA,
        "model = prepare_model_for_kbit_training(model)  # casts the norms\n"
        "model = get_peft_model(model, config)\n",
        "model = get_peft_model(model, config)\n"
        "model = prepare_model_for_kbit_training(model)  # casts the norms\n",
        "LD520", "model = prepare_model",
    ),
    Style("argparse", _MAIN, "lora_alpha=args", "lora_alpa=args", "LD523"),
    Style(
        "class", _CLASS,
        "        model = get_peft_model(model, self.config)\n"
        "        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)\n",
        "        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)\n"
        "        model = get_peft_model(model, self.config)\n",
        "LD507", "optimizer = torch",
    ),
    Style("stars", _STARS, "lora_dropout", "lora_droput", "LD523"),
    Style("aliases", _ALIASES, "bias='none'", "bais='none'", "LD523"),
    Style("dataclass parser", _PARSER, "lora_alpha=", "lora_alpah=", "LD523"),
    Style(
        "click", _CLICK,
        '    model = get_peft_model(model, LoraConfig(r=rank, target_modules=["q_proj"]))\n'
        "    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], "
        "lr=0.1)\n",
        "    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], "
        "lr=0.1)\n"
        '    model = get_peft_model(model, LoraConfig(r=rank, target_modules=["q_proj"]))\n',
        "LD507", "optimizer = torch",
    ),
    Style("typer", _TYPER, ", is_trainable=True", "", "LD521", "model = PeftModel"),
    Style(
        "tabs", _TABS,
        "\tmodel = prepare(model)\n"
        "\tmodel = get_peft_model(model, LoraConfig(r = 4, target_modules = ['q_proj']))\n",
        "\tmodel = get_peft_model(model, LoraConfig(r = 4, target_modules = ['q_proj']))\n"
        "\tmodel = prepare(model)\n",
        "LD520", "\tmodel = prepare",
    ),
    Style("crlf, not ASCII", _CRLF, "lora_alpha=16", "lora_alhpa=16", "LD523"),
    Style("decorated", _DECORATED, "is_trainable=True", "is_trainable=False", "LD521",
          "PeftModel.from_pretrained(\n"),
    Style("spaced", _SPACED, "lora_dropout = 0", "lora_dorpout = 0", "LD523"),
)  # fmt: skip


@dataclass(frozen=True)
class Notebook:
    """A notebook: the cells of a script's text, and how its JSON is written."""

    style: Style
    #: Texts in the script before each of which a cell ends.
    cuts: tuple[str, ...]
    indent: int | None = 1
    as_lines: bool = True
    ascii_only: bool = False
    first: str = ""

    def text(self, script: str) -> str:
        """The notebook with this script in its cells."""
        sources, rest = [], script
        for cut in self.cuts:
            head, _, tail = rest.partition(cut)
            sources.append(head)
            rest = cut + tail
        sources.append(rest)
        cells: list[dict[str, Any]] = [
            {"cell_type": "markdown", "metadata": {}, "source": ["# Überschrift\n", "text"]}
        ]
        if self.first:
            cells.append(self._code(self.first))
        cells += [self._code(source) for source in sources]
        notebook = {
            "cells": cells,
            "metadata": {"kernelspec": {"language": "python", "name": "python3"}, "é": [1.0, 1e-5]},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        return json.dumps(notebook, indent=self.indent, ensure_ascii=self.ascii_only) + "\n"

    def _code(self, source: str) -> dict[str, Any]:
        output = {"output_type": "stream", "name": "stdout", "text": ['Größe {"a": [1]}\n']}
        return {
            "cell_type": "code",
            "execution_count": 7,
            "metadata": {"source": "no cell"},
            "outputs": [output],
            "source": source.splitlines(keepends=True) if self.as_lines else source,
        }

    def place(self) -> tuple[int, int]:
        """Cell and line of the mistake."""
        before = self.style.broken[: self.style.broken.index(self.style.at or self.style.wrong)]
        cell = 2 + bool(self.first)
        for cut in self.cuts:
            if cut in before:
                before = cut + before.partition(cut)[2]
                cell += 1
            elif before + cut[:0] and self.style.broken[len(before) :].startswith(cut):
                break
        return cell, before.count("\n") + 1


_BY_NAME = {style.name: style for style in SCRIPTS}
NOTEBOOKS = (
    Notebook(_BY_NAME["qlora"], ("model_id =", "config =")),
    Notebook(_BY_NAME["stars"], ("model = prepare",), indent=None),
    Notebook(_BY_NAME["aliases"], ("base =",), indent=2, as_lines=False,
             first="!pip install -q peft \\\n    transformers\n%matplotlib inline"),
    Notebook(_BY_NAME["crlf, not ASCII"], ("model = Auto",), indent=4, as_lines=False,
             ascii_only=True),
    Notebook(_BY_NAME["class"], ("class Exp", "Experiment(\"")),
    Notebook(_BY_NAME["spaced"], ("max_seq", "config ="),
             first="%%capture\nimport os\nif True:\n    !pip install --no-deps unsloth\n"
             "files = !ls\nos.getcwd?"),
)  # fmt: skip
