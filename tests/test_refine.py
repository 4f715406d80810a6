"""What a real run says against our own proposal is left out of it, or put right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from packaging.version import Version

from lora_doctor.engine.case import Case
from lora_doctor.engine.settings import Settings
from lora_doctor.recipe.files.read_write import as_recipe
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.model_source import parse_model

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=1) as found:
        yield found


def refined(worker: Worker, name: str, auto_class: str, **asked: Any) -> Case:
    recipe = as_recipe({"model_class": auto_class, **asked})
    case = Case(parse_model(f"arch:{name}"), recipe, Settings("tiny", "cpu"), worker)
    case.refine_proposal()
    return case


def listed(name: str, auto_class: str) -> bool:
    auto = getattr(transformers, auto_class, None)
    mapping: Mapping[str, Any] = auto._model_mapping._model_mapping if auto is not None else {}
    return name in mapping


def test_layers_that_run_only_with_pictures_are_left_out_of_a_text_decoder(worker: Worker) -> None:
    """Mllama's text model passes its cross-attention layers by, with all that is in them."""
    if not listed("mllama", "AutoModelForCausalLM"):
        pytest.skip("this transformers has no Mllama")
    case = refined(worker, "mllama", "AutoModelForCausalLM")
    targets = case.recipe.get("target_modules")
    adapted = re.compile(targets)
    crossed = transformers.MllamaConfig().text_config.cross_attention_layers
    assert not any(adapted.fullmatch(f"model.layers.{n}.mlp.down_proj") for n in crossed)
    others = [n for n in range(40) if n not in crossed]
    assert all(adapted.fullmatch(f"model.layers.{n}.mlp.down_proj") for n in others)
    assert case.tiny.outcome == "passed"


def test_reversible_layers_get_an_input_with_a_gradient(worker: Worker) -> None:
    """Reformer's are one operation to autograd: behind frozen embeddings nothing would learn."""
    if not listed("reformer", "AutoModelForCausalLM"):
        pytest.skip("this transformers has no Reformer")
    case = refined(worker, "reformer", "AutoModelForCausalLM")
    assert re.search("word_embeddings", str(case.recipe.get("target_modules")))
    assert case.tiny.outcome == "passed"


def test_batch_norms_whose_statistics_move_are_saved_with_the_adapters(worker: Worker) -> None:
    """Else the loaded model is not the one that was trained."""
    auto_class = "AutoModelForSpeechSeq2Seq"
    if not listed("seamless_m4t", auto_class):
        pytest.skip("this transformers has no SeamlessM4T")
    case = refined(worker, "seamless_m4t", auto_class)
    assert case.recipe.get("modules_to_save") == ["conv_module.batch_norm"]
    assert case.tiny.outcome == "passed"
    assert case.tiny.saving is not None and case.tiny.saving.statistics == ()

    named = refined(worker, "seamless_m4t", auto_class, target_modules=["q_proj"])
    assert "modules_to_save" not in named.recipe, "who names targets is told, not corrected"
    assert named.tiny.saving is not None
    assert named.tiny.saving.statistics == (
        "speech_encoder.encoder.layers.*.conv_module.batch_norm",
    )


def test_layers_that_share_a_weight_are_left_out_because_they_cannot_be_merged(
    worker: Worker,
) -> None:
    """Zamba runs one attention block at many depths; merging is into all of them at once."""
    if not listed("zamba", "AutoModelForCausalLM") or int(transformers.__version__[0]) < 5:
        pytest.skip("before transformers 5 the block is one module, which is adapted once")
    case = refined(worker, "zamba", "AutoModelForCausalLM")
    adapted = {group.pattern for group in case.structure.groups if group.adapted}
    assert adapted and not any("shared_transf" in pattern for pattern in adapted)
    merge = case.tiny.check("merge")
    assert case.tiny.outcome == "passed" and merge is not None and merge.status == "passed"
    assert any("share" in note.text for note in case.structure.notes)


def test_a_layer_that_is_no_plain_matrix_is_left_out(worker: Worker) -> None:
    """The forward fails because of it, so that no backward tells anything yet."""
    source = parse_model("tests.models:linear_in_groups")
    case = Case(source, as_recipe({}), Settings("tiny", "cpu"), worker)
    assert case.tiny.outcome == "failed"
    case.refine_proposal()
    assert case.recipe.get("target_modules") == ["first"]
    assert case.tiny.outcome == "passed"
    assert any("left out" in note.text for note in case.structure.notes)


def test_a_second_run_betters_what_the_first_could_not_show(worker: Worker) -> None:
    """DeepSeek-V4: a layer in groups stops the forward, and its indexer gets no gradient."""
    if not listed("deepseek_v4", "AutoModelForCausalLM"):
        pytest.skip("this transformers has no DeepSeek-V4")
    case = refined(worker, "deepseek_v4", "AutoModelForCausalLM")
    adapted = re.compile(case.recipe.get("target_modules"))
    assert adapted.fullmatch("model.layers.3.self_attn.compressor.kv_proj")
    assert not adapted.fullmatch("model.layers.3.self_attn.o_a_proj")
    assert not adapted.fullmatch("model.layers.3.self_attn.compressor.indexer.weights_proj")
    assert case.tiny.outcome == "passed"


def test_a_mask_that_is_not_asked_for_learns_nothing(worker: Worker) -> None:
    """SAM makes four masks and gives out three of them: an adapter in the first one's layers would
    stand still, and there are as many of these layers in the full model."""
    if not listed("sam", "AutoModelForMaskGeneration"):
        pytest.skip("this transformers has no SAM")
    case = refined(worker, "sam", "AutoModelForMaskGeneration")
    adapted = re.compile(case.recipe.get("target_modules"))
    assert not adapted.fullmatch("mask_decoder.output_hypernetworks_mlps.0.proj_in")
    assert adapted.fullmatch("mask_decoder.output_hypernetworks_mlps.3.proj_in")
    assert case.tiny.outcome == "passed"


@pytest.mark.parametrize(("name", "first"), [("beit", 11), ("data2vec-vision", 10)])
def test_layers_behind_those_that_are_read_are_left_out(
    worker: Worker, name: str, first: int
) -> None:
    """A BEiT that segments reads the input of layer 11 of 0 to 11 and nothing later, Data2Vec the
    one of layer 10: the tiny models have as many layers behind."""
    if name == "beit" and Version(transformers.__version__) < Version("4.50"):
        pytest.skip("no default config of this transformers has the `out_indices` it asks for")
    case = refined(worker, name, "AutoModelForSemanticSegmentation")
    adapted = re.compile(case.recipe.get("target_modules"))
    names = [
        path
        for group in case.structure.groups
        if group.adapted
        for path in group.examples
        if adapted.fullmatch(path)
    ]
    assert case.tiny.outcome == "passed"
    dead = [number for number in range(12) if number >= first]
    assert names and not any(re.search(rf"layers?\.{n}\.", path) for n in dead for path in names)
    assert not adapted.fullmatch(names[0].replace(".0.", f".{first}.", 1))


def test_layers_behind_the_last_keys_and_values_of_a_prefix_are_left_out(worker: Worker) -> None:
    """PI0 looks back at its prefix by keys and values alone: what the last layer makes of them is
    never read. The tiny model has two layers there, the full one eighteen."""
    if not listed("pi0", "AutoModelForImageTextToText"):
        pytest.skip("this transformers has no PI0")
    case = refined(worker, "pi0", "AutoModelForImageTextToText")
    adapted = re.compile(case.recipe.get("target_modules"))
    stack = "model.vlm.language_model.layers"
    assert not adapted.fullmatch(f"{stack}.17.self_attn.q_proj")
    assert not adapted.fullmatch(f"{stack}.17.mlp.down_proj")
    assert adapted.fullmatch(f"{stack}.17.self_attn.k_proj")
    assert adapted.fullmatch(f"{stack}.1.self_attn.q_proj")
    assert case.tiny.outcome == "passed"


def test_batch_norms_are_saved_under_names_that_fit_nothing_else(worker: Worker) -> None:
    """PEFT compares the end of a path, in the middle of a word: RT-DETR's `norm` would be every
    `final_layer_norm` as well."""
    if not listed("rt_detr", "AutoModelForObjectDetection"):
        pytest.skip("this transformers has no RT-DETR")
    case = refined(worker, "rt_detr", "AutoModelForObjectDetection")
    names = case.recipe.get("modules_to_save")
    assert "conv1.norm" in names and "norm" not in names
    assert case.tiny.outcome == "passed"
    assert case.tiny.saving is not None and case.tiny.saving.statistics == ()


def test_where_convolutions_cannot_be_wrapped_the_head_is_adapted(worker: Worker) -> None:
    """MobileNet pads by the `stride` of each convolution, which PEFT's layer does not have."""
    case = refined(worker, "mobilenet_v2", "AutoModelForImageClassification")
    assert case.recipe.get("target_modules") == ["classifier"]
    assert case.tiny.outcome == "passed"
    assert any("reads stride of Conv2d" in note.text for note in case.structure.notes)
