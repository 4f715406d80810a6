"""A tiny model is saved and loaded again for every dtype and quantization: so must its config."""

from __future__ import annotations

from typing import Any

import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from lora_doctor.tiny_model.per_layer import overrides_of  # noqa: E402
from lora_doctor.tiny_model.shrink.apply import apply_sizes  # noqa: E402
from lora_doctor.tiny_model.shrink.build import read_back  # noqa: E402
from lora_doctor.tiny_model.shrink.shrink import shrink  # noqa: E402
from lora_doctor.tiny_model.shrink.sizes import Sizes  # noqa: E402


def config_of(name: str) -> Any:
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    return getattr(transformers, name)()


@pytest.mark.parametrize(
    "name",
    ["GPTNeoConfig", "Gemma4TextConfig", "Dinov2Config", "LlamaConfig", "MambaConfig"],
)
def test_a_small_config_survives_saving(name: str) -> None:
    """Checks of lists against depths run only then; the model was fine until it was loaded."""
    small, _ = apply_sizes(config_of(name), Sizes())
    assert read_back(small) == (small, None)


def test_kinds_written_as_runs_are_cut_with_the_layers() -> None:
    """GPT-Neo says its kinds of attention twice: as runs, and layer for layer."""
    small, _ = apply_sizes(config_of("GPTNeoConfig"), Sizes())
    assert small.attention_types == [[["global", "local"], 1]]
    assert list(small.attention_layers) == ["global", "local"]


def test_entries_of_single_layers_follow_their_layers() -> None:
    """Gemma 4's wide heads belong to its full attention, wherever that layer stands now."""
    config = config_of("Gemma4TextConfig")
    if not overrides_of(config):
        pytest.skip("this transformers has no entries of single layers")
    small, _ = apply_sizes(config, Sizes())
    layer = list(small.layer_types).index("full_attention")
    assert set(overrides_of(small)) == {layer}
    assert overrides_of(small)[layer]["head_dim"] == 2 * vars(small)["head_dim"]


def test_what_saving_objects_to_is_answered_before_a_model_is_built() -> None:
    """The objection names what was cut; it is given back, and no weights were made for nothing."""

    class Strict(transformers.LlamaConfig):  # type: ignore[misc, name-defined]
        @classmethod
        def from_dict(cls, values: Any, **more: Any) -> Any:
            if values.get("num_key_value_heads") != 8:
                raise ValueError("num_key_value_heads must be 8")
            return super().from_dict(values, **more)

    built = []

    def build(config: Any) -> Any:
        built.append(config.num_key_value_heads)
        return transformers.LlamaForCausalLM(config)

    shrunk = shrink(Strict(num_key_value_heads=8), build)
    assert shrunk.config.num_key_value_heads == 8 and set(built) == {8}


def test_a_config_that_never_survives_saving_is_shrunk_all_the_same() -> None:
    """Its full-size config does not either: that is no fault of the small one."""

    class Unsavable(transformers.LlamaConfig):  # type: ignore[misc, name-defined]
        @classmethod
        def from_dict(cls, values: Any, **more: Any) -> Any:
            raise ValueError("never")

    assert shrink(Unsavable(), lambda c: transformers.LlamaForCausalLM(c)).batch is not None


def test_a_sampling_setting_of_the_library_is_no_number_of_experts() -> None:
    """transformers 4 gives every config `top_k=50`, and refuses to save another value of it."""
    config = config_of("SwitchTransformersConfig")
    small, _ = apply_sizes(config, Sizes())
    assert getattr(small, "top_k", None) == getattr(config, "top_k", None)
