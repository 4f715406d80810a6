"""Functions and callbacks that a script hands to its trainer, against how it calls them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_doctor.recipe.program import hooks
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.static.installed.hook_calls import HookCall

_SCRIPT = """
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("some/model")
{code}
trainer = Trainer(model, TrainingArguments("out"), train_dataset=[], {given})
{after}
trainer.train()
"""
_CALLBACK = "class Own(TrainerCallback):\n    def on_log({0}): ...\n"


@pytest.mark.parametrize(
    ("code", "given", "after", "why"),
    [
        (_CALLBACK.format("self, args, state, control"), "callbacks=[Own()]", "", "`model`"),
        (_CALLBACK.format("self, args, state, control"), "callbacks=[Own]", "", "`model`"),
        (_CALLBACK.format("self, args, state"), "", "trainer.add_callback(Own())", "2 positional"),
        (_CALLBACK.format("self, args, state, control, **_"), "callbacks=[Own()]", "", ""),
        (_CALLBACK.format("self, *args, model"), "callbacks=[Own()]", "", ""),
        (_CALLBACK.format("self, args, state, control"), "", "", ""),
        ("def cut(logits): ...", "{0}, eval_dataset=[]", "", "1 positional"),
        ("def cut(logits): ...", "{0}, eval_dataset=None", "", ""),
        ("def cut(logits, labels): ...", "{0}, eval_dataset=[]", "", ""),
        ("def cut(logits, labels, more): ...", "{0}, eval_dataset=[]", "", "`more`"),
        ("def cut(*all): ...", "{0}, eval_dataset=[]", "", ""),
    ],
)
def test_what_the_trainer_cannot_call_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, given: str, after: str, why: str
) -> None:
    """Whatever takes any name, or is never handed over, is left alone."""
    calls = (HookCall("", 2, (), "trainer.py:1"),)
    monkeypatch.setattr(hooks, "hook_calls", lambda name: calls if "logits" in name else ())
    monkeypatch.setattr(hooks, "callback_call", lambda: HookCall("", 3, ("model",), "x.py:1"))
    monkeypatch.setattr(hooks, "callback_events", lambda: ("on_log",))
    path = tmp_path / "train.py"
    given = given.format("preprocess_logits_for_metrics=cut")
    path.write_text(_SCRIPT.format(code=code, given=given, after=after))
    found = list(hooks.unfit_hooks(read_setup(path)))
    assert bool(found) == bool(why)
    assert all(why in one.why for one in found)


@pytest.mark.parametrize(
    ("body", "asked", "found"),
    [
        ("return float(p.x)", "evaluate", True),
        ("return (p.x == p.y).mean()", "evaluate", True),
        ("right = p.x == p.y\n    share = np.mean(right)\n    return share", "evaluate", True),
        ("print(p)", "evaluate", True),
        ("return accuracy_score(p.x, p.y), 1", "evaluate", True),
        ("return p.x.mean().item()", "evaluate", True),
        ("return float(p.x)", "save_model", False),
        ("return {'accuracy': 1}", "evaluate", False),
        ("return metric.compute(predictions=p.x)", "evaluate", False),
        ("out = 1\n    out = dict(a=1)\n    return out", "evaluate", False),
        ("return dict(a=1) | {}", "evaluate", False),
        ("if p:\n        return 1.0\n    return {'a': 1}", "evaluate", False),
        ("raise RuntimeError", "evaluate", False),
    ],
)
def test_a_metric_without_a_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, asked: str, found: bool
) -> None:
    """Where the evaluation surely comes, and every way through the function returns none."""
    calls = (HookCall("", 1, (), "trainer.py:1"),)
    monkeypatch.setattr(hooks, "hook_calls", lambda name: calls if "metrics" in name else ())
    path = tmp_path / "train.py"
    head = "import numpy as np\nfrom sklearn.metrics import accuracy_score\n"
    code = f"{head}def metrics(p):\n    {body}\n"
    given = "eval_dataset=[], compute_metrics=metrics"
    path.write_text(_SCRIPT.format(code=code, given=given, after=f"trainer.{asked}()"))
    assert [one.returned for one in hooks.unfit_hooks(read_setup(path))] == [True] * found
