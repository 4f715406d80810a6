"""The patch that drops idle ``None`` arguments: the same numbers as without PEFT, nothing else.

Every model is tiny, random and built from its config class; LoRA starts as nothing (B is zero), so
the wrapped model must give exactly the loss of the bare one.
"""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from lora_doctor.prescription import patches
from lora_doctor.recipe.edit import Patch
from tests.multimodal_models import TEXT, build, tokens
from tests.test_patches import run_at_once

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.slow

DROP = Patch("drop_none_arguments")

S2S, CAUSAL, FEATURES = "SEQ_2_SEQ_LM", "CAUSAL_LM", "FEATURE_EXTRACTION"
MODELS: dict[str, tuple[str, ...]] = {
    "instructblip-t5": (S2S, CAUSAL, FEATURES),
    "instructblip-opt": (CAUSAL,),
    "instructblip-llama": (CAUSAL,),
    "llava-text": (CAUSAL, S2S),
    "t5": (S2S,),
    "blip2-t5": (S2S, CAUSAL),
    "blip2-opt": (CAUSAL,),
    "blip-vqa": (S2S, CAUSAL),
    "blip-caption": (CAUSAL, FEATURES),
    "whisper": (S2S, CAUSAL, FEATURES),
    "speech2text": (S2S, FEATURES),
    "pix2struct": (S2S,),
    "vision-encoder-decoder": (S2S,),
    "clip": (FEATURES, "SEQ_CLS"),
    "wav2vec2-classifier": ("SEQ_CLS",),
}
CASES = [
    pytest.param(name, task, id=f"{name}-{task}")
    for name, tasks in MODELS.items()
    for task in tasks
]


def _targets(model: Any) -> list[str]:
    """Full names of some linear layers in every part of the model."""
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return [name for name in names if "head" not in name and "classifier" not in name][::2]


def _config(model: Any, task: str | None, **more: Any) -> Any:
    return peft.LoraConfig(task_type=task, r=2, target_modules=_targets(model), **more)


def _no_labels(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key != "labels"}


@pytest.fixture(autouse=True)
def _one_process_state() -> Iterator[None]:
    """Each test starts unpatched and must leave no patch behind."""
    torch.manual_seed(0)
    yield
    assert not patches._installed


def _attempt(model: Any, batch: dict[str, Any]) -> str:
    try:
        model(**batch)
    except (TypeError, KeyError) as error:
        return f"{type(error).__name__}: {str(error)[:60]}"
    return "ok"


@pytest.mark.parametrize(("name", "task"), CASES)
def test_the_loss_is_that_of_the_bare_model(name: str, task: str) -> None:
    model, batch = build(name)
    with torch.no_grad():
        want = model(**batch).loss
    wrapped = peft.get_peft_model(model, _config(model, task)).eval()
    unpatched = _attempt(wrapped, batch)

    undo = patches.install(DROP)
    try:
        loss = wrapped(**batch).loss
        assert torch.equal(loss, want), (loss.item(), want.item())
        loss.backward()
        gradients = [
            parameter.grad for name, parameter in wrapped.named_parameters() if "lora_B" in name
        ]
        arrived = [gradient for gradient in gradients if gradient is not None]
        assert arrived and all(bool(gradient.isfinite().all()) for gradient in arrived)
        with wrapped.disable_adapter(), torch.no_grad():
            assert torch.equal(wrapped(**batch).loss, want)
    finally:
        undo()
    assert _attempt(wrapped, batch) == unpatched, "undone is undone"


def _checkpoint(wrapped: Any) -> Any:
    inner = wrapped.get_base_model()
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return wrapped


@pytest.mark.parametrize(("name", "task"), CASES)
def test_training_with_checkpointing_and_hooks(name: str, task: str) -> None:
    """Through ``__call__`` hooks, in train mode, recomputing activations: adapters move."""
    model, batch = build(name)
    plain = copy.deepcopy(model)
    undo = patches.install(DROP)
    try:
        wrapped = peft.get_peft_model(model, _config(model, task)).train()
        try:  # without a task type PEFT adds nothing: what fails there fails without us
            plain = peft.get_peft_model(plain, _config(plain, None)).train()
            _checkpoint(plain)(**batch).loss.backward()
        except (ValueError, RuntimeError) as error:
            pytest.skip(f"no gradient checkpointing here: {error}")
        _checkpoint(wrapped)
        seen: list[str] = []
        hook = wrapped.base_model.register_forward_pre_hook(lambda *_: seen.append("called"))
        trained = [item for item in wrapped.parameters() if item.requires_grad]
        before = [item.detach().clone() for item in trained]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            wrapped(**batch).loss.backward()
            optimizer.step()
        hook.remove()
        assert seen == ["called"] * 2
        assert any(not torch.equal(old, new) for old, new in zip(before, trained, strict=True))
    finally:
        undo()


@pytest.mark.parametrize(
    ("name", "task"), [case for case in CASES if case.values[1] in (S2S, CAUSAL)]
)
def test_generate_is_that_of_the_bare_model(name: str, task: str) -> None:
    model, batch = build(name)
    inputs = _no_labels(batch)
    options = {"max_new_tokens": 3, "do_sample": False, "min_new_tokens": 3}
    torch.manual_seed(1)
    try:
        want = model.generate(**inputs, **options)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not ours
        pytest.skip(f"the bare model does not generate here: {type(error).__name__}: {error}")
    undo = patches.install(DROP)
    try:
        wrapped = peft.get_peft_model(model, _config(model, task)).eval()
        torch.manual_seed(1)
        assert torch.equal(wrapped.generate(**inputs, **options), want)
    finally:
        undo()


def test_merged_and_reloaded_models_need_no_patch(tmp_path: Any) -> None:
    model, batch = build("instructblip-t5")
    other = copy.deepcopy(model)
    undo = patches.install(DROP)
    try:
        config = _config(model, S2S, init_lora_weights=False)
        wrapped = peft.get_peft_model(model, config).eval()
        with torch.no_grad():
            want = wrapped(**batch).logits
            wrapped.save_pretrained(tmp_path)
            again = peft.PeftModel.from_pretrained(other, tmp_path).eval()
            assert torch.allclose(again(**batch).logits, want, atol=1e-5)
            wrapped.merge_adapter()
            assert torch.allclose(wrapped(**batch).logits, want, atol=1e-5)
            wrapped.unmerge_adapter()
        merged = wrapped.merge_and_unload()
    finally:
        undo()
    with torch.no_grad():
        assert torch.allclose(merged(**batch).logits, want, atol=1e-5)


def _tiny_llama() -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, **TEXT,
        )
    )  # fmt: skip


def test_it_is_silent_where_it_is_not_needed(caplog: pytest.LogCaptureFixture) -> None:
    model = _tiny_llama()
    undo = patches.install(DROP)
    try:
        wrapped = peft.get_peft_model(model, _config(model, CAUSAL))
        with caplog.at_level(logging.INFO, logger="lora_doctor"):
            wrapped(input_ids=tokens(2), labels=tokens(2)).loss.backward()
    finally:
        undo()
    assert not [record for record in caplog.records if record.name == "lora_doctor"]


def test_it_says_once_what_it_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model, batch = build("whisper")
    undo = patches.install(DROP)
    try:
        wrapped = peft.get_peft_model(model, _config(model, S2S))
        with caplog.at_level(logging.INFO, logger="lora_doctor"):
            wrapped(**batch)
            wrapped(**batch)
    finally:
        undo()
    (record,) = [record for record in caplog.records if record.name == "lora_doctor"]
    assert "WhisperForConditionalGeneration.forward does not take input_ids" in record.getMessage()


def test_a_value_is_never_dropped() -> None:
    """What the caller really gives still ends in the model's own error."""
    model, batch = build("whisper")
    undo = patches.install(DROP)
    try:
        wrapped = peft.get_peft_model(model, _config(model, S2S))
        with pytest.raises(TypeError, match=r"inputs_embeds|input_ids"):
            wrapped(**batch, input_ids=tokens(2))
    finally:
        undo()


class _Picky(torch.nn.Module):
    """Tells which keyword arguments arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.config = transformers.PretrainedConfig()

    def prepare_inputs_for_generation(self) -> None: ...

    def _prepare_encoder_decoder_kwargs_for_generation(self) -> None: ...

    def forward(self, x: Any, labels: Any = 5, return_dict: Any = None, **kwargs: Any) -> Any:
        return {"labels": labels, **kwargs}


def test_only_what_peft_adds_and_means_nothing_is_dropped() -> None:
    """A default other than None, and a None that the caller gave by a name of the model's own,
    mean something."""
    undo = patches.install(DROP)
    try:
        wrapped = peft.get_peft_model(
            _Picky(), peft.LoraConfig(task_type=CAUSAL, target_modules=["linear"])
        )
        assert wrapped(x=1, cache=None) == {"labels": None, "cache": None}
    finally:
        undo()


@pytest.mark.parametrize("peft_type", ["prefix", "prompt", "adaption"])
def test_adapters_without_a_tuner(peft_type: str, caplog: pytest.LogCaptureFixture) -> None:
    """Prompt learning calls the model itself; its own hook filters, and goes with the patch."""
    model = _tiny_llama()
    original = model.forward.__func__

    class Narrow(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None,
                    inputs_embeds: Any = None, past_key_values: Any = None) -> Any:  # fmt: skip
            return original(self, input_ids=input_ids, attention_mask=attention_mask,
                            labels=labels, inputs_embeds=inputs_embeds,
                            past_key_values=past_key_values)  # fmt: skip

    model.__class__ = Narrow
    config = {
        "prefix": lambda: peft.PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=2),
        "prompt": lambda: peft.PromptTuningConfig(task_type=CAUSAL, num_virtual_tokens=2),
        "adaption": lambda: peft.AdaptionPromptConfig(
            task_type=CAUSAL, adapter_len=2, adapter_layers=1
        ),
    }[peft_type]()
    ids = tokens(2)
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    undo = patches.install(DROP)
    try:
        try:
            wrapped = peft.get_peft_model(model, config)
        except (ValueError, ImportError, KeyError, AttributeError) as error:
            pytest.skip(f"{peft_type} does not work here at all: {error}")
        assert len(wrapped.base_model._forward_pre_hooks) == 1
        pickle.loads(pickle.dumps(list(wrapped.base_model._forward_pre_hooks.values())))
        try:
            wrapped(**batch).loss.backward()
        except (ValueError, IndexError, AttributeError, RuntimeError) as error:
            pytest.skip(f"{peft_type} does not run here at all: {error}")
    finally:
        undo()
    assert not wrapped.base_model._forward_pre_hooks
    with pytest.raises(TypeError, match="output_attentions"):
        wrapped(**batch)


def test_the_patched_model_can_be_copied_and_saved() -> None:
    model, batch = build("whisper")
    undo = patches.install(DROP)
    try:
        wrapped = peft.get_peft_model(model, _config(model, S2S)).eval()
        with torch.no_grad():
            want = wrapped(**batch).loss
            assert torch.equal(copy.deepcopy(wrapped)(**batch).loss, want)
            torch.save(wrapped, io.BytesIO())
    finally:
        undo()


@pytest.mark.parametrize("peft_type", ["ADALORA", "IA3", "LOHA"])
def test_every_kind_of_adapter(peft_type: str) -> None:
    """AdaLoRA's tuner has a forward of its own. It adds a term to the loss: logits are compared."""
    model, batch = build("whisper")
    names = {"target_modules": ["q_proj", "v_proj"], "task_type": S2S}
    config = {
        "ADALORA": lambda: peft.AdaLoraConfig(**names, total_step=10),
        "IA3": lambda: peft.IA3Config(**names, feedforward_modules=[]),
        "LOHA": lambda: peft.LoHaConfig(**names),
    }[peft_type]()
    with torch.no_grad():
        want = model(**batch).logits
    wrapped = peft.get_peft_model(model, config).eval()
    assert _attempt(wrapped, batch) != "ok"
    undo = patches.install(DROP)
    try:
        with torch.no_grad(), wrapped.disable_adapter():
            assert torch.equal(wrapped(**batch).logits, want)
        wrapped(**batch).loss.backward()
    finally:
        undo()


def test_forwards_in_threads_while_others_install_and_undo(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While one holds the patch every forward is right; it is said once, not once a thread."""
    model, batch = build("whisper")
    wrapped = peft.get_peft_model(model, _config(model, S2S)).eval()
    with torch.no_grad():
        want = model(**batch).loss

    def forwards() -> None:
        with torch.no_grad():
            for _ in range(10):
                assert torch.equal(wrapped(**batch).loss, want)

    def installs() -> None:
        for _ in range(200):
            patches.install(DROP)()

    undo = patches.install(DROP)
    try:
        with caplog.at_level(logging.INFO, logger="lora_doctor"):
            run_at_once(forwards, installs, forwards, installs, forwards)
    finally:
        undo()
    assert len([record for record in caplog.records if record.name == "lora_doctor"]) == 1
    assert _attempt(wrapped, batch) != "ok"


def test_undone_while_it_acts_it_is_gone_and_comes_back() -> None:
    """Without a holder a forward is either patched or PEFT's own, never something in between."""
    model, batch = build("whisper")
    wrapped = peft.get_peft_model(model, _config(model, S2S)).eval()
    unpatched = _attempt(wrapped, batch)

    def forwards() -> None:
        with torch.no_grad():
            assert {_attempt(wrapped, batch) for _ in range(20)} <= {"ok", unpatched}

    def installs() -> None:
        for _ in range(200):
            patches.install(DROP)()

    run_at_once(forwards, installs, installs, forwards)
    assert _attempt(wrapped, batch) == unpatched
