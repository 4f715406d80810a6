"""The report on ModifiedLISA: vision-language models as one encoder for pictures and text.

It put LoRA on LLaVA, SmolVLM, Qwen2-VL and PaliGemma (and on CLIP and Qwen3 apart) with r=16,
alpha=32 and dropout=0.1, in five precisions or frozen, with names for targets. The language tower
was meant. What transformers and PEFT alone make of it stands in ``tests/vlm_folders.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.sandbox.worker import Worker
from tests import vlm_folders
from tests.scenario import message_of, not_here, prove, record
from tests.vlm_folders import PRECISIONS, PUBLISHED, RECIPE

pytestmark = pytest.mark.slow

REPORT = "ModifiedLISA"
NO_GPU = "No GPU found"
#: Names that language models of Llama's kind and CLIP's vision tower share.
NAMES = {**RECIPE, "target_modules": ["q_proj", "v_proj"]}


def kinds_of(diagnosis: lora_doctor.Diagnosis) -> dict[str, str]:
    assert diagnosis.structure is not None, diagnosis.undetermined
    return {tower.path: tower.kind for tower in diagnosis.structure.towers}


def arch(name: str) -> str:
    return f"arch:{PUBLISHED[name].entries['model_type']}"


def skip_where_missing(name: str) -> None:
    missing = vlm_folders.missing_class(name)
    if missing:
        pytest.skip(missing)


# --- what the models are made of ------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_towers_of_a_published_checkpoint(name: str, tmp_path: Path, worker: Worker) -> None:
    """At its full size, from a local config.json; the numbers are those of the published model."""
    skip_where_missing(name)
    folder = vlm_folders.write_config(tmp_path / "model", name)
    diagnosis = lora_doctor.check(str(folder), RECIPE, depth="meta", worker=worker)
    structure = diagnosis.structure
    assert structure is not None, diagnosis.undetermined
    assert structure.model_class == PUBLISHED[name].model_class
    assert structure.total_parameters == PUBLISHED[name].parameters
    assert sorted(kinds_of(diagnosis).values()) == sorted(PUBLISHED[name].towers)
    trained = {structure.tower(group.tower) for group in structure.groups if group.adapted}
    assert [tower.kind for tower in trained if tower] == ["language"]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("kind", ["arch", "folder"])
def test_the_default_recipe_trains_the_language_tower_only(
    name: str, kind: str, tmp_path: Path, worker: Worker
) -> None:
    """On pictures with text, and on text alone where the model takes it: no adapter is idle."""
    skip_where_missing(name)
    folder = tmp_path / "model"
    model = arch(name) if kind == "arch" else str(vlm_folders.write_config(folder, name))
    diagnosis = lora_doctor.check(model, RECIPE, worker=worker)
    assert diagnosis.verdict == "healthy", (diagnosis.findings, diagnosis.undetermined)
    result = diagnosis.before
    assert result is not None and result.outcome == "passed"
    kinds = {"text"} if name == "Qwen3" else {"image+text"}
    if name not in ("Qwen3", "CLIP"):  # a dual encoder has no loss without a picture
        kinds.add("text")
    assert {batch.kind for batch in result.batches} == kinds
    language = [path for path, tower in kinds_of(diagnosis).items() if tower == "language"]
    for group in result.adapters:
        assert group.pattern.startswith(tuple(f"{path}." for path in language)), group
        assert group.with_gradient == group.moved == group.count
        assert set(group.batches) == kinds


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_precision(name: str, tmp_path: Path, worker: Worker) -> None:
    """Real weights, loaded in each precision: the verdict is what plain PEFT shows."""
    failure = f"{name}: the default recipe in five precisions"
    missing = vlm_folders.missing_class(name)
    if missing:
        not_here(REPORT, failure, "every rule", missing)
    folder = vlm_folders.write_checkpoint(tmp_path / "model", name)
    outcome: dict[str, list[str]] = {}
    for precision, entries in PRECISIONS.items():
        plain = message_of(lambda p=precision: expect_training(folder, name, p))
        if NO_GPU in plain:
            outcome.setdefault("not without a GPU", []).append(precision)
            continue
        recipe = {**RECIPE, **entries}
        diagnosis = lora_doctor.check(
            str(folder), recipe, depth="full", device="cpu", worker=worker
        )
        found = {finding.rule for finding in diagnosis.findings}
        if plain:
            assert found and "LD001" not in found, (precision, plain, diagnosis.undetermined)
            outcome.setdefault(f"found ({', '.join(sorted(found))})", []).append(precision)
            continue
        assert diagnosis.verdict == "healthy", (precision, found, diagnosis.undetermined)
        result = diagnosis.before
        assert result is not None and result.outcome == "passed"
        assert all(group.with_gradient == group.count for group in result.adapters)
        outcome.setdefault("trains", []).append(precision)
    text = "; ".join(f"{word}: {', '.join(which)}" for word, which in outcome.items())
    record(REPORT, failure, "every rule", text)


def expect_training(folder: Path, name: str, precision: str) -> None:
    reason = vlm_folders.trains_plainly(folder, name, precision)
    if reason:
        raise AssertionError(reason)


@pytest.mark.parametrize("precision", ["4-bit", "8-bit"])
def test_paligemma_quantized_and_prepared(precision: str, tmp_path: Path, worker: Worker) -> None:
    """Without a dtype 4.57 loads the rest in float16, PEFT makes it float32, and its masks stay."""
    import transformers

    failure = f"PaliGemma in {precision}: prepare_model_for_kbit_training mixes dtypes"
    missing = vlm_folders.missing_class("PaliGemma")
    if missing:
        not_here(REPORT, failure, "LD303", missing)
    folder = vlm_folders.write_checkpoint(tmp_path / "model", "PaliGemma")

    def plainly() -> None:
        expect_training(folder, "PaliGemma", precision)

    if NO_GPU in message_of(plainly):
        not_here(REPORT, failure, "LD303", "not without a GPU")
    prove(
        REPORT, failure, "LD303", "arch:paligemma", {**RECIPE, **PRECISIONS[precision]},
        worker=worker, occurs=transformers.__version__.startswith("4.57."), plainly=plainly,
    )  # fmt: skip


# --- frozen ---------------------------------------------------------------------------------------


def test_frozen_before_wrapping(worker: Worker) -> None:
    """The report's `--vlm_freeze` with LoRA: PEFT's adapters are trainable whatever the base is."""
    model = small_llava().requires_grad_(False)
    prove(
        REPORT, "a model frozen before LoRA is put on", "LD502", model, NAMES_OF_LANGUAGE,
        worker=worker, occurs=False, plainly=lambda: backward(wrapped(small_llava(), freeze=False)),
    )  # fmt: skip


def test_frozen_after_wrapping(worker: Worker) -> None:
    """The same flag a line later: nothing is left to train."""
    by_hand = wrapped(small_llava(), freeze=True)
    for name, parameter in by_hand.named_parameters():
        parameter.requires_grad_("lora_" in name)
    prove(
        REPORT, "a model frozen after LoRA was put on", "LD502",
        wrapped(small_llava(), freeze=True), None,
        worker=worker, occurs=True, by_hand=(by_hand, None),
        plainly=lambda: backward(wrapped(small_llava(), freeze=True)),
    )  # fmt: skip


NAMES_OF_LANGUAGE = {**RECIPE, "target_modules": r".*language_model.*\.(q_proj|v_proj)"}


def small_llava() -> Any:
    return vlm_folders.build("LLaVA 1.5")


def wrapped(model: Any, *, freeze: bool, targets: Any = None) -> Any:
    import peft

    targets = targets or NAMES_OF_LANGUAGE["target_modules"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, **RECIPE))
    return adapted.requires_grad_(False) if freeze else adapted


def backward(model: Any, kind: str = "image+text", name: str = "LLaVA 1.5") -> Any:
    """One training forward and backward with plain PEFT; returns the model."""
    model.train()
    model(**vlm_folders.batches(name)[kind]).loss.backward()
    return model


# --- targets by name ------------------------------------------------------------------------------


def with_gradient(model: Any, part: str) -> tuple[int, int]:
    """LoRA's B matrices under a part of the path that got a gradient, and how many there are."""
    found = [p for n, p in model.named_parameters() if "lora_B" in n and part in n]
    return sum(p.grad is not None and bool(p.grad.any()) for p in found), len(found)


VISION = {"LLaVA 1.5": "vision_tower", "LLaVA 1.6": "vision_tower", "PaliGemma": "vision_tower",
          "SmolVLM": "vision_model", "SmolVLM2": "vision_model", "Qwen2-VL": "visual"}  # fmt: skip


@pytest.mark.parametrize("name", VISION)
def test_names_that_the_vision_tower_has_too(name: str, worker: Worker) -> None:
    """Qwen2-VL's vision tower calls its layers `qkv` and `proj`: there the names say it."""
    failure = f"{name}: q_proj and v_proj adapt the vision tower too"
    missing = vlm_folders.missing_class(name)
    if missing:
        not_here(REPORT, failure, "LD203", missing)
    occurs = name != "Qwen2-VL"

    def plainly() -> None:
        model = wrapped(vlm_folders.build(name), freeze=False, targets=["q_proj", "v_proj"])
        got, layers = with_gradient(backward(model, "text", name), VISION[name])
        # Adapted, and without gradient on a batch of text: that is the failure.
        assert (layers > 0) is occurs and got == 0

    diagnosis = prove(
        REPORT, failure, "LD203", arch(name), NAMES,
        worker=worker, occurs=occurs, plainly=plainly, silently=True,
    )  # fmt: skip
    if occurs:
        assert diagnosis.fixed_recipe is not None
        targets = diagnosis.fixed_recipe.get("target_modules")
        assert VISION[name] not in str(targets)


def test_the_last_vision_layer_is_never_reached(worker: Worker) -> None:
    """LLaVA takes the features one layer earlier (`vision_feature_layer=-2`), so that the adapters
    of the last one learn nothing, whatever the batch."""
    targets = r".*vision_tower.*\.(q_proj|v_proj)"

    def plainly() -> None:
        model = backward(wrapped(small_llava(), freeze=False, targets=targets))
        got, layers = with_gradient(model, "vision_tower")
        assert (got, layers) == (4, 6)

    diagnosis = prove(
        REPORT, "LLaVA 1.5: the last vision layer never gets a gradient", "LD206",
        arch("LLaVA 1.5"), {**RECIPE, "target_modules": targets},
        worker=worker, occurs=True, plainly=plainly, silently=True,
    )  # fmt: skip
    assert diagnosis.fixed_recipe is not None


LLAMA_NAMES = ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_names_that_this_model_does_not_have(worker: Worker) -> None:
    """Written for Llama, tried on a model whose projections are fused."""
    recipe = {**RECIPE, "target_modules": LLAMA_NAMES}
    prove(
        REPORT, "q_proj, k_proj, v_proj and o_proj on a model that calls none of its layers so",
        "LD201", "arch:gpt_neox", recipe, worker=worker, occurs=True,
        plainly=lambda: wrap_tiny("GPTNeoXForCausalLM", "GPTNeoXConfig"),
    )  # fmt: skip


def test_names_of_which_this_model_has_one(worker: Worker) -> None:
    """Phi-3 has `o_proj`, and its `qkv_proj` is passed by without a word."""
    failure = "q_proj, k_proj, v_proj and o_proj on a model that has only o_proj (Phi-3)"
    import transformers

    if not hasattr(transformers, "Phi3ForCausalLM"):
        not_here(REPORT, failure, "LD202", "no Phi3ForCausalLM here")
    recipe = {**RECIPE, "target_modules": LLAMA_NAMES}

    def plainly() -> None:
        model = wrap_tiny("Phi3ForCausalLM", "Phi3Config")
        adapted = {n.split(".")[-4] for n, _ in model.named_parameters() if "lora_A" in n}
        assert adapted == {"o_proj"}

    prove(
        REPORT, failure, "LD202", "arch:phi3", recipe,
        worker=worker, occurs=True, plainly=plainly, silently=True,
    )  # fmt: skip


def wrap_tiny(model_class: str, config_class: str) -> Any:
    import peft
    import transformers

    config = getattr(transformers, config_class)(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = getattr(transformers, model_class)(config)
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=LLAMA_NAMES, **RECIPE))


def clip_with(task_type: str) -> None:
    import peft

    config = peft.LoraConfig(task_type=task_type, **NAMES)
    backward(peft.get_peft_model(vlm_folders.build("CLIP"), config), name="CLIP")


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "SEQ_2_SEQ_LM"])
def test_clip_taken_for_a_generating_model(task_type: str, worker: Worker) -> None:
    """It has no head for language: from 4.50 on PEFT misses a method of generation, before that
    the forward gets what it does not take."""
    import transformers

    message = message_of(lambda: clip_with(task_type))
    assert message
    says_so = not hasattr(transformers.CLIPModel, "prepare_inputs_for_generation")
    prove(
        REPORT, f"CLIP with task_type {task_type}", "LD101", "arch:clip",
        {**NAMES, "task_type": task_type}, worker=worker, occurs=True,
        plainly=(lambda: clip_with(task_type)) if says_so else None,
    )  # fmt: skip


def test_clip_taken_for_a_text_encoder(worker: Worker) -> None:
    """PEFT's wrapper for language sends CLIP what its forward does not take."""
    prove(
        REPORT, "CLIP with task_type FEATURE_EXTRACTION", "LD102", "arch:clip",
        {**NAMES, "task_type": "FEATURE_EXTRACTION"},
        worker=worker, occurs=True, plainly=lambda: clip_with("FEATURE_EXTRACTION"),
    )  # fmt: skip
