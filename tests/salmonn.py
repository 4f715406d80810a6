"""A composite of a user's own, built like SALMONN: two encoders of sound, a LayerNorm on each, one
projection into the embedding space of a language model (Gemma 3 where transformers has it).

For ``tests.salmonn:NAME`` as MODEL; every factory returns the module and a batch for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

MEL_BINS, FRAMES, VOCABULARY = 8, 8, 67


class Ears(nn.Module):
    """The second encoder, as BEATs is in SALMONN: its output is not normalised, so that its size is
    whatever its weights make it."""

    def __init__(self, width: int, loudness: float) -> None:
        super().__init__()
        self.patches = nn.Conv1d(MEL_BINS, width, kernel_size=2, stride=2)
        self.mix = nn.Linear(width, width)
        with torch.no_grad():  # what a checkpoint would bring: outputs of this size
            heard = self.forward(torch.randn(4, MEL_BINS, 2 * FRAMES))
            for parameter in self.mix.parameters():
                parameter *= loudness / heard.std()

    def forward(self, spectrogram: Any) -> Any:
        return self.mix(torch.relu(self.patches(spectrogram)).transpose(1, 2))


class Salmonn(nn.Module):
    """``epsilon``: of both connectors. ``loudness``: standard deviation of what the second encoder
    puts out. ``projection``: size of projected embeddings relative to those of tokens; torch's own
    initialisation unless given. ``by_path``: reach the token embeddings by hand and not by the
    model's method; ``by_weight``: look up rows of its weight."""

    def __init__(
        self,
        *,
        epsilon: float = 1e-4,
        loudness: float = 1.0,
        projection: float | None = None,
        by_path: bool = False,
        by_weight: bool = False,
        decoder: Any = None,
    ) -> None:
        super().__init__()
        self.speech_encoder = whisper_encoder()
        width = self.speech_encoder.config.d_model
        self.ears = Ears(width, loudness)
        self.compress: nn.Module = nn.Identity()
        self.prepare: nn.Module = nn.Identity()
        self.ln_speech = nn.LayerNorm(width, eps=epsilon)
        self.ln_audio = nn.LayerNorm(width, eps=epsilon)
        self.llm = decoder if decoder is not None else gemma()
        hidden = self.llm.config.hidden_size
        self.speech_llama_proj = nn.Linear(2 * width, hidden)
        if projection is not None:
            text = self.llm.get_input_embeddings()(torch.arange(VOCABULARY))
            deviation = float(text.detach().pow(2).mean().sqrt()) / (2 * width) ** 0.5
            nn.init.normal_(self.speech_llama_proj.weight, std=projection * deviation)
            nn.init.zeros_(self.speech_llama_proj.bias)
        self.by_path, self.by_weight = by_path, by_weight
        for frozen in (self.speech_encoder, self.ears, self.llm):
            frozen.requires_grad_(False)

    def embed(self, input_ids: Any) -> Any:
        if self.by_weight:
            return nn.functional.embedding(input_ids, self.llm.model.embed_tokens.weight)
        if self.by_path:
            return self.llm.model.embed_tokens(input_ids)
        return self.llm.get_input_embeddings()(input_ids)

    def forward(
        self, input_features: Any, input_ids: Any, attention_mask: Any = None, labels: Any = None
    ) -> Any:
        input_features = self.prepare(input_features)
        speech = self.ln_speech(self.speech_encoder(input_features).last_hidden_state)
        audio = self.ln_audio(self.compress(self.ears(input_features)))
        heard = self.speech_llama_proj(torch.cat([speech, audio], dim=-1))
        text = self.embed(input_ids)
        both = torch.cat([heard.to(text.dtype), text], dim=1)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        attention_mask = torch.cat([attention_mask.new_ones(heard.shape[:2]), attention_mask], 1)
        if labels is not None:
            labels = torch.cat([labels.new_full(heard.shape[:2], -100), labels], dim=1)
        return self.llm(inputs_embeds=both, attention_mask=attention_mask, labels=labels)


def whisper_encoder() -> Any:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(
        WhisperConfig(
            d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=64,
            num_mel_bins=MEL_BINS, max_source_positions=FRAMES,
        )
    )  # fmt: skip


def gemma() -> Any:
    """The newest Gemma that the installed transformers has; before Gemma, Llama."""
    import transformers

    for name in ("Gemma3Text", "Gemma2", "Gemma", "Llama"):
        config_class = getattr(transformers, f"{name}Config", None)
        if config_class is not None:
            break
    options = {
        "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 64, "head_dim": 16,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "sliding_window": 32, "rms_norm_eps": 1e-6,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if name == "Llama":
        options = {
            key: options[key] for key in options if key not in ("head_dim", "sliding_window")
        }
    model_class = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")
    return model_class(config_class(**options))


def batch() -> dict[str, Any]:
    """Two samples of sound with a text each."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (2, 6), generator=generator)
    return {
        "input_features": torch.randn(2, MEL_BINS, 2 * FRAMES, generator=generator),
        "input_ids": ids,
        "labels": ids.clone(),
    }


def _made(**options: Any) -> Any:
    torch.manual_seed(0)
    return Salmonn(**options), batch()


def loud() -> Any:
    """As in the report: epsilon 1e-4 beside the decoder's 1e-6, on features of variance 1."""
    return _made()


def quiet() -> Any:
    """The same where it matters: what reaches one connector has a variance of 1e-4."""
    return _made(loudness=1e-2)


def quiet_repaired() -> Any:
    """The connectors with the decoder's epsilon."""
    return _made(loudness=1e-2, epsilon=1e-6)


class HandWrittenNorm(nn.Module):
    """A norm that computes in whatever number format it is given."""

    def __init__(self, width: int, tiny: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.tiny = tiny

    def forward(self, x: Any) -> Any:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.tiny)


def vanishing() -> Any:
    """A connector with a norm of the user's own, whose epsilon fp16 cannot hold."""
    torch.manual_seed(0)
    model = Salmonn()
    model.ln_audio = HandWrittenNorm(model.ln_audio.normalized_shape[0], 1e-8)
    return model, batch()


def changed_after_loading() -> Any:
    """The decoder's own norms with the connectors' epsilon: what was pretrained with another."""
    torch.manual_seed(0)
    model = Salmonn()
    for module in model.llm.modules():
        for name in ("eps", "variance_epsilon"):
            if hasattr(module, name):
                setattr(module, name, 1e-4)
    return model, batch()


def projection_too_large() -> Any:
    """A fresh projection that puts out embeddings far larger than the decoder's own."""
    return _made(projection=200.0)


def projection_too_small() -> Any:
    """And one whose embeddings are lost beside what the first layer adds to them."""
    return _made(projection=1 / 50)


def projection_in_scale() -> Any:
    """The same, in the decoder's own scale."""
    return _made(projection=1.0)


def _adapted(**options: Any) -> Any:
    """As SALMONN does it: the language model alone is wrapped, by the model itself."""
    import peft

    model, example = _made(**options)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    model.requires_grad_(False)  # the connectors have been trained before
    model.llm = peft.get_peft_model(model.llm, config)
    return model, example


def adapted() -> Any:
    """Token embeddings by the model's own method, which PEFT passes on."""
    return _adapted()


def adapted_by_path() -> Any:
    """Token embeddings by a path that was right before the language model was wrapped."""
    return _adapted(by_path=True)


def by_path() -> Any:
    """The same path, with the adapters put on by the recipe, around the whole: it stays right."""
    return _made(by_path=True)


def by_weight() -> Any:
    """Rows of the embeddings' weight."""
    return _made(by_weight=True)


class LogPower(nn.Module):
    """Loudness in decibels, or nearly: of silence it is minus infinity unless there is a floor."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, x: Any) -> Any:
        return torch.log(x.pow(2) + self.floor)


class Onsets(nn.Module):
    """Features weighted by how much they change from frame to frame. Where nothing changes, the
    slope of the root is infinite unless there is a floor."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, x: Any) -> Any:
        change = (x - x.roll(1, dims=1)).pow(2).mean(-1, keepdim=True)
        return x * torch.sqrt(change + self.floor)


class HidesNaN(Salmonn):
    """What the report did: a loss that is not a number becomes a small constant."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        result = super().forward(*arguments, **named)
        if torch.isnan(result.loss):
            result.loss = torch.tensor(0.001, requires_grad=True)
        return result


def _half_silent() -> dict[str, Any]:
    example = batch()
    example["input_features"][1] = 0.0
    return example


def _with_log(floor: float, kind: type[Salmonn] = Salmonn) -> Any:
    torch.manual_seed(0)
    model = kind()
    model.prepare = LogPower(floor)
    return model, _half_silent()


def silence() -> Any:
    """NaN in the forward: one sample is silent."""
    return _with_log(0.0)


def silence_repaired() -> Any:
    return _with_log(1e-6)


def silence_hidden() -> Any:
    """The same NaN, and a loss that hides it."""
    return _with_log(0.0, HidesNaN)


def _with_onsets(floor: float) -> Any:
    torch.manual_seed(0)
    model = Salmonn()
    model.compress = Onsets(floor)
    return model, _half_silent()


def steep() -> Any:
    """A finite forward and a gradient that is not."""
    return _with_onsets(0.0)


def steep_repaired() -> Any:
    return _with_onsets(1e-6)


def minute() -> Any:
    """An epsilon that fp16 cannot hold, in a norm that adds it in float32."""
    return _made(epsilon=1e-12)
