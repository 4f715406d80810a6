"""The report on Phi-4-multimodal, as its user would go on: a training script of their own, whose
first line applies the prescription, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import cli
from tests.remote_repository import WRAP_AGAIN, write_repository
from tests.scenario import holds

pytestmark = pytest.mark.slow

TRUST = ("--trust-remote-code", "--output-format", "json")
QUANTIZES = holds({"transformers": ">=4.45"})


def fix(*arguments: str | Path, cwd: Path) -> None:
    result = cli.lora_doctor("fix", *arguments, "--apply", *TRUST, cwd=cwd)
    assert result.code in (0, 1), result
    assert json.loads(result.out)["applied"]


def train(script: str, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    file = folder / "train.py"
    file.write_text(script)
    return subprocess.run(
        [sys.executable, str(file), "lora-doctor.prescription.json", *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(cli.ROOT), "HF_MODULES_CACHE": str(folder / "m")},
    )  # fmt: skip


AFTER_LD101 = """
import shutil
import sys
from pathlib import Path

import torch
import lora_doctor

lora_doctor.apply(sys.argv[1])
from transformers import AutoConfig, AutoModelForCausalLM

repository, saved, again = map(Path, sys.argv[2:])
config = AutoConfig.from_pretrained(repository, trust_remote_code=True)
torch.manual_seed(0)
AutoModelForCausalLM.from_config(config, trust_remote_code=True).save_pretrained(saved)


def load(folder, comment):
    for file in repository.glob("*.py"):
        (folder / file.name).write_text(file.read_text() + comment)
    shutil.copy(repository / "config.json", folder)
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


model = load(saved, "")
ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(0))
assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > 6
model.requires_grad_(False)
adapters = [p for name, p in model.named_parameters() if ".lora_" in name and ".speech." in name]
for layer in model.modules():
    if hasattr(layer, "lora_A"):
        layer.set_adapter("speech")
for p in adapters:
    p.requires_grad_(True)
optimizer = torch.optim.AdamW(adapters, lr=1e-2)
losses = []
for _ in range(5):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(float(loss.detach()))
assert losses[-1] < losses[0], losses
model.save_pretrained(again)
with torch.no_grad():
    trained = model(input_ids=ids).logits
# The code is imported anew: forgotten by Python, and changed on disk.
for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
    del sys.modules[name]
for comment in ("", "# changed\\n"):
    fresh = load(again, comment)
    assert type(fresh) is not type(model)
    for layer in fresh.modules():
        if hasattr(layer, "lora_A"):
            layer.set_adapter("speech")
    with torch.no_grad():
        assert torch.allclose(fresh(input_ids=ids).logits, trained, atol=1e-5)
    assert fresh.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > 6
print("done")
"""


@pytest.mark.skipif(not holds({"transformers": ">=4.50"}), reason="loading works without")
@pytest.mark.parametrize("layout", ["one file", "split files"])
def test_with_the_prescription_everything_works_after(tmp_path: Path, layout: str) -> None:
    """`from_config`, `from_pretrained`, generate, train, save, load, and code imported anew."""
    folder = tmp_path / "tinymm"
    write_repository(folder, layout, WRAP_AGAIN["add_adapter"])
    fix(folder, cwd=tmp_path)
    done = train(AFTER_LD101, tmp_path, folder, tmp_path / "saved", tmp_path / "again")
    assert done.returncode == 0 and "done" in done.stdout, done.stderr[-3000:]


AFTER_LD301 = """
import sys
import torch
import lora_doctor
prescription = lora_doctor.apply(sys.argv[1])
import shutil
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM

repository, saved = Path(sys.argv[2]), Path(sys.argv[3])
config = AutoConfig.from_pretrained(repository, trust_remote_code=True)
AutoModelForCausalLM.from_config(config, trust_remote_code=True).save_pretrained(saved)
for file in repository.glob("*.py"):
    shutil.copy(file, saved)
shutil.copy(repository / "config.json", saved)

options = prescription.loading_kwargs()
options.update(trust_remote_code=True, device_map={"": "cpu"})
model = AutoModelForCausalLM.from_pretrained(saved, **options)
model.train()  # in eval mode bitsandbytes repacks weights, for which these are too small
model.requires_grad_(False)
adapters = [p for name, p in model.named_parameters() if ".speech." in name]
assert adapters and all(p.is_floating_point() for p in adapters)
for p in adapters:
    p.requires_grad_(True)
for layer in model.modules():
    if hasattr(layer, "lora_A"):
        layer.set_adapter("speech")
kinds = {type(layer.base_layer).__name__ for layer in model.modules() if hasattr(layer, "lora_A")}
assert kinds == {sys.argv[4]}, kinds
assert type(model.lm_head).__name__ == "Linear"
ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(0))
optimizer = torch.optim.AdamW(adapters, lr=1e-2)
losses = []
for _ in range(5):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None for p in adapters)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(float(loss))
assert losses[-1] < losses[0], losses
print("trained")
"""


@pytest.mark.skipif(not QUANTIZES, reason="transformers before 4.45 wants a GPU for it")
@pytest.mark.parametrize(("bits", "kind"), [("4bit", "Linear4bit"), ("8bit", "Linear8bitLt")])
def test_a_training_script_with_the_prescription_trains_the_adapters(
    tmp_path: Path, bits: str, kind: str
) -> None:
    """The user's way: apply first, then load; base layers quantized, adapters learning."""
    folder = tmp_path / "tinymm"
    write_repository(folder, "split files", WRAP_AGAIN["get_peft_model twice"])
    fix(folder, f"--load-in-{bits}", cwd=tmp_path)
    done = train(AFTER_LD301, tmp_path, folder, tmp_path / "saved", kind)
    assert done.returncode == 0 and "trained" in done.stdout, done.stderr[-3000:]
