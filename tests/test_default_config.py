"""A default config that cannot be built is set right, or refused for the true reason."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")

from lora_doctor.errors import EvidenceError  # noqa: E402
from lora_doctor.evidence.config_part import part_for  # noqa: E402
from lora_doctor.evidence.first_config import documented, first_config  # noqa: E402


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
