"""A default config that cannot be built is set right, or refused for the true reason."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from lora_doctor.errors import EvidenceError  # noqa: E402
from lora_doctor.model.config_part import part_for  # noqa: E402
from lora_doctor.model.first_config import documented, first_config  # noqa: E402
from lora_doctor.tiny_model.shrink.config_mending import mend  # noqa: E402


class Picky(transformers.PretrainedConfig):  # type: ignore[misc]
    """Its defaults contradict each other, one objection after the other."""

    model_type = "picky"

    def __init__(self, groups: int = 3, tied: bool = True, **kwargs: Any) -> None:
        if groups != 0:
            raise ValueError(f"groups must be 0, got {groups}")
        if tied:
            raise ValueError(f"`tied` must be `False`, got {tied}")
        self.groups = groups
        self.tied = tied
        super().__init__(**kwargs)


class CompositeConfig(transformers.PretrainedConfig):  # type: ignore[misc]
    """Needs its parts.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel, CompositeConfig

    >>> # a comment, and a model that must not be built
    >>> model = BertModel(BertConfig())
    >>> encoder = BertConfig(hidden_size=48)
    >>> configuration = CompositeConfig.from_parts(encoder)
    ```
    """

    model_type = "composite"

    def __init__(self, encoder: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if encoder is None:
            raise ValueError("has to be initialized with an encoder")
        self.encoder = encoder

    @classmethod
    def from_parts(cls, encoder: Any) -> CompositeConfig:
        return cls(encoder=encoder)


class Part(transformers.PretrainedConfig):  # type: ignore[misc]
    """
    limit (`float`, *optional*):
        What the values are cut to.
    """

    model_type = "part"

    def __init__(self, limit: float | None = None, **kwargs: Any) -> None:
        self.limit = limit
        super().__init__(**kwargs)


class Whole(transformers.PretrainedConfig):  # type: ignore[misc]
    model_type = "whole"
    sub_configs = {"part": Part}  # noqa: RUF012 - as transformers has it

    def __init__(self, part: Any = None, **kwargs: Any) -> None:
        self.part = Part(**part) if isinstance(part, dict) else part
        super().__init__(**kwargs)


class Cuts:
    """A module that keeps an entry of a part of its config, and needs it when it runs."""

    def __init__(self, config: Any) -> None:
        self.config = config
        part = config.part
        self.limit = part.limit

    def forward(self, values: Any) -> Any:
        return values.clamp(max=self.limit)


def objection(call: Any, *arguments: Any) -> Exception:
    with pytest.raises(Exception) as caught:
        call(*arguments)
    return caught.value


def test_a_part_that_is_empty_gets_its_class_s_default() -> None:
    mended = mend(Whole(), objection(Cuts, Whole()))
    assert mended is not None
    assert type(mended.config.part) is Part


def test_an_entry_that_a_running_module_computes_with_is_filled() -> None:
    """DBRX clamps to `clip_qkv`, which it took from a part of its config, and which is None."""
    whole = Whole(part={})
    error = objection(Cuts(whole).forward, torch.ones(2))
    assert "None" in str(error)
    mended = mend(whole, error, running=True)
    assert mended is not None
    assert mended.changes == ("part.limit = 1.0",)
    assert whole.part.limit is None


def test_what_the_inputs_lack_is_no_gap_of_the_config() -> None:
    """A forward that gets None for a tensor fails as well."""
    whole = Whole(part={"limit": 2.0})
    assert mend(whole, objection(Cuts(whole).forward, None), running=True) is None


def test_the_words_that_a_validation_allows_are_taken_in_turn() -> None:
    """Granite 4 of 4.57 reads `layers_block_type`, another name of `layer_types`, which is None."""
    config_class = getattr(transformers, "GraniteMoeHybridConfig", None)
    if config_class is None or config_class().layer_types is not None:
        pytest.skip("this transformers fills the default in")
    config = config_class()
    with torch.device("meta"):
        error = objection(transformers.GraniteMoeHybridForCausalLM, config)
    mended = mend(config, error)
    assert mended is not None
    assert mended.config.layer_types[:3] == ["mamba", "attention", "mamba"]
    assert len(mended.config.layer_types) == config.num_hidden_layers


def test_what_the_objections_ask_for_is_set() -> None:
    config, changes = first_config(Picky)
    assert (config.groups, config.tied) == (0, False)
    assert changes == ("groups = 0", "tied = False")


def test_defaults_that_hold_are_left_alone() -> None:
    config, changes = first_config(transformers.LlamaConfig)
    assert type(config) is transformers.LlamaConfig
    assert changes == ()


def test_a_composite_config_is_made_as_its_documentation_makes_it() -> None:
    """transformers 4 refuses the default of an encoder-decoder, 5 has one."""
    config, _ = first_config(transformers.EncoderDecoderConfig)
    assert type(config.encoder) is type(config.decoder) is transformers.BertConfig
    assert config.decoder.is_decoder and config.decoder.add_cross_attention


def test_an_example_runs_nothing_but_config_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*_: Any, **__: Any) -> None:
        raise AssertionError("the example's model was built")

    monkeypatch.setattr(transformers.BertModel, "__init__", built)
    library = importlib.import_module("transformers")  # replaces itself while it is imported
    monkeypatch.setattr(library, "CompositeConfig", CompositeConfig, raising=False)
    assert documented(CompositeConfig).encoder.hidden_size == 48


def test_a_class_of_the_text_part_gets_the_text_part() -> None:
    """`AutoModelForCausalLM` lists Llama4Config for a class that takes a Llama4TextConfig."""
    whole_class = getattr(transformers, "Llama4Config", None)
    if whole_class is None:
        pytest.skip("Llama 4 came with 4.51")
    whole = whole_class()
    part = part_for(transformers.Llama4ForCausalLM, whole)
    assert type(part) is type(whole.text_config)
    assert part_for(transformers.Llama4ForConditionalGeneration, whole) is whole


def test_a_part_that_transformers_does_not_look_for_is_refused_with_the_reason() -> None:
    """`MusicgenForCausalLM` takes the decoder's config; the auto class hands it the whole one."""
    whole, _ = first_config(transformers.MusicgenConfig)
    with pytest.raises(EvidenceError, match="part `decoder`"):
        part_for(transformers.MusicgenForCausalLM, whole)
