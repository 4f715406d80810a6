"""The report on Qwen2.5-VL with a detection head: LoRA and a soft prompt on one model, phases of
training, patches before and after wrapping.

The report puts LoRA on with `get_peft_model` and the prompt with a second call, trains the head
first with the adapters at learning rate 0, and patches the model. Which stack has which of the
failures is stated per row, each checked with transformers and PEFT alone.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import types
from collections.abc import Callable
from typing import Any

import pytest

import lora_doctor
from lora_doctor.sandbox.worker import Worker
from tests import models
from tests.scenario import holds, not_here, prove

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*second time:UserWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]

REPORT = "Qwen2.5-VL with a detection head"
#: PEFT before 0.16 reads the sizes of a model off its outer config.
OUTER_CONFIG = holds({"peft": "<0.16"})


def knows(architecture: str) -> bool:
    """Whether the installed transformers has it."""
    auto = importlib.import_module("transformers.models.auto.configuration_auto")
    return architecture in auto.CONFIG_MAPPING_NAMES


# -- adapters stacked (LD505) ------------------------------------------------------------------


def train_and_save(model: Any) -> tuple[dict[str, bool], list[str]]:
    """One step in plain PEFT: which adapter weights moved, and the names that are saved."""
    import peft
    import torch

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.arange(4, 20).reshape(2, 8)
    for _ in range(2):
        model(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids)).loss.backward()
        optimizer.step()
    adapters = [name for name in before if "lora_" in name or "prompt_encoder" in name]
    moved = {name: not torch.equal(before[name], model.get_parameter(name)) for name in adapters}
    return moved, list(peft.get_peft_model_state_dict(model))


def lora_frozen_and_unsaved() -> None:
    moved, saved = train_and_save(models.lora_then_prompt())
    assert not any(moved[name] for name in moved if "lora_" in name)
    assert not any("lora_" in name for name in saved)


def prompt_frozen_and_unsaved() -> None:
    moved, saved = train_and_save(prompt_then_lora())
    assert not any(moved[name] for name in moved if "prompt_encoder" in name)
    assert not any("prompt" in name for name in saved)


def every_name_is_longer() -> None:
    """None of the saved names is one that loading onto the model as it was would look for."""
    _, saved = train_and_save(models.lora_in_lora())
    _, wanted = train_and_save(models.lora_and_another())
    names = {name.replace("o_proj", "q_proj") for name in wanted}
    assert saved and wanted and not names & set(saved)
    assert all(name.startswith("base_model.model.base_model.") for name in saved)


def first_adapter_is_replaced() -> None:
    """What was trained in the layers that both calls name is gone with the second call."""
    import peft
    import torch

    base = models._tiny_llama()
    first = peft.get_peft_model(base, models._lora("q_proj", "v_proj", init_lora_weights=False))
    layer = first.base_model.model.model.layers[0].self_attn.q_proj
    trained = layer.lora_B["default"].weight.detach().clone()
    assert bool(trained.any())
    peft.get_peft_model(base, models._lora("q_proj", "o_proj"))
    again = base.model.layers[0].self_attn.q_proj.lora_B["default"].weight
    assert not torch.equal(trained, again) and not bool(again.any())


def prompt_then_lora() -> Any:
    import peft

    model = peft.get_peft_model(models._tiny_llama(), models._prompt())
    return peft.get_peft_model(model, models._lora("q_proj", "v_proj"))


@pytest.mark.parametrize(
    ("failure", "make", "plainly", "by_hand"),
    [
        (
            "LoRA, then prompt tuning by a second call",
            models.lora_then_prompt,
            lora_frozen_and_unsaved,
            models.prompt_on_merged,
        ),
        (
            "prompt tuning, then LoRA by a second call",
            prompt_then_lora,
            prompt_frozen_and_unsaved,
            models.prompt_on_merged,
        ),
        (
            "LoRA around a model that has LoRA",
            models.lora_in_lora,
            every_name_is_longer,
            models.lora_and_another,
        ),
        (
            "LoRA twice on the same base model",
            models.lora_twice_on_one_base,
            first_adapter_is_replaced,
            models.lora_and_another,
        ),
    ],
)
def test_stacked_adapters(
    failure: str,
    make: Callable[[], Any],
    plainly: Callable[[], Any],
    by_hand: Callable[[], Any],
    worker: Worker,
) -> None:
    """Silent on every stack; nothing raises until the saved adapter turns out to do nothing."""
    diagnosis = prove(
        REPORT, failure, "LD505", make(), None, worker=worker, occurs=True, silently=True,
        plainly=plainly, by_hand=(by_hand(), None),
    )  # fmt: skip
    assert "LD001" not in {finding.rule for finding in diagnosis.findings}


@pytest.mark.parametrize(
    "make",
    [models.lora_and_another, models.prompt_on_merged, models.lora_and_loha_mixed],
)
def test_the_ways_out_train(make: Callable[[], Any]) -> None:
    """Each that a fix names: another adapter, one after the other, one mixed model."""
    found = lora_doctor.check(make(), ignore=("LD602",))
    assert found.verdict == "healthy", (found.findings, found.undetermined)


def test_a_mixed_model_cannot_be_saved(tmp_path: Any) -> None:
    """What the fix says about it, so that nobody finds out after the training."""
    with pytest.raises(NotImplementedError):
        models.lora_and_loha_mixed().save_pretrained(tmp_path)


# -- prompts on models with images (LD506) -----------------------------------------------------


def text_sizes(**more: Any) -> dict[str, Any]:
    return dict(
        vocab_size=131, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, **more,
    )  # fmt: skip


def vision_sizes() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 8,
        "projection_dim": 32,
    }


def llava() -> Any:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision_sizes()), text_config=LlamaConfig(**text_sizes()),
        image_token_index=100, vision_feature_layer=-1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def paligemma() -> Any:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    config = PaliGemmaConfig(
        text_config=text_sizes(model_type="gemma", head_dim=8),
        vision_config=dict(
            vision_sizes(), model_type="siglip_vision_model", vision_use_head=False
        ),
        image_token_index=100, projection_dim=32, hidden_size=32,
    )  # fmt: skip
    return PaliGemmaForConditionalGeneration(config)


def qwen(name: str) -> Any:
    """A Qwen-VL of 2 layers, positions by time, height and width."""
    transformers = importlib.import_module("transformers")
    vision: dict[str, Any] = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 4,
        "patch_size": 4,
        "in_channels": 3,
        "in_chans": 3,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if name == "Qwen2_5_VL":
        vision |= {
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 16,
        }
    config = getattr(transformers, f"{name}Config")(
        text_config=text_sizes(rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]}),
        vision_config=vision, vision_start_token_id=120, vision_end_token_id=121,
        image_token_id=122, video_token_id=123, tie_word_embeddings=False,
    )  # fmt: skip
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def trains(build: Callable[[], Any], method: str, image: bool = False) -> Callable[[], None]:
    """A forward and backward of the plain model with this prompt method."""

    def run() -> None:
        import peft
        import torch

        configs = {
            "PROMPT_TUNING": peft.PromptTuningConfig,
            "PREFIX_TUNING": peft.PrefixTuningConfig,
        }
        config = configs[method](num_virtual_tokens=4, task_type="CAUSAL_LM")
        model = peft.get_peft_model(build(), config)
        ids = torch.arange(4, 24).reshape(2, 10)
        more: dict[str, Any] = {}
        if build is paligemma:
            more["token_type_ids"] = torch.ones_like(ids)
        if image:
            ids = torch.tensor([[5, 6, 120, 122, 122, 122, 122, 121, 7, 8]])
            more = {
                "pixel_values": torch.randn(16, 96), "image_grid_thw": torch.tensor([[1, 4, 4]])
            }  # fmt: skip
            if holds({"transformers": ">=5"}):
                more["mm_token_type_ids"] = (ids == 122).long()
        mask = torch.ones_like(ids)
        model(input_ids=ids, attention_mask=mask, labels=ids, **more).loss.backward()

    return run


def query_tokens_stay_trainable() -> None:
    """PEFT freezes the children of the model; what is its own keeps its ``requires_grad``."""
    import peft
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        OPTConfig,
    )

    vision = {k: v for k, v in vision_sizes().items() if k != "projection_dim"}
    qformer = Blip2QFormerConfig(
        vocab_size=131, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, encoder_hidden_size=32,
    )  # fmt: skip
    text = OPTConfig(
        vocab_size=131, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4,
        word_embed_proj_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**vision).to_dict(), qformer_config=qformer.to_dict(),
        text_config=text.to_dict(), num_query_tokens=4,
    )  # fmt: skip
    base = Blip2ForConditionalGeneration(config)
    model = peft.get_peft_model(
        base, peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    )
    assert model.base_model.query_tokens.requires_grad
    assert not any("query" in name for name in peft.get_peft_model_state_dict(model))


def prompt_recipe(method: str) -> dict[str, Any]:
    return {"peft_type": method, "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize(
    ("failure", "architecture", "method", "occurs", "plainly"),
    [
        (
            "prompt tuning on LLaVA", "llava", "PROMPT_TUNING", OUTER_CONFIG,
            trains(llava, "PROMPT_TUNING"),
        ),
        (
            "prefix tuning on LLaVA", "llava", "PREFIX_TUNING", OUTER_CONFIG,
            trains(llava, "PREFIX_TUNING"),
        ),
        (
            "prompt tuning on PaliGemma", "paligemma", "PROMPT_TUNING", OUTER_CONFIG,
            trains(paligemma, "PROMPT_TUNING"),
        ),
        (
            "prompt tuning on Qwen2.5-VL", "qwen2_5_vl", "PROMPT_TUNING", OUTER_CONFIG,
            trains(lambda: qwen("Qwen2_5_VL"), "PROMPT_TUNING", image=True),
        ),
        (
            "prefix tuning on Qwen2.5-VL", "qwen2_5_vl", "PREFIX_TUNING", True,
            trains(lambda: qwen("Qwen2_5_VL"), "PREFIX_TUNING", image=True),
        ),
        (
            "prefix tuning on Qwen2-VL", "qwen2_vl", "PREFIX_TUNING", True,
            trains(lambda: qwen("Qwen2VL"), "PREFIX_TUNING", image=True),
        ),
    ],
)  # fmt: skip
def test_prompts_on_models_with_images(
    failure: str,
    architecture: str,
    method: str,
    occurs: bool,
    plainly: Callable[[], Any],
    worker: Worker,
) -> None:
    """Found and fixed where it raises, silent where PEFT has learnt to read such a model."""
    if not knows(architecture):
        version = importlib.metadata.version("transformers")
        not_here(REPORT, failure, "LD506", f"transformers {version} has no {architecture}")
    prove(
        REPORT, failure, "LD506", f"arch:{architecture}", prompt_recipe(method), worker=worker,
        occurs=occurs, plainly=plainly,
    )  # fmt: skip


def test_query_tokens_under_prefix_tuning(worker: Worker) -> None:
    """Before PEFT 0.16 it is refused; later the query tokens are trained and not saved."""
    prove(
        REPORT, "prefix tuning on BLIP-2", "LD506", "arch:blip-2",
        prompt_recipe("PREFIX_TUNING"), worker=worker, occurs=True,
        silently=not OUTER_CONFIG, plainly=query_tokens_stay_trainable,
    )  # fmt: skip


# -- the optimizer and its phases (LD503, LD510) -----------------------------------------------


def in_optimizer(make: Callable[[], tuple[Any, dict[str, Any]]]) -> Callable[[], None]:
    """A step of this optimizer moves no adapter weight, though gradients arrive."""

    def run() -> None:
        import torch

        model, options = make()
        optimizer = options["optimizer"]
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        ids = torch.arange(4, 20).reshape(2, 8)
        for _ in range(2):
            output = model(input_ids=ids, labels=ids)
            output["loss"].backward()
            optimizer.step()
        adapters = [name for name in before if "lora_" in name]
        assert adapters and all(model.get_parameter(name).grad is not None for name in adapters)
        assert all(torch.equal(before[name], model.get_parameter(name)) for name in adapters)

    return run


def made_last() -> tuple[Any, dict[str, Any]]:
    """What the fix says: after the adapters, of what requires a gradient."""
    import peft
    import torch

    model = peft.get_peft_model(models._tiny_llama(), models._lora("q_proj", "v_proj"))
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, {"optimizer": torch.optim.AdamW(trained, lr=1e-3)}


@pytest.mark.parametrize(
    ("failure", "rule", "make"),
    [
        ("the optimizer is made before get_peft_model", "LD503", models.optimizer_before_adapters),
        (
            "groups by name leave the adapters out while they rest",
            "LD503",
            models.optimizer_without_adapters_in_any_phase,
        ),
        (
            "the adapters' learning rate is 0 in every phase",
            "LD510",
            models.optimizer_at_learning_rate_zero,
        ),
    ],
)
def test_adapters_that_no_optimizer_moves(
    failure: str, rule: str, make: Callable[[], tuple[Any, dict[str, Any]]], worker: Worker
) -> None:
    model, options = make()
    fixed, right = made_last()
    prove(
        REPORT, failure, rule, model, None, worker=worker, occurs=True, silently=True,
        plainly=in_optimizer(make), by_hand=(fixed, None, right), **options,
    )  # fmt: skip


def test_the_reports_own_phases_are_right(worker: Worker) -> None:
    """Learning rate 0 in the first phase and not in the later ones is what was meant."""
    model, options = models.optimizer_in_phases()
    prove(
        REPORT, "phases: adapters rest at first, learn later", "LD510", model, None,
        worker=worker, occurs=False, **options,
    )  # fmt: skip


# -- patches and wrapping (LD504) --------------------------------------------------------------


def patch_is_not_called() -> None:
    """In plain PEFT: the forward's result is the same with and without the patch."""
    import torch

    model, batch = models.patch_on_the_wrapper()
    with torch.no_grad():
        patched = model(**batch)["logits"]
        del model.score
        assert torch.equal(patched, model(**batch)["logits"])


def adapters_are_passed_by() -> None:
    import peft

    base, batch = models.patch_that_holds_layers()
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    assert not model(**batch)["loss"].requires_grad


@pytest.mark.parametrize(
    ("failure", "make", "recipe", "plainly", "by_hand"),
    [
        (
            "a method patched on the PeftModel, which the model inside does not see",
            models.patch_on_the_wrapper,
            None,
            patch_is_not_called,
            models.patch_on_the_base,
        ),
        (
            "a patched forward that holds the layers from before",
            models.patch_that_holds_layers,
            {"target_modules": ["q_proj", "v_proj"], "r": 4},
            adapters_are_passed_by,
            models.patch_that_looks_layers_up,
        ),
    ],
)
def test_patches_that_wrapping_loses(
    failure: str,
    make: Callable[[], Any],
    recipe: Any,
    plainly: Callable[[], Any],
    by_hand: Callable[[], Any],
    worker: Worker,
) -> None:
    (model, batch), (fixed, _) = make(), by_hand()
    prove(
        REPORT, failure, "LD504", model, recipe, worker=worker, occurs=True, silently=True,
        plainly=plainly, by_hand=(fixed, recipe), batches=[batch],
    )  # fmt: skip


# -- all of it at once -------------------------------------------------------------------------


def detector(base: Any) -> Any:
    """The report's model: LoRA in a vision-language model, an adapter of its own and heads for
    boxes, both losses."""
    import peft
    import torch
    from torch import nn

    targets = r".*language_model.*\.(q_proj|v_proj)"

    class Detector(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            width = base.get_input_embeddings().embedding_dim
            config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
            self.base_model = peft.get_peft_model(base, config)
            self.detection_adapter = nn.Sequential(
                nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width)
            )
            self.bbox_head, self.objectness_head = nn.Linear(width, 4), nn.Linear(width, 1)

        def forward(self, **inputs: Any) -> dict[str, Any]:
            output = self.base_model(output_hidden_states=True, **inputs)
            hidden = output.hidden_states[-1][:, -1]
            hidden = hidden + self.detection_adapter(hidden)
            boxes, presence = self.bbox_head(hidden).sigmoid(), self.objectness_head(hidden)
            detection = (boxes - 0.5).square().mean() + nn.functional.softplus(presence).mean()
            return {"loss": output.loss + detection, "logits": output.logits, "boxes": boxes}

    torch.manual_seed(0)
    return Detector()


def tiny_base() -> Any:
    """Qwen2.5-VL where it trains from a nested config, else LLaVA; float32, random weights."""
    import torch

    torch.manual_seed(0)
    return qwen("Qwen2_5_VL") if holds({"transformers": ">=4.57"}) else llava()


def groups(model: Any, adapter_rate: float) -> list[dict[str, Any]]:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    lora = [p for name, p in trained if "lora_" in name]
    rest = [p for name, p in trained if "lora_" not in name]
    return [{"params": rest, "lr": 1e-4}, {"params": lora, "lr": adapter_rate}]


def test_the_whole_model_with_its_phases() -> None:
    """The report's plan done right trains in every part but the saving of its heads; done as
    planned, each failure is told apart from the others."""
    import torch

    ids = torch.arange(4, 24).reshape(2, 10)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    model = detector(tiny_base())
    phases = {"stabilise": groups(model, 0.0), "joint": groups(model, 5e-6)}
    found = lora_doctor.check(model, optimizer=phases, batches=[batch])
    assert found.before is not None
    # The heads are trained beside the adapters and are not in their folder: LD602's matter.
    assert {item.name for item in found.before.failed_checks} == {"attaches", "save-reload"}
    assert all(item.with_gradient == item.count for item in found.before.adapters)
    codes = {item.rule for item in found.findings}
    others = {"LD001", "LD503", "LD504", "LD505", "LD510", "LD511"}
    assert "LD602" in codes and not codes & others, found.findings

    early = torch.optim.AdamW(groups(model, 0.0)[:1])  # made in the first phase, never again
    model.base_model.get_rope_index = types.MethodType(lambda self, *a, **k: None, model.base_model)
    found = lora_doctor.check(model, optimizer=early, batches=[batch])
    told = {item.rule: item.message for item in found.findings}
    assert "in no parameter group" in told["LD503"] and "lora_A" in told["LD503"]
    assert not {"LD001", "LD505", "LD510"} & set(told)
