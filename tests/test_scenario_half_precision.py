"""What float16, attention and scaling do to the models of two reports.

"Gemma 3 in SALMONN" blamed epsilons for overflowing activations, clamped them, and took a quarter
of `lora_alpha` for stability. "ModifiedLISA" found "LoRA not working with FP16".
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.sandbox.worker import Worker
from tests import models, scenario

pytestmark = pytest.mark.slow

GEMMA, LISA = "Gemma 3 in SALMONN", "ModifiedLISA"
TARGETS = {"target_modules": ["q_proj", "v_proj"]}
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.1, **TARGETS}


def before(package: str, version: str) -> bool:
    from packaging.version import Version

    return Version(importlib.metadata.version(package)) < Version(version)


# --- adapters in float16 under a gradient scaler ------------------------------------------------


def one_step_with_a_scaler(make: Callable[[], Any]) -> Callable[[], None]:
    """The first step of a training script with ``fp16=True``, by torch alone."""

    def run() -> None:
        import torch

        model = make()
        ids = torch.randint(3, 60, (2, 6))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        with torch.autocast("cpu", torch.float16):
            loss = model(input_ids=ids, labels=ids).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)

    return run


def half_llama(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        import peft

        config = peft.LoraConfig(task_type="CAUSAL_LM", **LORA, **options)
        return peft.get_peft_model(models.tiny_llama().half(), config)

    return make


def test_adapters_on_a_float16_model(worker: Worker) -> None:
    """PEFT 0.12 began to make adapters float32; before, the report's recipe never takes a step."""
    scenario.prove(
        LISA, "LoRA on a float16 model with fp16=True", "LD406",
        "arch:llama", {**LORA, "dtype": "float16", "fp16": True}, worker=worker,
        occurs=before("peft", "0.12"), plainly=one_step_with_a_scaler(half_llama()),
    )  # fmt: skip


def test_modules_to_save_on_a_float16_model(worker: Worker) -> None:
    """The copy of the head is float16 whatever PEFT does for LoRA's weights."""
    scenario.prove(
        LISA, "modules_to_save on a float16 model with fp16=True", "LD406",
        "arch:llama", {**LORA, "modules_to_save": ["lm_head"], "dtype": "float16", "fp16": True},
        worker=worker, occurs=True,
        plainly=one_step_with_a_scaler(half_llama(modules_to_save=["lm_head"])),
    )  # fmt: skip


def test_a_wrapped_model_that_was_halved(worker: Worker) -> None:
    scenario.prove(
        LISA, ".half() after get_peft_model, with fp16=True", "LD406",
        models.halved_after_wrapping(), None, worker=worker, occurs=True,
        plainly=one_step_with_a_scaler(models.halved_after_wrapping),
        by_hand=(models.halved_and_cast_back(), None),
    )  # fmt: skip


# --- attention that the model's own code speaks against -----------------------------------------


def has_architecture(name: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return name in CONFIG_MAPPING_NAMES


def gemma(model_type: str, **options: Any) -> Any:
    """A small one of the library's; ``options`` go to ``from_config``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        model_type, vocab_size=68, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, **options)


def warned_in_training(model_type: str) -> None:
    """Raises with the warning that transformers logs in a training forward, if it logs one."""
    import logging

    import torch

    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear, logger = Ear(), logging.getLogger("transformers")
    logger.addHandler(ear)
    try:
        ids = torch.randint(3, 60, (1, 6))
        gemma(model_type).train()(input_ids=ids, labels=ids)
    finally:
        logger.removeHandler(ear)
    advice = [text for text in heard if "eager" in text]
    if advice:
        raise UserWarning(advice[0])


def test_attention_that_gemma_3_advises_against(worker: Worker) -> None:
    row = (GEMMA, "sdpa attention, which Gemma 3's own code advises against", "LD403")
    if not has_architecture("gemma3_text"):
        scenario.not_here(*row, "no Gemma 3 in this transformers")
    scenario.prove(
        *row, "arch:gemma3_text", TARGETS, worker=worker,
        occurs=before("transformers", "4.57"), plainly=lambda: warned_in_training("gemma3_text"),
    )  # fmt: skip


def test_attention_without_the_cap_of_its_scores(worker: Worker) -> None:
    """4.57 says nothing: with scores as large as a trained model's, the outputs differ all the
    same from those with ``eager``."""
    row = (GEMMA, "attention that drops the cap of Gemma 2's scores", "LD411")
    if not has_architecture("gemma2"):
        scenario.not_here(*row, "no Gemma 2 in this transformers")
    occurs = before("transformers", "5")
    assert (difference_to_eager("gemma2") > 1e-3) is occurs
    scenario.prove(
        *row, "arch:gemma2", TARGETS, worker=worker, occurs=occurs, silently=True,
        found_by=None if rule_on_the_cap() == row[-1] else rule_on_the_cap(),
    )  # fmt: skip


def rule_on_the_cap() -> str:
    """Classes of before the attention interface choose inside their forward: nothing is seen to be
    left out, and their own warning is heard."""
    return "LD411" if has_attention_interface() else "LD403"


def has_attention_interface() -> bool:
    from transformers import modeling_utils

    return hasattr(modeling_utils, "ALL_ATTENTION_FUNCTIONS")


def difference_to_eager(model_type: str) -> float:
    """Largest difference of the logits between transformers' own choice and ``eager``, with
    scores of attention that are large, relative to the largest logit."""
    import torch

    answers = []
    eager = gemma(model_type, attn_implementation="eager")
    for model in (gemma(model_type).eval(), eager.eval()):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "q_proj" in name or "k_proj" in name:
                    weight.mul_(40.0)
            answers.append(model(input_ids=torch.arange(3, 35).view(1, 32)).logits)
    return float((answers[0] - answers[1]).abs().max() / answers[1].abs().max())


def test_a_loaded_model_is_to_be_loaded_anew() -> None:
    """No edit of a recipe reaches a model in memory, so the fix is words; nothing stays patched."""
    import logging

    import torch

    if not (has_architecture("gemma2") and before("transformers", "5")):
        pytest.skip("no Gemma 2 that runs with sdpa")
    methods = (logging.Logger.warning, getattr(logging.Logger, "warning_once"))  # noqa: B009
    diagnosis = lora_doctor.check(gemma("gemma2"), TARGETS, select=(rule_on_the_cap(),))
    assert methods == (logging.Logger.warning, getattr(logging.Logger, "warning_once"))  # noqa: B009
    (finding,) = diagnosis.findings
    assert [fix.safety for fix in finding.fixes] == ["manual"]
    eager = gemma("gemma2", attn_implementation="eager")
    assert not lora_doctor.check(eager, TARGETS, select=(rule_on_the_cap(),)).findings
    assert torch.is_grad_enabled()


# --- the size of a step -------------------------------------------------------------------------


def test_the_scaling_that_the_report_cut_to_a_quarter(worker: Worker) -> None:
    """`lora_alpha` 32 at rank 8 is a usual recipe; it cannot make a NaN that is in the base."""
    scenario.prove(
        GEMMA, "lora_alpha 32 at r 8, which the report cut to 8", "LD404",
        "arch:llama", {**TARGETS, "r": 8, "lora_alpha": 32}, worker=worker, occurs=False,
    )  # fmt: skip


def test_a_scaling_that_is_far_off(worker: Worker) -> None:
    scenario.prove(
        GEMMA, "a LoRA scaling of 128 (lora_alpha 2048 at r 16)", "LD404",
        "arch:llama", {**TARGETS, "r": 16, "lora_alpha": 2048}, worker=worker,
        occurs=True, silently=True,
    )  # fmt: skip


@pytest.mark.parametrize("rate", [1e-5, 1e-1])
def test_the_learning_rate_of_the_recipe_counts(worker: Worker, rate: float) -> None:
    """A small one makes up for a large scaling; a large one is not the scaling's fault."""
    recipe = {**TARGETS, "r": 16, "lora_alpha": 2048 if rate < 1e-2 else 32, "learning_rate": rate}
    diagnosis = lora_doctor.check("arch:llama", recipe, select=("LD404",), worker=worker)
    kinds = [fix.safety for finding in diagnosis.findings for fix in finding.fixes]
    assert kinds == ([] if rate < 1e-2 else ["manual"])


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_an_update_is_as_large_as_the_merged_weight_says(scale: float) -> None:
    """The norm from thin factors, against the weights themselves: merged after, minus before."""
    import peft
    import torch

    from lora_doctor.contract.adapters import find_adapters, note_gradients
    from lora_doctor.contract.observers.base import Setting
    from lora_doctor.contract.observers.updates import Updates

    targets = ["q_proj", "down_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=4 * scale, target_modules=targets)
    model = peft.get_peft_model(models.tiny_llama(), config)
    before = {name: p.detach().clone() for name, p in models.tiny_llama().named_parameters()}
    layers = find_adapters(model)
    updates = Updates(Setting(True, "float32", "float32", 1e-2))
    ids = torch.arange(3, 15).view(2, 6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-16)
    model(input_ids=ids, labels=ids).loss.backward()
    note_gradients(layers, "text")
    updates.before_step(layers)
    optimizer.step()
    updates.after_step(layers)
    after = dict(model.merge_and_unload().named_parameters())
    readings = updates.readings()
    assert {item.scaling for item in readings} == {scale} and len(readings) == 2
    for item in readings:
        leaf = item.pattern.rpartition(".")[2]
        names = [name for name in before if f"{leaf}.weight" in name]
        changes = torch.stack([(after[name] - before[name]).norm() for name in names])
        weights = torch.stack([before[name].norm() for name in names])
        assert item.layers == len(names) == 2
        assert item.update_norm == pytest.approx(float(changes.norm()), rel=1e-3)
        assert item.weight_norm == pytest.approx(float(weights.norm()), rel=1e-5)
        assert item.shape == tuple(before[names[0]].shape)


# --- numbers that float16 cannot hold -----------------------------------------------------------


def half_loss(make: Callable[[], Any], dtype: str) -> float:
    """The loss in this dtype, by torch alone."""
    import torch

    model = make().to(getattr(torch, dtype))
    ids = torch.arange(3, 15).view(2, 6)
    return float(model(input_ids=ids, labels=ids).loss)


def saved(model: Any, folder: Path, dtype: str) -> str:
    """A checkpoint of the model in this dtype, which its config then names."""
    import torch

    model.to(getattr(torch, dtype)).save_pretrained(folder, safe_serialization=True)
    return str(folder)


def test_real_weights_that_overflow(worker: Worker, tmp_path: Path) -> None:
    """Run as the recipe says: NaN. The table names the layer, and bfloat16 trains."""
    assert math.isnan(half_loss(models.overflowing_llama, "float16"))
    assert math.isfinite(half_loss(models.overflowing_llama, "bfloat16"))
    diagnosis = scenario.prove(
        GEMMA, "float16 on weights whose activations overflow, measured", "LD402",
        saved(models.overflowing_llama(), tmp_path / "m", "bfloat16"),
        {**TARGETS, "dtype": "float16"},
        worker=worker, occurs=True, silently=True, depth="full",
    )  # fmt: skip
    (finding,) = [item for item in diagnosis.findings if item.rule == "LD402"]
    assert finding.location.path == "model.layers.1.mlp.down_proj"
    assert finding.severity == "error" and finding.proof.kind == "executed"
    assert "e+05 in float32" in finding.message
    assert any("not finite in float16" in str(item.value) for item in finding.evidence)
    assert "LD001" not in {item.rule for item in diagnosis.findings}


def test_a_bfloat16_checkpoint_in_float16(worker: Worker, tmp_path: Path) -> None:
    """Without running the weights nothing more is known than that they never had to fit."""
    diagnosis = scenario.prove(
        GEMMA, "float16 asked of a bfloat16 checkpoint, not run", "LD409",
        saved(models.tiny_llama(), tmp_path / "m", "bfloat16"), {**TARGETS, "dtype": "float16"},
        worker=worker, occurs=True, silently=True,
    )  # fmt: skip
    (finding,) = [item for item in diagnosis.findings if item.rule == "LD409"]
    assert "was not measured" in finding.message and finding.proof.kind == "inferred"


def test_a_bfloat16_checkpoint_in_float16_that_was_run(worker: Worker, tmp_path: Path) -> None:
    """Measured, it is no risk any more: nothing comes near 65504."""
    folder = saved(models.tiny_llama(), tmp_path / "m", "bfloat16")
    recipe = {**TARGETS, "dtype": "float16"}
    codes = ("LD402", "LD408", "LD409")
    diagnosis = lora_doctor.check(folder, recipe, worker=worker, depth="full", select=codes)
    assert not diagnosis.findings and set(diagnosis.passed) == set(codes)


def test_float16_autocast_over_what_t5_keeps_in_float32(worker: Worker) -> None:
    """`from_pretrained` obeys the class, autocast does not: `wo` is a matrix product like all."""
    scenario.prove(
        GEMMA, "fp16=True on a model whose class keeps modules in float32 (T5)", "LD408",
        "arch:t5", {"target_modules": ["q", "v"], "fp16": True}, worker=worker,
        occurs=True, silently=True,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_loaded_model_is_measured(dtype: str) -> None:
    """In float16 the numbers leave it; in float32 they are compared with where it ends. The report
    clamped them instead, which costs accuracy."""
    import torch

    model = models.overflowing_llama().to(getattr(torch, dtype))
    diagnosis = lora_doctor.check(model, {**TARGETS, "dtype": "float16"})
    (finding,) = [item for item in diagnosis.findings if item.rule == "LD402"]
    assert "down_proj" in finding.message and "e+05" in finding.message
    kind = "executed" if dtype == "float16" else "measured"
    assert finding.proof.kind == kind
    assert not any("clamp" in fix.title.lower() for fix in finding.fixes)
