"""Metrics that a trainer asks for and no evaluation computes, read off the script.

What the Trainer does with each was seen in transformers 5.23.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_doctor.recipe.program.best_metric import metrics_not_computed
from lora_doctor.recipe.program.read_setup import read_setup

_HEAD = """
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM, EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
)

model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"]))


def accuracy(prediction):
    if prediction is None:
        return {"accuracy": 0.0}
    return {"accuracy": 1.0, "eval_right": 2}


def computed(prediction):
    return metric.compute(prediction)


class Own(TrainerCallback):
    def on_evaluate(self, args, state, control, metrics, **more):
        metrics["eval_f1"] = 1.0


"""
_BEST = "eval_strategy='epoch', save_strategy='epoch', load_best_model_at_end=True, "


def found(folder: Path, arguments: str, given: str = "", then: str = "") -> list[str]:
    file = folder / "train.py"
    file.write_text(
        f"{_HEAD}\narguments = TrainingArguments('out', {arguments})\ntrainer = Trainer("
        f"model=model, args=arguments, train_dataset=[], {given})\n{then}\ntrainer.train()\n",
        encoding="utf-8",
    )
    return [one.metric for one in metrics_not_computed(read_setup(file))]


@pytest.mark.parametrize(
    ("arguments", "given", "metric"),
    [
        (_BEST, "eval_dataset={'a': [], 'b': []}", "eval_loss"),
        (_BEST + "metric_for_best_model='f1'", "eval_dataset=[]", "eval_f1"),
        (_BEST + "metric_for_best_model='eval_f1'", "eval_dataset=[], compute_metrics=accuracy",
         "eval_f1"),
        (_BEST + "metric_for_best_model='f1'",
         "eval_dataset=[], compute_metrics=lambda p: {'acc': 1}", "eval_f1"),
        ("eval_strategy='epoch'", "eval_dataset=[], callbacks=[EarlyStoppingCallback(2)]", ""),
    ],
)  # fmt: skip
def test_a_metric_that_nobody_computes(
    tmp_path: Path, arguments: str, given: str, metric: str
) -> None:
    assert found(tmp_path, arguments, given) == [metric]


@pytest.mark.parametrize(
    ("arguments", "given", "then"),
    [
        (_BEST, "eval_dataset=[]", ""),
        (_BEST, "eval_dataset=some_sets", ""),
        (_BEST + "metric_for_best_model='a_loss'", "eval_dataset={'a': [], 'b': []}", ""),
        (_BEST + "metric_for_best_model='right'", "eval_dataset=[], compute_metrics=accuracy", ""),
        (_BEST + "metric_for_best_model='dev_accuracy'",
         "eval_dataset=sets, compute_metrics=accuracy", ""),
        (_BEST + "metric_for_best_model='f1'", "eval_dataset=[], compute_metrics=computed", ""),
        (_BEST + "metric_for_best_model='f1'", "eval_dataset=[], callbacks=[Own()]", ""),
        (_BEST + "metric_for_best_model='f1'", "eval_dataset=[]", "trainer.add_callback(Own())"),
        (_BEST + "metric_for_best_model='f1'", "eval_dataset=[]",
         "trainer.compute_metrics = computed"),
        ("metric_for_best_model='f1'", "", ""),
        ("eval_strategy='no', metric_for_best_model='f1'", "eval_dataset=[]", ""),
        (_BEST, "eval_dataset=[], callbacks=[EarlyStoppingCallback(2)]", ""),
        ("eval_strategy='steps', **more", "eval_dataset={'a': []}", ""),
    ],
)  # fmt: skip
def test_what_may_be_computed_is_no_finding(
    tmp_path: Path, arguments: str, given: str, then: str
) -> None:
    assert not found(tmp_path, arguments, given, then)


@pytest.mark.parametrize(("evaluator", "count"), [("None", 1), ("own_evaluator", 0)])
def test_several_sets_of_sentence_transformers(tmp_path: Path, evaluator: str, count: int) -> None:
    """Its evaluators bring metrics, and what they are called is not in the script."""
    file = tmp_path / "train.py"
    file.write_text(
        "from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer\n"
        "from sentence_transformers import SentenceTransformerTrainingArguments\n"
        f"args = SentenceTransformerTrainingArguments('out', {_BEST})\n"
        "SentenceTransformerTrainer(model=SentenceTransformer('m'), args=args, train_dataset=[],\n"
        f"    eval_dataset={{'a': [], 'b': []}}, evaluator={evaluator}).train()\n",
        encoding="utf-8",
    )
    assert len(list(metrics_not_computed(read_setup(file)))) == count
