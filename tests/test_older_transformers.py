"""What older transformers, and classes written long ago, do otherwise: each has its answer."""

from __future__ import annotations

from typing import Any

import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from lora_doctor.census.pairs import gather, task  # noqa: E402
from lora_doctor.contract.adapters import AdapterLayer, count_calls, find_adapters  # noqa: E402
from lora_doctor.evidence.meta import describe_module  # noqa: E402
from lora_doctor.model.loading import Loader  # noqa: E402
from lora_doctor.model.module_path import pattern_of  # noqa: E402
from lora_doctor.model.modules import collect  # noqa: E402
from lora_doctor.model.zero_weights import wake_zero_weights  # noqa: E402
from lora_doctor.recipe.recipe import Recipe  # noqa: E402
from lora_doctor.static.model_source import parse_model  # noqa: E402
from lora_doctor.tiny_model.model_error import ModelError  # noqa: E402
from lora_doctor.tiny_model.shrink.apply import apply_sizes  # noqa: E402
from lora_doctor.tiny_model.shrink.build import read_back  # noqa: E402
from lora_doctor.tiny_model.shrink.repair import repair  # noqa: E402
from lora_doctor.tiny_model.shrink.sizes import Sizes  # noqa: E402


class OldConfig(transformers.PretrainedConfig):  # type: ignore[misc]
    """Written for transformers 4; `frame` follows from other entries."""

    model_type = "old"

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 4096,
        num_experts: int = 64,
        use_fast_kernels: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_experts = num_experts
        self.use_fast_kernels = use_fast_kernels
        super().__init__(**kwargs)
        self.frame = 3 * hidden_size


def overrides(config: Any, objection: str) -> dict[str, Any]:
    error = ModelError(message=objection)
    return {k: v for option in repair(Sizes(), None, config, [error]) for k, v in option.overrides}


def test_models_of_images_and_text_are_one_column_under_either_auto_class() -> None:
    listed = {auto_class for auto_class, _ in gather()}
    newer = hasattr(transformers, "AutoModelForImageTextToText")
    assert ("AutoModelForImageTextToText" in listed) is newer
    assert ("AutoModelForVision2Seq" in listed) is not newer
    words = {task(name) for name in listed if "Image" in name or "Vision" in name}
    assert words == {"image-text-to-text"}


def test_a_class_that_reads_its_buffers_while_it_is_built_has_a_meta_model() -> None:
    """Apertus' activations do; `from_pretrained` builds them all the same."""
    if not hasattr(transformers, "ApertusForCausalLM"):
        pytest.skip("this transformers has no Apertus")
    recipe = Recipe({"model_class": "AutoModelForCausalLM"}, {"model_class": "option"})
    model = Loader(parse_model("arch:apertus").to_json(), recipe).build("meta")
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_kernels_that_are_not_there_are_switched_off() -> None:
    said = "ValueError: Fast kernels are not available. Make sure that they are installed"
    assert overrides(OldConfig(), said) == {"use_fast_kernels": False}
    assert overrides(OldConfig(), "ValueError: Fast kernels need a contiguous input") == {}


def test_a_head_with_another_vocabulary_than_the_loss_counts_in_gets_that_one() -> None:
    config = OldConfig(vocab_size=536)
    config.text_config = OldConfig(vocab_size=552)
    said = "RuntimeError: shape '[-1, 552]' is invalid for input of size 34304"
    assert overrides(config, said) == {"vocab_size": 552}
    assert overrides(config, said.replace("34304", "34305")) == {}


def test_what_a_class_computes_from_other_entries_follows_them() -> None:
    small, _ = apply_sizes(OldConfig(), Sizes())
    loaded, refused = read_back(small)
    assert refused is None
    assert loaded.hidden_size == small.hidden_size < 4096
    assert loaded.frame == 3 * small.hidden_size != small.frame


def test_a_sampling_setting_is_not_taken_for_routing() -> None:
    """Every config of transformers 4 has `top_k`; with 2 it cannot be saved."""
    if not hasattr(OldConfig(), "top_k"):
        pytest.skip("configs of this transformers have no settings of generation")
    small, _ = apply_sizes(OldConfig(), Sizes())
    assert small.num_experts == 4
    assert small.top_k == 50


def test_many_linear_layers_in_one_weight_are_a_parameter() -> None:
    """PEFT refuses the module as a target, and adapts its weight by `target_parameters`."""

    class Grouped(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.out_features = 8, 4
            self.weight = torch.nn.Parameter(torch.zeros(3, 8, 4))

    model = torch.nn.Module()
    model.fc1 = Grouped()
    kinds = {part.path: part.kind for part in collect(model)}
    assert kinds["fc1.weight"] == "parameter"
    assert kinds.get("fc1") != "linear"


def test_an_expert_with_a_word_before_its_number_is_one_of_many() -> None:
    assert pattern_of("block.0.mlp.experts.expert_12.wi") == "block.*.mlp.experts.expert_*.wi"
    assert pattern_of("block.0.mlp.wi_1") == "block.*.mlp.wi_1"


def test_weights_that_begin_as_good_as_zero_are_woken() -> None:
    """BLIP's begin at 1e-10: gradients behind them are below what an optimizer can hold."""
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
    with torch.no_grad():
        model[0].weight.normal_(0, 1e-10)
        model[1].weight.normal_(0, 5e-3)
    kept = model[1].weight.clone()
    wake_zero_weights(model)
    assert float(model[0].weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert torch.equal(model[1].weight, kept)


def test_a_norm_that_begins_with_a_tiny_scale_is_woken() -> None:
    """GPTSAN's begin at 0.002, twice a layer: attention in the first got gradients of 1e-15."""
    tiny, usual, offset = torch.nn.LayerNorm(8), torch.nn.LayerNorm(8), torch.nn.LayerNorm(8)
    with torch.no_grad():
        tiny.weight.fill_(0.002)
        usual.weight.uniform_(0.5, 1.5)
        offset.weight.zero_()  # some norms add one to it: that is for the rule of zeros
    kept = usual.weight.clone()
    wake_zero_weights(torch.nn.Sequential(tiny, usual, offset))
    assert torch.equal(tiny.weight, torch.ones(8))
    assert torch.equal(usual.weight, kept)
    assert float(offset.weight.detach().abs().max()) < 0.1


def test_a_forward_that_a_backward_runs_again_is_counted_once() -> None:
    module = torch.nn.Linear(4, 4)
    layer = AdapterLayer("layer", module, [])
    handles = count_calls([layer])
    for reentrant in (False, True):
        rows = torch.ones(2, 4, requires_grad=True)
        again = torch.utils.checkpoint.checkpoint(module, rows, use_reentrant=reentrant)
        again.sum().backward()
    for handle in handles:
        handle.remove()
    assert layer.calls == 2


@pytest.mark.parametrize(
    "kind", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"]
)
def test_a_prompt_encoder_is_counted_though_the_dictionary_that_holds_it_is_never_called(
    kind: str,
) -> None:
    """Not counted, it was left out where no image batch can be made, and nothing was left: prompt
    tuning of Qwen2.5-VL was said to train 0 of 0."""
    peft = pytest.importorskip("peft")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    prompt = getattr(peft, kind)(num_virtual_tokens=4, task_type="CAUSAL_LM")
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), prompt)
    layers = find_adapters(model)
    handles = count_calls(layers)
    model(input_ids=torch.arange(8)[None])
    for handle in handles:
        handle.remove()
    assert [layer.calls for layer in layers] == [1]


def test_both_models_of_a_pair_are_trained() -> None:
    """The decoder holds the head, but it is no head."""
    values = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 99,
    }  # fmt: skip
    bert = transformers.BertConfig(**values)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert)
    found = describe_module(transformers.EncoderDecoderModel(config))
    adapted = [group.pattern for group in found.groups if group.adapted]
    assert any(pattern.startswith("encoder.") for pattern in adapted)
    assert any(pattern.startswith("decoder.") for pattern in adapted)
    assert not any("cls" in pattern for pattern in adapted)
