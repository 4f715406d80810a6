"""Training scripts are read, never run: what they hide is found, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_doctor.errors import InputError
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.static.script.training_script import TrainingScript, read_training_script

HEAD = """\
import math, sys
import numpy as np
import torch
import torch as t
import torch.nn as nn
import torch.nn.functional as F
from torch import nan_to_num, isnan
from peft import get_peft_model, LoraConfig
"""


def read(tmp_path: Path, text: str) -> TrainingScript:
    path = tmp_path / "train.py"
    path.write_text(HEAD + text, "utf-8")
    return read_training_script(path)


def step(body: str) -> str:
    """A training loop with this in front of its backward."""
    lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
    return (
        "for batch in loader:\n    outputs = model(**batch)\n    loss = outputs.loss\n"
        f"{lines}    loss.backward()\n    optimizer.step()\n"
    )


def in_forward(body: str) -> str:
    lines = "".join(f"        {line}\n" for line in body.strip("\n").splitlines())
    return (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.proj = nn.Linear(4, 4)\n        self.norm = nn.LayerNorm(4)\n"
        f"    def forward(self, x, labels=None):\n{lines}"
    )


HIDDEN: dict[str, tuple[str, str]] = {
    # name: (script, what is replaced)
    "nan_to_num of a loss": (step("loss = torch.nan_to_num(loss)"), "loss"),
    "under another name": (step("loss = t.nan_to_num(loss, nan=0.0)"), "loss"),
    "imported by itself": (step("loss = nan_to_num(loss)"), "loss"),
    "method": (step("loss = loss.nan_to_num()"), "loss"),
    "in place": (step("loss.nan_to_num_()"), "loss"),
    "on the way into the backward": (
        "for b in d:\n    loss = model(**b).loss\n    torch.nan_to_num(loss).backward()\n",
        "loss",
    ),
    "by an accelerator": (
        "for b in d:\n    out = model(**b)\n    accelerator.backward(torch.nan_to_num(out.loss))\n",
        "loss",
    ),
    "guarded constant": (
        step("if torch.isnan(loss):\n    loss = torch.tensor(0.0, requires_grad=True)"),
        "loss",
    ),
    "the report's own": (
        step(
            "if torch.isnan(loss):\n    logging.error('NaN loss detected!')\n"
            "    loss = torch.tensor(0.001, device=loss.device, requires_grad=True)"
        ),
        "loss",
    ),
    "either of two tests": (
        step("if torch.isnan(loss) or torch.isinf(loss):\n    loss = torch.zeros_like(loss)"),
        "loss",
    ),
    "not finite": (
        step("if not torch.isfinite(loss).all():\n    loss = loss.new_zeros(())"),
        "loss",
    ),
    "the other branch": (
        step("if torch.isfinite(loss):\n    pass\nelse:\n    loss = torch.tensor(0.)"),
        "loss",
    ),
    "a named constant": (
        step("zero = torch.zeros((), device=dev)\nif math.isnan(loss.item()):\n    loss = zero"),
        "loss",
    ),
    "x is not x": (step("if loss != loss:\n    loss = torch.tensor(0.0)"), "loss"),
    "conditional expression": (
        step("loss = loss if torch.isfinite(loss) else torch.zeros_like(loss)"),
        "loss",
    ),
    "where bad": (
        step("loss = torch.where(torch.isnan(loss), torch.zeros_like(loss), loss)"),
        "loss",
    ),
    "where good": (step("loss = torch.where(torch.isfinite(loss), loss, 0.0)"), "loss"),
    "where as a method": (step("loss = loss.where(torch.isfinite(loss), 0.0)"), "loss"),
    "masked assignment": (step("loss[torch.isnan(loss)] = 0"), "loss"),
    "masked by a variable": (step("bad = torch.isnan(loss)\nloss[bad] = 0.0"), "loss"),
    "negated mask": (step("loss[~torch.isfinite(loss)] = 0"), "loss"),
    "masked_fill": (step("loss = loss.masked_fill(torch.isnan(loss), 0.0)"), "loss"),
    "a part of the loss": (
        step("lm_loss = torch.nan_to_num(lm_loss)\nloss = lm_loss + 2.0 * box_loss"),
        "loss",
    ),
    "logits before the loss": (
        "for b in d:\n    logits = torch.nan_to_num(model(**b).logits)\n"
        "    loss = F.cross_entropy(logits, b['labels'])\n    loss.backward()\n",
        "activation",
    ),
    "gradients": (
        step("pass") + "for p in model.parameters():\n    p.grad = torch.nan_to_num(p.grad)\n",
        "gradient",
    ),
    "gradients in place, without gradients": (
        "def clean(model):\n    with torch.no_grad():\n        for p in model.parameters():\n"
        "            if p.grad is not None:\n"
        "                torch.nan_to_num(p.grad, out=p.grad)\n",
        "gradient",
    ),
    "gradients by mask": (
        "for n, p in model.named_parameters():\n    p.grad[torch.isnan(p.grad)] = 0\n",
        "gradient",
    ),
    "gradients zeroed": (
        "for p in model.parameters():\n    if torch.isnan(p.grad).any():\n        p.grad.zero_()\n",
        "gradient",
    ),
    "gradient hook": (
        "for p in model.parameters():\n    p.register_hook(lambda grad: torch.nan_to_num(grad))\n",
        "gradient",
    ),
    "named gradient hook": (
        "def clean(g):\n    return torch.nan_to_num(g)\nweight.register_hook(clean)\n",
        "gradient",
    ),
    "weights": (
        "for p in model.parameters():\n    p.data = torch.nan_to_num(p.data)\n",
        "weight",
    ),
    "activation of a layer": (
        in_forward("h = self.norm(self.proj(x))\nh = torch.nan_to_num(h)\nreturn h"),
        "activation",
    ),
    "inputs_embeds": (
        in_forward(
            "inputs_embeds = torch.cat([self.proj(x), x], dim=1)\n"
            "if torch.isnan(inputs_embeds).any():\n"
            "    inputs_embeds = torch.clamp(inputs_embeds, -1e4, 1e4)\n"
            "return self.llama_model(inputs_embeds=inputs_embeds)"
        ),
        "activation",
    ),
    "clamped to float16": (
        in_forward("h = self.proj(x)\nh = torch.clamp(h, min=-65504, max=65504)\nreturn h"),
        "activation",
    ),
    "clamped to the end of the dtype": (
        in_forward(
            "hidden_states = self.proj(x)\n"
            "top = torch.finfo(hidden_states.dtype).max - 1000\n"
            "hidden_states = hidden_states.clamp(min=-top, max=top)\nreturn hidden_states"
        ),
        "activation",
    ),
    "compute_loss of a trainer": (
        "class T(Trainer):\n    def compute_loss(self, model, inputs, return_outputs=False):\n"
        "        outputs = model(**inputs)\n        loss = outputs.loss\n"
        "        if torch.isnan(loss):\n            loss = torch.tensor(0.0, device=loss.device)\n"
        "        return (loss, outputs) if return_outputs else loss\n",
        "loss",
    ),
    "returned at once": (
        "def training_step(self, batch):\n    loss = self.model(**batch).loss\n"
        "    if not torch.isfinite(loss):\n        return torch.tensor(0.0, requires_grad=True)\n"
        "    return loss\n",
        "loss",
    ),
    "a sum of losses": (
        "losses = []\nfor b in d:\n    losses.append(torch.nan_to_num(model(**b).loss))\n"
        "total = sum(losses)\ntotal.backward()\n",
        "loss",
    ),
}

IN_THE_OPEN: dict[str, str] = {
    "skipped": step("if not torch.isfinite(loss):\n    optimizer.zero_grad()\n    continue"),
    "skipped after a note": step(
        "if torch.isnan(loss):\n    print('NaN loss detected')\n"
        "    loss = torch.tensor(0.)\n    continue"
    ),
    "stopped": step("if torch.isnan(loss):\n    raise FloatingPointError(loss)"),
    "exit": step("if not math.isfinite(loss.item()):\n    print('bad')\n    sys.exit(1)"),
    "broken off": step("if torch.isnan(loss):\n    break"),
    "only said": step("if torch.isnan(loss):\n    print('nan')"),
    "logged": step("shown = torch.nan_to_num(loss.detach()).item()\nprint(shown)"),
    "replaced after the backward": (
        step("pass") + "    if torch.isnan(loss):\n        loss = torch.tensor(1e5)\n"
        "    mean += loss.item()\n"
    ),
    "matching without gradients": (
        "@torch.no_grad()\ndef forward(self, pred_logits):\n"
        "    pred_logits = torch.nan_to_num(pred_logits)\n    return pred_logits\n"
    ),
    "running mean": step(
        "running += 0.0 if math.isnan(loss.item()) else loss.item()\nprint(running)"
    ),
    "logged by a method": step("log({'loss': torch.nan_to_num(loss).item()})"),
    "a loss in a log only": (
        "total_loss = 0.\n" + step("total_loss += torch.nan_to_num(loss).item()")
    ),
    "evaluation": (
        "def evaluate(model, loader):\n    for b in loader:\n        with torch.no_grad():\n"
        "            loss = model(**b).loss\n        loss = torch.nan_to_num(loss)\n"
        "        losses.append(loss)\n    return sum(losses)\n"
    ),
    "evaluation without gradients": (
        "@torch.no_grad()\ndef run(model, b):\n    return 1\n"
        "with torch.no_grad():\n    logits = torch.nan_to_num(model(**b).logits)\n"
    ),
    "metrics": (
        "def compute_metrics(p):\n    logits, labels = p\n    logits = np.nan_to_num(logits)\n"
        "    return {'acc': (logits.argmax(-1) == labels).mean()}\n"
    ),
    "data": (
        "class D(torch.utils.data.Dataset):\n    def __getitem__(self, i):\n"
        "        x = np.nan_to_num(self.x[i])\n        x[np.isnan(x)] = 0\n"
        "        return torch.nan_to_num(torch.tensor(x))\n"
    ),
    "inputs of the model": step("pass").replace(
        "    outputs",
        "    batch['pixel_values'] = torch.nan_to_num(batch['pixel_values'])\n    outputs",
    ),
    "pictures in a forward": in_forward("x = torch.nan_to_num(x)\nreturn self.proj(x)"),
    "attention over nothing": in_forward(
        "scores = self.proj(x)\nweights = torch.softmax(scores, -1)\n"
        "weights = torch.nan_to_num(weights)\nreturn weights @ x"
    ),
    "gradient clipping": step("pass")
    + "for p in model.parameters():\n    p.grad.clamp_(-1, 1)\n"
    + "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n",
    "soft bounds": in_forward("logits = self.proj(x).clamp(-30, 30)\nreturn logits"),
    "a loss with a bound": step("loss = loss.clamp(max=10.0)"),
    "gradient norm for the log": (
        step("pass") + "norm = torch.nan_to_num(p.grad).norm()\nprint(norm)\n"
    ),
    "zero with a graph": step("if bad:\n    loss = logits.sum() * 0.0"),
    "no gradient at all": (
        "for p in ps:\n    if torch.isnan(p.grad).any():\n        p.grad = None\n"
    ),
    "None skips the step": (
        "def training_step(self, b):\n    loss = self.model(**b).loss\n"
        "    if torch.isnan(loss):\n        return None\n    return loss\n"
    ),
    "another module of that name": (
        "from mylib import nan_to_num as torch_clean\n" + step("loss = torch_clean(loss)")
    ),
    "a local variable called torch": (
        "def f(torch, loss):\n    loss = torch.nan_to_num(loss, 3)\n    loss = g()\n    return 1\n"
    ),
    "text only": '"""loss = torch.nan_to_num(loss)"""\n# loss = torch.nan_to_num(loss)\n',
    "empty": "",
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_hides_a_nan_is_found_with_its_line(name: str, tmp_path: Path) -> None:
    text, what = HIDDEN[name]
    found = read(tmp_path, text).replacements
    assert [item.what for item in found] == [what], found
    line = (HEAD + text).splitlines()[found[0].line - 1].strip()
    assert line == found[0].code and found[0].value


@pytest.mark.parametrize("name", IN_THE_OPEN)
def test_what_hides_nothing_is_left_alone(name: str, tmp_path: Path) -> None:
    assert not read(tmp_path, IN_THE_OPEN[name]).replacements


def test_nothing_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    read(tmp_path, f"open({str(mark)!r}, 'w')\nraise SystemExit(3)\n")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"def f(:\n", "line 1"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"a" + b"(" * 100_000, "parsed|nested|Python"),
        (b"x = 1\0", "parsed|Python"),
    ],
)
def test_what_is_no_python_is_one_line(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_training_script(path)
    assert "\n" not in str(caught.value)


# --- the order of statements ----------------------------------------------------------------------


def test_an_optimizer_made_before_the_adapters(tmp_path: Path) -> None:
    text = (
        "model = load()\noptimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)\n"
        "model = get_peft_model(model, LoraConfig())\n"
    )
    found = read(tmp_path, text).order.early_optimizers
    assert [(item.model, item.line - HEAD.count("\n")) for item in found] == [("model", 2)]
    for more in (
        "optimizer = torch.optim.AdamW(model.parameters())\n",
        "optimizer.add_param_group({'params': lora})\n",
    ):
        assert not read(tmp_path, text + more).order.early_optimizers
    assert not read(
        tmp_path, text.replace("get_peft_model(model", "wrap(model")
    ).order.early_optimizers
    turned = "\n".join([text.splitlines()[0], text.splitlines()[2], text.splitlines()[1]])
    assert not read(tmp_path, turned).order.early_optimizers


def test_adapters_put_on_twice(tmp_path: Path) -> None:
    once = "model = get_peft_model(model, LoraConfig())\n"
    found = read(tmp_path, once + "x = 1\n" + once).order.wrapped_twice
    assert [item.line - item.first_line for item in found] == [2]
    for between in ("model = model.unload()\n", "model.merge_and_unload()\n", "model = load()\n"):
        assert not read(tmp_path, once + between + once).order.wrapped_twice
    either = f"if a:\n    {once}else:\n    {once}"
    assert not read(tmp_path, either).order.wrapped_twice


@pytest.mark.parametrize(
    ("config", "dequantize", "other"),
    [
        ("Mxfp4Config(dequantize=True)", True, ""),
        ("Mxfp4Config()", None, "`Mxfp4Config`, line 2"),
        ('QuantoConfig(weights="int8")', None, "`QuantoConfig`, line 2"),
        ("BitsAndBytesConfig(load_in_4bit=True)", None, ""),
    ],
)
def test_a_quantization_that_is_not_bitsandbytes(
    config: str, dequantize: bool | None, other: str, tmp_path: Path
) -> None:
    """It was dropped where the script was given as the recipe of a model, and the model called
    healthy that was run without it; one that only dequantizes is a key of the recipe."""
    script = tmp_path / "train.py"
    script.write_text(
        f"from transformers import AutoModelForCausalLM, {config.partition('(')[0]}\n"
        f'm = AutoModelForCausalLM.from_pretrained("org/model", quantization_config={config})\n'
    )
    setup = read_setup(script)
    assert setup.recipe.get("dequantize") is dequantize
    assert setup.other_quantization == other
    assert bool(setup.open_questions(frozenset())) is bool(other)
