"""The report on Phi-4-multimodal: a model that brings LoRA adapters and is loaded in 4 or 8 bits.

The repository is local and built alike (``tests/remote_repository.py``). The report trained the
built-in adapters, found "512 LoRA layers, 0 trainable" and advised 8 bits, which freezes them
just as 4 bits do.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.isolation import Worker
from tests import cli
from tests.remote_repository import WRAP_AGAIN, write_repository

pytestmark = pytest.mark.slow

TRUST = ("--trust-remote-code", "--output-format", "json")
NOT_PROVEN = "not proven"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "tinymm"
    write_repository(folder, "split files", WRAP_AGAIN["get_peft_model twice"])
    return folder


def run(*arguments: str | Path, cwd: Path | None = None) -> dict[str, Any]:
    result = cli.lora_doctor(*arguments, *TRUST, cwd=cwd)
    assert result.code in (0, 1), result
    data: dict[str, Any] = json.loads(result.out)
    return data


def rules(findings: Any) -> set[str]:
    return {finding["rule"] for finding in findings}


def quantizes_here() -> bool:
    """Whether this transformers quantizes without a GPU."""
    from packaging.version import Version

    return Version(importlib.metadata.version("transformers")) >= Version("4.45")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantized_built_in_adapters_are_found_fixed_and_trained(
    repository: Path, tmp_path: Path, bits: str
) -> None:
    """Both formats freeze them. The fix names the adapters and keeps the head in the list."""
    fixed = run("fix", repository, f"--load-in-{bits}", "--apply", cwd=tmp_path)
    applied = {item["rule"] for item in fixed["applied"]}
    assert "LD301" in applied
    skip = fixed["fixed_recipe"]["values"]["llm_int8_skip_modules"]
    assert skip[0] == "lm_head" and set(skip) == {"lm_head", "vision", "speech"}
    assert "LD301" not in rules(fixed["remaining"])
    after = fixed["verification"]["after"]
    assert after["outcome"] == "passed", after
    skipped_quantization = [note for note in after["notes"] if NOT_PROVEN in note]
    if quantizes_here():
        assert not skipped_quantization
    else:
        assert "No GPU" in skipped_quantization[0]
    prescription = tmp_path / "lora-doctor.prescription.json"
    assert prescription.exists()


def test_what_is_frozen_is_counted_and_named(repository: Path, worker: Worker) -> None:
    """The report's "N LoRA tensors, 0 trainable", told without loading anything."""
    diagnosis = lora_doctor.fix(
        str(repository), {"load_in_8bit": True}, trust_remote_code=True, worker=worker,
        select=("LD101",),
    )  # fmt: skip
    found = lora_doctor.fix(
        str(repository), {"load_in_8bit": True}, trust_remote_code=True, worker=worker, depth="meta"
    )
    messages = [finding.message for finding in (*found.findings, *(found.remaining or ()))]
    if diagnosis.applied:  # the model cannot be loaded before LD101 is fixed
        assert not any("LoRA tensors" in text for text in messages)
    else:
        assert any("16 LoRA tensors, 0 trainable" in text for text in messages)
    if not quantizes_here():
        return
    assert diagnosis.after is not None and diagnosis.after.failure is not None
    assert "floating point" in diagnosis.after.failure.message
    assert diagnosis.after.failure.check == "attaches"


def test_without_quantization_the_built_in_adapters_train(repository: Path) -> None:
    """No adapter is asked for, so none is put on top; what else would train is said."""
    fixed = run("fix", repository)
    verification = fixed["verification"]["after"] or fixed["verification"]["before"]
    assert verification["outcome"] == "passed", verification
    assert not {"LD301", "LD302", "LD001"} & rules(fixed["remaining"])
    others = [item for item in fixed["remaining"] if item["rule"] == "LD502"]
    assert len(others) == 1 and "lm_head.weight" in others[0]["message"]


@pytest.mark.parametrize("quantization", [(), ("--load-in-4bit",)])
def test_an_adapter_on_top_is_trained_alone_after_the_patch(
    repository: Path, quantization: tuple[str, ...]
) -> None:
    options = ("--target-modules", "qkv_proj", "--r", "4", "--unsafe-fixes", *quantization)
    fixed = run("fix", repository, *options)
    patches = [item["patch"] for item in fixed["applied"] if item["patch"]]
    assert "outer_adapter_only" in {patch["name"] for patch in patches}
    assert fixed["verification"]["after"]["outcome"] == "passed", fixed["verification"]["after"]
    assert fixed["remaining"] == []


def test_the_patch_is_not_applied_unasked(repository: Path) -> None:
    """It changes what is learnt."""
    fixed = run("fix", repository, "--target-modules", "qkv_proj")
    assert "LD302" not in {item["rule"] for item in fixed["applied"]}
    assert "LD302" in rules(fixed["remaining"])


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantized_checkpoint_keeps_its_own_list(
    repository: Path, worker: Worker, bits: str
) -> None:
    """transformers takes the list of the checkpoint, so no edit of the recipe can help."""
    path = repository / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {
        "quant_method": "bitsandbytes", f"load_in_{bits}": True, "llm_int8_skip_modules": None,
    }  # fmt: skip
    path.write_text(json.dumps(config))
    diagnosis = lora_doctor.fix(
        str(repository),
        {f"load_in_{bits}": True, "llm_int8_skip_modules": ["lm_head", "vision", "speech"]},
        trust_remote_code=True,
        depth="meta",
        worker=worker,
    )
    finding = next(item for item in diagnosis.remaining or () if item.rule == "LD301")
    assert {fix.safety for fix in finding.fixes} == {"manual"}
    assert "vision" in finding.fixes[0].title


SCRIPT = """
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


@pytest.mark.skipif(not quantizes_here(), reason="transformers before 4.45 wants a GPU for it")
@pytest.mark.parametrize(("bits", "kind"), [("4bit", "Linear4bit"), ("8bit", "Linear8bitLt")])
def test_a_training_script_with_the_prescription_trains_the_adapters(
    repository: Path, tmp_path: Path, bits: str, kind: str
) -> None:
    """The user's way: apply first, then load; base layers quantized, adapters learning."""
    run("fix", repository, f"--load-in-{bits}", "--apply", cwd=tmp_path)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), "lora-doctor.prescription.json", str(repository),
         str(tmp_path / "saved"), kind],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(cli.ROOT), "HF_MODULES_CACHE": str(tmp_path / "m")},
    )  # fmt: skip
    assert done.returncode == 0 and "trained" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("RuntimeError: only Tensors of floating point dtype can require gradients", {"LD301"}),
        (
            "RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn",
            {"LD301", "LD502"},
        ),
    ],
)
def test_the_reports_messages_are_explained(message: str, expected: set[str]) -> None:
    """Several causes share the second message; all of them are listed."""
    result = cli.lora_doctor("explain", message)
    assert result.code == 0, result
    assert all(code in result.out for code in expected), result.out
