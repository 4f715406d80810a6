"""The patch that drops idle ``None`` arguments: the same numbers as without PEFT, nothing else.

Every model is tiny, random and built from its config class; LoRA starts as nothing (B is zero), so
the wrapped model must give exactly the loss of the bare one.
"""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lora_doctor import patches
from lora_doctor.fixes import Patch
from lora_doctor.patches import drop_none_arguments

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.slow

DROP = Patch("drop_none_arguments")

TEXT = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip
BERT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "encoder_hidden_size": 16, "vocab_size": 64,
}  # fmt: skip
T5 = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "decoder_start_token_id": 0, **TEXT,
}  # fmt: skip
OPT = {
    "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "word_embed_proj_dim": 16, "max_position_embeddings": 64, "model_type": "opt",
    "architectures": ["OPTForCausalLM"], **TEXT,
}  # fmt: skip


LLAMA = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "model_type": "llama",
    "architectures": ["LlamaForCausalLM"], **TEXT,
}  # fmt: skip


def _pixels() -> Any:
    return torch.randn(2, 3, 16, 16)


def _tokens(length: int = 8) -> Any:
    return torch.randint(3, 60, (2, length))


def _blip2(text: dict[str, Any], instruct: bool) -> tuple[Any, dict[str, Any]]:
    kind = "InstructBlip" if instruct else "Blip2"
    config_class = getattr(transformers, f"{kind}Config")
    config = config_class(
        vision_config=VISION, qformer_config=BERT, text_config=text, num_query_tokens=4
    )
    # From 4.46 on the query outputs replace these placeholders; before, they are prepended.
    if hasattr(config, "image_token_index"):
        config.image_token_index = 63
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    tokens = _tokens()
    if hasattr(config, "image_token_index"):
        tokens[:, :4] = 63
    batch = {
        "pixel_values": _pixels(),
        "input_ids": tokens,
        "attention_mask": torch.ones(2, 8).long(),
    }
    if instruct:
        batch["qformer_input_ids"] = _tokens(4)
        batch["qformer_attention_mask"] = torch.ones(2, 4).long()
    batch["labels"] = _tokens() if text["model_type"] == "t5" else tokens.clone().clamp(max=60)
    return model, batch


def _blip(head: str) -> tuple[Any, dict[str, Any]]:
    config = transformers.BlipConfig(
        vision_config=VISION,
        text_config={**BERT, "projection_dim": 16, "sep_token_id": 2, "bos_token_id": 1,
                     "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64},
        projection_dim=16,
    )  # fmt: skip
    tokens = _tokens()
    batch = {"pixel_values": _pixels(), "input_ids": tokens, "labels": tokens.clone()}
    return getattr(transformers, head)(config), batch


def _whisper() -> tuple[Any, dict[str, Any]]:
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8,
        max_source_positions=20, max_target_positions=32, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None, **TEXT,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    return model, {"input_features": torch.randn(2, 8, 40), "labels": _tokens()}


def _speech2text() -> tuple[Any, dict[str, Any]]:
    config = transformers.Speech2TextConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, conv_channels=16,
        input_feat_per_channel=8, max_source_positions=64, max_target_positions=32,
        decoder_start_token_id=1, **TEXT,
    )  # fmt: skip
    model = transformers.Speech2TextForConditionalGeneration(config)
    return model, {"input_features": torch.randn(2, 40, 8), "labels": _tokens()}


def _pix2struct() -> tuple[Any, dict[str, Any]]:
    config = transformers.Pix2StructConfig(
        text_config={"hidden_size": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
                     "decoder_start_token_id": 0, **TEXT},
        vision_config={"hidden_size": 16, "d_ff": 32, "d_kv": 8, "num_hidden_layers": 2,
                       "num_attention_heads": 2, "patch_embed_hidden_size": 12, "seq_len": 64},
    )  # fmt: skip
    config.decoder_start_token_id = 0
    config.pad_token_id = 0
    model = transformers.Pix2StructForConditionalGeneration(config)
    positions = torch.stack([torch.arange(1, 7), torch.ones(6)], -1)
    patches_ = torch.cat([positions.expand(2, 6, 2), torch.randn(2, 6, 12)], -1)
    return model, {"flattened_patches": patches_, "labels": _tokens()}


def _llava_text() -> tuple[Any, dict[str, Any]]:
    vision = {**VISION, "model_type": "clip_vision_model", "projection_dim": 16}
    config = transformers.LlavaConfig(vision_config=vision, text_config=LLAMA, image_token_index=63)
    tokens = _tokens()
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    return transformers.LlavaForConditionalGeneration(config), batch


def _t5() -> tuple[Any, dict[str, Any]]:
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))
    return model, {"input_ids": _tokens(), "labels": _tokens()}


def _vision_encoder_decoder() -> tuple[Any, dict[str, Any]]:
    decoder = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=32, add_cross_attention=True, is_decoder=True,
        **TEXT,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VISION), decoder
    )
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    model = transformers.VisionEncoderDecoderModel(config)
    return model, {"pixel_values": _pixels(), "labels": _tokens()}


S2S, CAUSAL, FEATURES = "SEQ_2_SEQ_LM", "CAUSAL_LM", "FEATURE_EXTRACTION"
Builder = Callable[[], "tuple[Any, dict[str, Any]]"]
MODELS: dict[str, tuple[Builder, tuple[str, ...]]] = {
    "instructblip-t5": (lambda: _blip2(T5, True), (S2S, CAUSAL, FEATURES)),
    "instructblip-opt": (lambda: _blip2(OPT, True), (CAUSAL,)),
    "instructblip-llama": (lambda: _blip2(LLAMA, True), (CAUSAL,)),
    "llava-text": (_llava_text, (CAUSAL, S2S)),
    "t5": (_t5, (S2S,)),
    "blip2-t5": (lambda: _blip2(T5, False), (S2S, CAUSAL)),
    "blip2-opt": (lambda: _blip2(OPT, False), (CAUSAL,)),
    "blip-vqa": (lambda: _blip("BlipForQuestionAnswering"), (S2S, CAUSAL)),
    "blip-caption": (lambda: _blip("BlipForConditionalGeneration"), (CAUSAL, FEATURES)),
    "whisper": (_whisper, (S2S, CAUSAL, FEATURES)),
    "speech2text": (_speech2text, (S2S, FEATURES)),
    "pix2struct": (_pix2struct, (S2S,)),
    "vision-encoder-decoder": (_vision_encoder_decoder, (S2S,)),
}
CASES = [
    pytest.param(builder, task, id=f"{name}-{task}")
    for name, (builder, tasks) in MODELS.items()
    for task in tasks
]


def _targets(model: Any) -> list[str]:
    """Full names of some linear layers in every part of the model."""
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return [name for name in names if "head" not in name][::2]


def _config(model: Any, task: str | None, **more: Any) -> Any:
    return peft.LoraConfig(task_type=task, r=2, target_modules=_targets(model), **more)


def _build(builder: Builder) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    model, batch = builder()
    return model.float().eval(), batch


def _no_labels(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key != "labels"}


@pytest.fixture(autouse=True)
def _one_process_state() -> Iterator[None]:
    """Each test starts unpatched and must leave no patch behind."""
    drop_none_arguments._say_once.cache_clear()
    torch.manual_seed(0)
    yield
    assert not patches._installed


def _attempt(model: Any, batch: dict[str, Any]) -> str:
    try:
        model(**batch)
    except (TypeError, KeyError) as error:
        return f"{type(error).__name__}: {str(error)[:60]}"
    return "ok"


@pytest.mark.parametrize(("builder", "task"), CASES)
def test_the_loss_is_that_of_the_bare_model(builder: Builder, task: str) -> None:
    model, batch = _build(builder)
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


@pytest.mark.parametrize(("builder", "task"), CASES)
def test_training_with_checkpointing_and_hooks(builder: Builder, task: str) -> None:
    """Through ``__call__`` hooks, in train mode, recomputing activations: adapters move."""
    model, batch = _build(builder)
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


@pytest.mark.parametrize(("builder", "task"), [case for case in CASES if FEATURES not in case.id])
def test_generate_is_that_of_the_bare_model(builder: Builder, task: str) -> None:
    model, batch = _build(builder)
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
    model, batch = _build(MODELS["instructblip-t5"][0])
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
            wrapped(input_ids=_tokens(), labels=_tokens()).loss.backward()
    finally:
        undo()
    assert not [record for record in caplog.records if record.name == "lora_doctor"]


def test_it_says_once_what_it_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model, batch = _build(_whisper)
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
    model, batch = _build(_whisper)
    undo = patches.install(DROP)
    try:
        wrapped = peft.get_peft_model(model, _config(model, S2S))
        with pytest.raises(TypeError, match=r"inputs_embeds|input_ids"):
            wrapped(**batch, input_ids=_tokens())
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
    tokens = _tokens()
    batch = {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}
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
    model, batch = _build(_whisper)
    undo = patches.install(DROP)
    try:
        wrapped = peft.get_peft_model(model, _config(model, S2S)).eval()
        with torch.no_grad():
            want = wrapped(**batch).loss
            assert torch.equal(copy.deepcopy(wrapped)(**batch).loss, want)
            torch.save(wrapped, io.BytesIO())
    finally:
        undo()
