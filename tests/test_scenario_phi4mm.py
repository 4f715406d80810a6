"""The report on Phi-4-multimodal: a model that brings LoRA adapters and is loaded in 4 or 8 bits.

The repository is local and built alike (``tests/remote_repository.py``). The report trained the
built-in adapters, found "512 LoRA layers, 0 trainable" and advised 8 bits, which freezes them
just as 4 bits do.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.sandbox.worker import Worker
from tests import cli
from tests.remote_repository import (
    WRAP_AGAIN,
    add_weights,
    keep_modules_apart,
    load,
    load_weights,
    write_repository,
)
from tests.scenario import holds, prove

pytestmark = pytest.mark.slow

REPORT = "Phi-4-multimodal"
NO_GPU = "transformers refuses to quantize without a GPU: asked of its matcher, trained unquantized"
TRUST = ("--trust-remote-code", "--output-format", "json")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "tinymm"
    write_repository(folder, "split files", WRAP_AGAIN["get_peft_model twice"])
    return folder


def run(*arguments: str | Path, cwd: Path | None = None) -> dict[str, Any]:
    result = cli.lora_doctor(*arguments, *TRUST, cwd=cwd)
    data: dict[str, Any] = json.loads(result.out)
    assert result.code in (0, 1) or data["undetermined"], result
    return data


def rules(findings: Any) -> set[str]:
    return {finding["rule"] for finding in findings}


def quantizes_here() -> bool:
    """Whether this transformers quantizes without a GPU."""
    return holds({"transformers": ">=4.45"})


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
    assert all(check["status"] != "failed" for check in after["checks"]), after
    skipped_quantization = [note for note in after["notes"] if note["kind"] == "not-proven"]
    if quantizes_here():
        assert not skipped_quantization and after["outcome"] == "passed"
    else:
        assert "No GPU" in skipped_quantization[0]["text"]
        assert after["outcome"] == fixed["verdict"] == "undetermined" or fixed["findings"]
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
    after = fixed["verification"]["after"]
    held = "undetermined" if quantization and not quantizes_here() else "passed"
    assert after["outcome"] == held, after
    assert all(check["status"] != "failed" for check in after["checks"])
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
        unsafe_fixes=True,
        worker=worker,
    )
    finding = next(item for item in diagnosis.remaining or () if item.rule == "LD301")
    assert {fix.safety for fix in finding.fixes} == {"manual"}
    assert "vision" in finding.fixes[0].title


# --- the rows of the report -----------------------------------------------------------------------


@pytest.fixture
def loadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same repository, made so that loading it works on every stack; with weights."""
    keep_modules_apart(monkeypatch, tmp_path / "modules")
    folder = tmp_path / "loadablemm"
    write_repository(folder, "split files", WRAP_AGAIN["get_peft_model twice"], task_type=False)
    add_weights(folder)
    return folder


def quantized(folder: Path, bits: str, skip: list[str] | None = None) -> Any:
    import transformers

    options: dict[str, Any] = {f"load_in_{bits}": True, "llm_int8_skip_modules": skip}
    config = transformers.BitsAndBytesConfig(**options)
    return load_weights(folder, quantization_config=config)


def lora_weights(model: Any) -> list[Any]:
    return [value for name, value in model.named_parameters() if ".lora_" in name]


def test_a_model_that_wraps_its_own_inner_model(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: Worker
) -> None:
    keep_modules_apart(monkeypatch, tmp_path / "modules")
    prove(
        REPORT,
        "the model calls get_peft_model on its inner model while it is being built",
        "LD101",
        str(repository),
        {},
        worker=worker,
        occurs=holds({"transformers": ">=4.50"}),
        plainly=lambda: load(repository),
        trust_remote_code=True,
    )


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_built_in_adapters_are_quantized(loadable: Path, bits: str, worker: Worker) -> None:
    """The report's option A, 8 bits, freezes them just as 4 bits do."""
    here = quantizes_here()

    def plainly() -> None:
        weights = lora_weights(quantized(loadable, bits))
        assert len(weights) == 16 and not any(weight.requires_grad for weight in weights)
        for weight in weights:
            weight.requires_grad_(True)

    diagnosis = prove(
        REPORT,
        f"built-in adapters frozen by {bits.replace('bit', '-bit')} loading",
        "LD301",
        str(loadable),
        {f"load_in_{bits}": True},
        worker=worker,
        occurs=True,
        plainly=plainly if here else None,
        remark="" if here else NO_GPU,
        trust_remote_code=True,
    )
    (finding,) = [item for item in diagnosis.findings if item.rule == "LD301"]
    assert "16 LoRA tensors, 0 trainable" in finding.message
    assert diagnosis.fixed_recipe is not None
    skip = list(diagnosis.fixed_recipe.get("llm_int8_skip_modules"))
    assert "lm_head" in skip
    if here:  # the list does in plain transformers what was said of it
        model = quantized(loadable, bits, skip)
        assert all(weight.is_floating_point() for weight in lora_weights(model))
        kinds = {type(m.base_layer).__module__ for m in model.modules() if hasattr(m, "lora_A")}
        assert all(kind.startswith("bitsandbytes") for kind in kinds)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_list_of_the_checkpoint_wins(
    loadable: Path, tmp_path: Path, bits: str, worker: Worker
) -> None:
    """The list of the recipe is dropped without an error: only the other checkpoint helps."""
    recipe = {f"load_in_{bits}": True, "llm_int8_skip_modules": ["lm_head", "vision", "speech"]}
    checkpoint = tmp_path / "quantizedmm"
    shutil.copytree(loadable, checkpoint)
    if quantizes_here():
        quantized(loadable, bits).save_pretrained(checkpoint)
        for file in loadable.glob("*.py"):
            shutil.copy(file, checkpoint)
        written = json.loads((checkpoint / "config.json").read_text())
        config = json.loads((loadable / "config.json").read_text())
        config["quantization_config"] = written["quantization_config"]
        again = quantized(checkpoint, bits, recipe["llm_int8_skip_modules"])  # type: ignore[arg-type]
        assert not any(weight.is_floating_point() for weight in lora_weights(again))
    else:
        config = json.loads((loadable / "config.json").read_text())
        config["quantization_config"] = {
            "quant_method": "bitsandbytes", f"load_in_{bits}": True, "llm_int8_skip_modules": None,
        }  # fmt: skip
    (checkpoint / "config.json").write_text(json.dumps(config))
    prove(
        REPORT,
        f"a checkpoint in {bits.replace('bit', ' bits')}, whose own skip list wins",
        "LD301",
        str(checkpoint),
        recipe,
        worker=worker,
        occurs=True,
        by_hand=(str(loadable), recipe),
        remark="" if quantizes_here() else NO_GPU,
        trust_remote_code=True,
    )


def test_a_fresh_head_is_quantized(tmp_path: Path, worker: Worker) -> None:
    """A head of two layers, of which the default list keeps one or none."""
    recipe = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "load_in_4bit": True}
    here = quantizes_here()

    def plainly() -> None:
        import peft
        import transformers

        config = transformers.RobertaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64,
        )  # fmt: skip
        transformers.RobertaForSequenceClassification(config).save_pretrained(tmp_path / "roberta")
        model = transformers.RobertaForSequenceClassification.from_pretrained(
            tmp_path / "roberta",
            quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True),
            device_map={"": "cpu"},
        )
        targets = ["query", "value"]
        peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=targets))

    prove(
        REPORT,
        "a fresh classification head frozen by 4-bit loading",
        "LD301",
        "arch:roberta",
        recipe,
        worker=worker,
        occurs=True,
        plainly=plainly if here else None,
        remark="" if here else NO_GPU,
    )


def test_an_adapter_on_top_of_its_own(loadable: Path, worker: Worker) -> None:
    """What becomes of all three is told as it is on this stack; two ways out, both train."""
    import peft

    targets = ["qkv_proj"]
    model = load_weights(loadable)
    before = {name for name, value in model.named_parameters() if value.requires_grad}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets))
    trained = {name for name, value in wrapped.named_parameters() if value.requires_grad}
    active = {name for module in wrapped.modules() if hasattr(module, "lora_A")
              for name in module.active_adapters}  # fmt: skip
    recipe = {"target_modules": targets, "r": 4}
    diagnosis = prove(
        REPORT,
        "an adapter on top of the built-in ones",
        "LD302",
        str(loadable),
        recipe,
        worker=worker,
        occurs=True,
        silently=True,
        trust_remote_code=True,
    )
    (finding,) = [item for item in diagnosis.findings if item.rule == "LD302"]
    assert diagnosis.structure is not None and diagnosis.structure.built_in is not None
    built_in = diagnosis.structure.built_in
    for state in built_in.adapters:
        count = sum(f".{state.name}." in name for name in trained)
        assert state.trainable_wrapped == count, (state, trained)
        assert bool(state.active_wrapped) == (state.name in active), (state, active)
        if state.brought:
            assert state.trainable == sum(f".{state.name}." in name for name in before)
    base = {name for name in trained if ".lora_" not in name}
    assert bool(built_in.base_trainable) == bool(base)
    assert [fix.safety for fix in finding.fixes] == ["unsafe", "manual"]
    # The other way out: no adapter on top, the built-in ones are what is trained.
    own = lora_doctor.fix(
        str(loadable), {}, trust_remote_code=True, unsafe_fixes=True, worker=worker
    )
    assert own.remaining == () and "LD302" not in {item.rule for item in own.findings}
    proof = own.after or own.before
    assert proof is not None and proof.outcome == "passed"


def test_not_only_adapters_are_trained(loadable: Path, worker: Worker) -> None:
    """The report's "LoRA-only" training, which trained 14.9 per cent."""
    model = load_weights(loadable)
    others = [item for item in model.named_parameters() if ".lora_" not in item[0]]
    count = sum(value.numel() for _, value in others if value.requires_grad)
    assert count, "nothing else is trainable here"
    diagnosis = prove(
        REPORT,
        "built-in adapters: other weights are trained along",
        "LD502",
        str(loadable),
        {},
        worker=worker,
        occurs=True,
        silently=True,
        trust_remote_code=True,
    )
    (finding,) = [item for item in diagnosis.findings if item.rule == "LD502"]
    total = sum(value.numel() for value in model.parameters())
    assert f"{count:,} parameters" in finding.message
    assert f"({count / total:.1%} of the model)" in finding.message
    assert "lm_head.weight" in finding.message
    patches = [item.fix.patch.name for item in diagnosis.applied if item.fix.patch]
    assert patches == ["own_adapters_only"]


def test_no_adapter_is_trained(worker: Worker) -> None:
    """Everything was frozen by hand, or by preparing a quantized model for training."""

    def plainly() -> None:
        import torch

        from tests.models import own_adapters_frozen

        ids = torch.ones(1, 4).long()
        own_adapters_frozen()(input_ids=ids, labels=ids).loss.backward()

    diagnosis = prove(
        REPORT,
        "built-in adapters: none of them is trainable",
        "LD502",
        "tests.models:own_adapters_frozen",
        {},
        worker=worker,
        occurs=True,
        plainly=plainly,
        by_hand=("tests.models:llama_with_own_adapters", {}),
    )
    (finding,) = [item for item in diagnosis.findings if item.rule == "LD502"]
    assert "0 of 8 adapter tensors (0% of the model)" in finding.message


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


def test_the_next_command_after_a_patch_is_one_that_trains(
    repository: Path, tmp_path: Path
) -> None:
    """The recipe alone would not: the command carries the prescription with its patches."""
    import shlex

    fixed = run("fix", repository, "--unsafe-fixes", "--apply", cwd=tmp_path)
    patches = [item["patch"] for item in fixed["applied"] if item["patch"]]
    words = shlex.split(fixed["next_command"])
    assert words[:2] == ["lora-doctor", "verify"]
    assert ("--prescription" in words) == bool(patches) and patches
    result = cli.lora_doctor(*words[1:], cwd=tmp_path)
    assert result.code == 0, result
