"""The report on Qwen2.5-VL with a detection head: what is saved is not what was trained.

The report saves the inner PEFT model and the head each by itself, loads with
`AutoPeftModelForCausalLM`, and adapts a language model whose embeddings may be tied. Each row is
first seen with transformers and PEFT alone; nothing raises but the auto class.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.sandbox.worker import Worker
from tests import models
from tests.scenario import holds, prove

pytestmark = pytest.mark.slow

REPORT = "Qwen2.5-VL with a detection head"
TARGETS = ["q_proj", "v_proj"]
#: From here on merging unties the config where a copy of a tied layer was trained.
MERGING_UNTIES = {"peft": ">=0.19"}
#: From here on PEFT looks up whether the vocabulary has grown.
SAVES_RESIZED = {"peft": ">=0.9"}


def trained(model: Any, batch: dict[str, Any]) -> Any:
    """The model after a few steps on everything that is trainable."""
    import torch

    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    for _ in range(3):
        output = model(**batch)
        (output["loss"] if isinstance(output, dict) else output.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def apart(first: Any, second: Any, batch: dict[str, Any]) -> float:
    """How far the logits of two models lie apart, relative to the largest one."""
    import torch

    with torch.no_grad():
        one, two = (model.eval()(**batch)["logits"] for model in (first, second))
    return float((one - two).abs().max() / one.abs().max())


def text_batch() -> dict[str, Any]:
    import torch

    ids = torch.arange(3, 19).reshape(2, 8)
    return {"input_ids": ids, "labels": ids}


def quietly(run: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run()


# --- heads ----------------------------------------------------------------------------------------


def head_is_left_behind(folder: Path) -> None:
    """Inner model saved and loaded: the adapters come back, the trained head does not."""
    import peft
    import torch

    model, batch = models.detector_beside_a_peft_model()
    first = [p.detach().clone() for p in model.detection_head.parameters()]
    trained(model, batch).language.save_pretrained(folder)
    base, _ = models.detector_beside_a_peft_model()
    base.language = peft.PeftModel.from_pretrained(base.language.unload(), folder)
    assert all(
        torch.equal(p, q) for p, q in zip(first, base.detection_head.parameters(), strict=True)
    )
    assert apart(model, base, batch) > 0.05


def test_a_head_beside_the_peft_model_is_not_saved(tmp_path: Path, worker: Worker) -> None:
    """Nothing but a round trip tells: the folder of the inner model is complete in itself."""
    diagnosis = prove(
        REPORT,
        "A trained head stands beside the PeftModel and is not in the adapter folder",
        "LD602",
        "tests.models:detector_beside_a_peft_model",
        None,
        worker=worker,
        occurs=True,
        silently=True,
        plainly=lambda: head_is_left_behind(tmp_path),
        by_hand=(
            "tests.models:detector_with_frozen_base",
            {"target_modules": TARGETS, "modules_to_save": ["detection_head"]},
        ),
    )
    assert [f.rule for f in diagnosis.findings] == ["LD602"], "one cause, one finding"
    assert "detection_head" in diagnosis.findings[0].message


def head_is_frozen() -> None:
    """`get_peft_model` freezes everything, also what somebody left trainable on purpose."""
    import peft

    model, _ = models.detector_with_frozen_base()
    assert all(p.requires_grad for p in model.detection_head.parameters())
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=TARGETS))
    head = [p for name, p in wrapped.named_parameters() if "detection_head" in name]
    assert head and not any(p.requires_grad for p in head)


def test_a_head_that_peft_freezes(worker: Worker) -> None:
    diagnosis = prove(
        REPORT,
        "A head outside modules_to_save is frozen by PEFT, neither trained nor saved",
        "LD605",
        "tests.models:detector_with_frozen_base",
        {"target_modules": TARGETS},
        worker=worker,
        occurs=True,
        silently=True,
        plainly=head_is_frozen,
    )
    assert diagnosis.fixed_recipe is not None
    assert diagnosis.fixed_recipe.get("modules_to_save") == ["detection_head"]


def test_a_head_unfrozen_by_hand_after_wrapping(worker: Worker) -> None:
    """Tried on the loaded model: it trains on the user's own module, and leaves it as it was."""
    import peft

    model, batch = models.detector_with_frozen_base()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=TARGETS))
    wrapped.base_model.model.detection_head.requires_grad_(True)
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    prove(
        REPORT,
        "A head made trainable by hand after wrapping is not in the adapter folder",
        "LD602",
        wrapped,
        None,
        worker=worker,
        occurs=True,
        silently=True,
        batches=[batch],
        by_hand=(
            models.detector_with_frozen_base()[0],
            {"target_modules": TARGETS, "modules_to_save": ["detection_head"]},
        ),
    )
    after = wrapped.state_dict()
    assert all((before[name] == after[name]).all() for name in before)


def base_folder(folder: Path) -> Path:
    """A checkpoint of a language model, which has no classifier."""
    models.untied_llama().save_pretrained(folder, safe_serialization=True)
    return folder


def another_head_after_every_loading(folder: Path) -> None:
    """The same adapter folder on the same checkpoint answers otherwise each time it is loaded."""
    import peft
    import torch
    from transformers import LlamaForSequenceClassification

    def load() -> Any:
        return quietly(lambda: LlamaForSequenceClassification.from_pretrained(folder))

    batch = {"input_ids": text_batch()["input_ids"], "labels": torch.tensor([0, 1])}
    wrapped = peft.get_peft_model(load(), peft.LoraConfig(target_modules=TARGETS))
    trained(wrapped, batch).save_pretrained(folder / "adapter")
    assert apart(wrapped, peft.PeftModel.from_pretrained(load(), folder / "adapter"), batch) > 0.05


def test_a_head_that_the_checkpoint_does_not_have(tmp_path: Path, worker: Worker) -> None:
    """A detection or classification head on a base checkpoint is random and stays so."""
    recipe = {
        "model_class": "AutoModelForSequenceClassification",
        "task_type": None,
        "target_modules": TARGETS,
    }
    folder = base_folder(tmp_path / "model")
    diagnosis = prove(
        REPORT,
        "A fresh head on a base checkpoint is made anew at every loading",
        "LD606",
        str(folder),
        recipe,
        worker=worker,
        occurs=True,
        silently=True,
        plainly=lambda: another_head_after_every_loading(folder),
    )
    assert [item.rule for item in diagnosis.findings] == ["LD606"]
    for quiet in ({**recipe, "task_type": "SEQ_CLS"}, {"target_modules": TARGETS}):
        again = lora_doctor.check(str(folder), quiet, worker=worker)
        assert "LD606" not in {item.rule for item in again.findings}, quiet


# --- tied embeddings ------------------------------------------------------------------------------


def merging_changes_the_model(target: str) -> None:
    """Loading the adapter gives the same logits, merging it does not."""
    import copy

    import peft

    model, batch = models.tied_llama(), text_batch()
    config = peft.LoraConfig(target_modules=["q_proj", target], task_type="CAUSAL_LM")
    wrapped = trained(quietly(lambda: peft.get_peft_model(model, config)), batch)
    merged = quietly(lambda: copy.deepcopy(wrapped).merge_and_unload())
    assert apart(wrapped, merged, batch) > 0.01


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_a_tied_layer_is_merged_into_its_twin(target: str, worker: Worker) -> None:
    diagnosis = prove(
        REPORT,
        f"LoRA on a tied {target}: the merged model answers otherwise",
        "LD607",
        "tests.models:tied_llama",
        {"target_modules": ["q_proj", target], "task_type": "CAUSAL_LM"},
        worker=worker,
        occurs=True,
        silently=True,
        plainly=lambda: merging_changes_the_model(target),
    )
    finding = next(item for item in diagnosis.findings if item.rule == "LD607")
    assert {fix.safety for fix in finding.fixes} == {"unsafe", "manual"}
    assert "LD001" not in {item.rule for item in diagnosis.findings}


def test_also_where_the_base_is_quantized(tmp_path: Path, worker: Worker) -> None:
    """Merging is not tried on quantized weights, but it is done later, without quantization."""
    models.tied_llama().save_pretrained(tmp_path, safe_serialization=True)
    recipe = {"target_modules": ["q_proj", "lm_head"], "load_in_4bit": True}
    found = lora_doctor.check(str(tmp_path), recipe, worker=worker).findings
    assert "LD607" in {item.rule for item in found}, found


def test_untied_by_hand_an_adapter_on_the_head_is_fine(worker: Worker) -> None:
    """The manual fix, followed."""
    recipe = {"target_modules": ["q_proj", "lm_head"], "task_type": "CAUSAL_LM"}
    diagnosis = lora_doctor.check("tests.models:untied_llama", recipe, worker=worker)
    assert "LD607" in diagnosis.passed and diagnosis.verdict == "healthy", diagnosis.findings


def test_peft_s_own_tying_of_an_adapter_is_not_offered(worker: Worker) -> None:
    """`ensure_weight_tying` sounds like the fix; with an adapter the merged model is worse."""
    from lora_doctor.static.installed.environment import lora_config_fields

    if "ensure_weight_tying" not in (lora_config_fields() or ()):
        pytest.skip("this PEFT has no ensure_weight_tying")
    recipe = {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True}
    diagnosis = lora_doctor.check("tests.models:tied_llama", recipe, worker=worker)
    assert [item.rule for item in diagnosis.findings] == ["LD607"]


def copy_is_tied_again(folder: Path) -> None:
    """In memory the merged model is right; saved and loaded it is not, unless it says so."""
    import copy

    import peft

    model, batch = models.tied_llama(), text_batch()
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    wrapped = trained(quietly(lambda: peft.get_peft_model(model, config)), batch)
    merged = quietly(lambda: copy.deepcopy(wrapped).merge_and_unload())
    assert apart(wrapped, merged, batch) < 1e-4
    merged.save_pretrained(folder)
    loaded = type(merged).from_pretrained(folder)
    assert (apart(wrapped, loaded, batch) < 1e-4) is holds(MERGING_UNTIES)
    merged.config.tie_word_embeddings = False
    merged.save_pretrained(folder / "untied")
    assert apart(wrapped, type(merged).from_pretrained(folder / "untied"), batch) < 1e-4


def test_a_trained_copy_of_a_tied_head_is_lost_with_the_merged_model(
    tmp_path: Path, worker: Worker
) -> None:
    """The fix by hand is also in `copy_is_tied_again`."""
    prove(
        REPORT,
        "A tied lm_head in modules_to_save: the merged model, saved and loaded, has lost it",
        "LD608",
        "tests.models:tied_llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "task_type": "CAUSAL_LM"},
        worker=worker,
        occurs=not holds(MERGING_UNTIES),
        silently=True,
        plainly=lambda: copy_is_tied_again(tmp_path),
        by_hand=(
            "tests.models:untied_llama",
            {
                "target_modules": ["q_proj"],
                "modules_to_save": ["lm_head"],
                "task_type": "CAUSAL_LM",
            },
        ),
    )


# --- loading --------------------------------------------------------------------------------------


def load_by_auto_class(folder: Path) -> None:
    import peft
    from transformers import LlavaForConditionalGeneration

    config = models.tiny_llava_config()
    base = LlavaForConditionalGeneration(config)
    base.save_pretrained(folder / "base", safe_serialization=True)
    base = LlavaForConditionalGeneration.from_pretrained(folder / "base")
    wrapped = peft.get_peft_model(
        base, peft.LoraConfig(target_modules=TARGETS, task_type="CAUSAL_LM")
    )
    wrapped.save_pretrained(folder / "adapter")
    peft.AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")


def test_the_auto_class_of_peft_does_not_know_the_class(tmp_path: Path, worker: Worker) -> None:
    """Only said to those who chose the task type; an info, for nothing is lost."""
    from transformers import LlavaConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    language_only = {"target_modules": r".*language_model.*\.(q_proj|v_proj)"}
    occurs = LlavaConfig not in MODEL_FOR_CAUSAL_LM_MAPPING
    diagnosis = prove(
        REPORT,
        "AutoPeftModelForCausalLM on a class that its mapping does not have",
        "LD610",
        "arch:llava",
        {**language_only, "task_type": "CAUSAL_LM"},
        worker=worker,
        occurs=occurs,
        plainly=lambda: load_by_auto_class(tmp_path),
        by_hand=("arch:llava", {**language_only, "task_type": None}),
    )
    finding = next((item for item in diagnosis.findings if item.rule == "LD610"), None)
    assert (finding is not None and finding.severity == "info") is occurs
    silent = lora_doctor.check("arch:llava", language_only, worker=worker)
    assert "LD610" in silent.passed, "nobody asked for that task type"


def resized(folder: Path) -> Any:
    """A model loaded from a folder, whose vocabulary somebody has extended."""
    from transformers import LlamaForCausalLM

    models.untied_llama().save_pretrained(folder, safe_serialization=True)
    model = LlamaForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(70)
    return model


def new_rows_are_lost(folder: Path) -> None:
    """The adapter folder loads onto the original base without a word, with the old vocabulary."""
    import peft
    from transformers import LlamaForCausalLM

    wrapped = peft.get_peft_model(
        resized(folder / "base"), peft.LoraConfig(target_modules=TARGETS, task_type="CAUSAL_LM")
    )
    quietly(lambda: wrapped.save_pretrained(folder / "adapter"))
    base = LlamaForCausalLM.from_pretrained(folder / "base")
    loaded = quietly(lambda: peft.PeftModel.from_pretrained(base, folder / "adapter"))
    assert loaded.get_input_embeddings().weight.shape[0] == 64


def test_resized_embeddings_that_are_not_saved(tmp_path: Path, worker: Worker) -> None:
    occurs = not holds(SAVES_RESIZED)
    prove(
        REPORT,
        "Resized embeddings are not in the adapter folder",
        "LD609",
        resized(tmp_path / "model"),
        {"target_modules": TARGETS, "task_type": "CAUSAL_LM"},
        worker=worker,
        occurs=occurs,
        silently=True,
        plainly=(lambda: new_rows_are_lost(tmp_path / "plain")) if occurs else None,
    )


def test_an_untied_model_is_left_in_peace(worker: Worker) -> None:
    for recipe in (
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ):
        diagnosis = lora_doctor.check("arch:llama", recipe, worker=worker)
        assert {"LD607", "LD608"} <= set(diagnosis.passed), (recipe, diagnosis.findings)


def test_what_a_class_freezes_itself_says_nothing(worker: Worker) -> None:
    """Whisper freezes its position table; the rest is not "left trainable on purpose"."""
    recipe = {"target_modules": TARGETS}
    assert "LD605" in lora_doctor.check("arch:whisper", recipe, worker=worker).passed


def test_a_choice_is_told_from_what_a_class_freezes_by_itself() -> None:
    """IDEFICS leaves its cross-attention trainable and freezes the rest, in its constructor."""
    transformers = pytest.importorskip("transformers")
    from lora_doctor.contract.saved_files import chosen_trainable

    config = transformers.IdeficsConfig(
        vocab_size=64, hidden_size=32, intermediate_size=2048, num_hidden_layers=2,
        num_attention_heads=2, cross_layer_interval=2, qk_layer_norms=True,
        vision_config={"embed_dim": 32, "intermediate_size": 2048, "num_attention_heads": 2,
                       "num_hidden_layers": 2, "image_size": 28, "patch_size": 14},
        perceiver_config={"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
                          "resampler_head_dim": 16},
    )  # fmt: skip
    model = transformers.IdeficsForVisionText2Text(config)
    assert not all(parameter.requires_grad for parameter in model.parameters())
    assert not chosen_trainable(model)
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    assert any(path.startswith("lm_head") for path in chosen_trainable(model))


def test_what_the_adapters_train_is_not_called_untrained() -> None:
    """A frozen tower and a small trainable language model: LoRA is how that one is trained."""
    import peft
    import torch

    from lora_doctor.contract.saved_files import chosen_trainable, frozen_by_wrapping

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = torch.nn.Linear(64, 64).requires_grad_(False)
            self.language = torch.nn.ModuleDict({n: torch.nn.Linear(8, 8) for n in "ab"})
            self.head = torch.nn.Linear(8, 2)

    for targets, frozen in ((["a"], ("head",)), (["a", "head"], ())):
        model = Two()
        before = chosen_trainable(model)
        assert set(before) == {"language", "head"}
        wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets))
        assert frozen_by_wrapping(wrapped, before)[0] == frozen
