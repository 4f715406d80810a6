"""Methods and initialisations of adapters as people configure them: what PEFT does with them at
full size is what is told, whatever the tiny model and this machine add to it."""

from __future__ import annotations

from typing import Any

import pytest

import lora_doctor
from lora_doctor.recipe.files.read_write import as_recipe
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.installed.environment import adapter_config_fields
from tests.test_quantization import quantizes_here
from tools.adapter_kinds import kinds

pytestmark = pytest.mark.filterwarnings("ignore")
QV = ["q_proj", "v_proj"]


def checked(worker: Worker, model: str, **values: Any) -> Diagnosis:
    recipe = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": QV, **values}
    if recipe["peft_type"] not in kinds():
        pytest.skip(f"this PEFT has no {recipe['peft_type']}")
    return lora_doctor.check(model, recipe, worker=worker, device="cpu")


def said(found: Diagnosis) -> list[str]:
    return [f"{one.rule} {one.message}" for one in found.findings if one.severity != "info"]


def has_mica() -> bool:
    from peft.tuners.lora.layer import LoraLayer

    return hasattr(LoraLayer, "mica_init")


def test_an_initialisation_that_freezes_one_matrix_is_healthy(worker: Worker) -> None:
    """MiCA trains A and keeps B as it is, on purpose."""
    if not has_mica():
        pytest.skip("this PEFT has no MiCA")
    found = checked(worker, "arch:llama", init_lora_weights="mica")
    assert not said(found) and not found.undetermined


@pytest.mark.skipif(not quantizes_here(), reason="transformers before 4.45 wants a GPU for it")
def test_dora_in_8_bits_is_healthy_on_a_cpu_as_on_a_gpu(worker: Worker) -> None:
    """On a CPU alone PEFT sends the weight that it has read to where it is, and bitsandbytes then
    has no scale for the next forward."""
    found = checked(worker, "arch:llama", use_dora=True, load_in_8bit=True)
    assert not said(found) and not found.undetermined


def test_a_block_size_for_real_layers_is_no_fault_of_bitsandbytes() -> None:
    """One small layer is tried; what PEFT refuses on a plain layer of that size too is the size."""
    from lora_doctor.model.quantized_adapter import refusal

    if "C3A" not in kinds():
        pytest.skip("this PEFT has no C3A")
    recipe = as_recipe({"peft_type": "C3A", "target_modules": QV, "block_size": 256})
    assert refusal("4bit", recipe) is None


def test_a_dry_run_leaves_a_quantized_weight_where_it_is() -> None:
    """One that is not quantized yet becomes it by being sent, as on a GPU."""
    import torch

    from lora_doctor.dry_run.acts.devices import stay

    def send(weight: Any, *arguments: Any) -> str:
        return f"sent to {arguments[0]}"

    here = torch.device("cpu")
    packed, plain = torch.zeros(2, 2, dtype=torch.int8), torch.zeros(2, 2)
    assert stay(send, packed, here) is packed
    assert stay(send, plain, here) == "sent to cpu"
    assert stay(send, packed, torch.device("meta")) == "sent to meta"


#: Widths that the tiny model does not have.
WIDTHS = {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A config of a small Llama, of widths that are no powers of two."""
    import transformers

    place = tmp_path_factory.mktemp("widths")
    config = transformers.LlamaConfig(
        vocab_size=512, intermediate_size=384, num_hidden_layers=2, **WIDTHS,
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(place)
    return str(place)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("BOFT", {"boft_block_size": 24}),  # which cannot be made on the meta device
        ("OSF", {"effective_rank": 130}),  # at the tiny model's widths nothing would be trained
    ],
)
def test_a_number_that_suits_the_real_widths_is_healthy(
    kind: str, values: dict[str, Any], folder: str, worker: Worker
) -> None:
    found = checked(worker, folder, peft_type=kind, **values)
    assert not said(found) and not found.undetermined
    (key,) = values
    assert found.before is not None
    assert any(note.text.startswith(f"{key} ") for note in found.before.notes)


def test_a_number_that_does_not_suit_them_is_told_with_the_real_widths(worker: Worker) -> None:
    """At the tiny model's widths PEFT takes it. No model is trained to find that out."""
    recipe = {"peft_type": "BOFT", "boft_block_size": 5, "target_modules": QV}
    if "BOFT" not in kinds():
        pytest.skip("this PEFT has no BOFT")
    found = lora_doctor.check("arch:bert", {**recipe, "target_modules": ["query"]}, depth="meta",
                              worker=worker)  # fmt: skip
    assert any("768" in one.message and one.severity == "error" for one in found.findings)


def test_numbers_are_lowered_by_name_of_the_message_and_with_the_scaling_kept() -> None:
    from lora_doctor.evidence.smaller_numbers import _at_most, _smaller

    recipe = as_recipe({"r": 24, "lora_alpha": 48, "target_modules": QV, "rank_pattern": {"a": 20}})
    first = next(_smaller(recipe, "`r` (24) must be at most 16"))
    assert (first.get("r"), first.get("lora_alpha")) == (16, 32)
    assert first.get("rank_pattern") == {"a": 16}
    assert _at_most(recipe, {"lora_alpha": 48}, "lora_alpha", 32) == {"lora_alpha": 32}


def test_tokens_of_adapted_embeddings_are_told_as_that(worker: Worker) -> None:
    """The embeddings are adapted whole, and single rows of them as well."""
    if "TRAINABLE_TOKENS" not in kinds():
        pytest.skip("this PEFT trains no single tokens")
    recipe = {"target_modules": ["embed_tokens", "q_proj"], "trainable_token_indices": [5, 6]}
    found = lora_doctor.check("arch:llama", recipe, depth="meta", worker=worker)
    (told,) = [one for one in found.findings if one.rule == "LD205"]
    assert "trainable_token_indices both adapt the embeddings (embed_tokens)" in told.message
    assert told.fixes[0].edits[0].value == ["q_proj"]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        # A small model runs beside the large one, and its last layer makes what nobody reads.
        ("SHADOW", {"target_modules": None}),
        ("LORA", {"kasa_config": {}}),  # which puts a part of the base weights aside
        ("LORA", {"velora_config": {"num_groups": 4}}),  # which keeps a running average
        ("LORA", {"init_lora_weights": None}),  # both matrices at random
        ("LORA", {"init_lora_weights": "mica", "r": 150}),  # more than the tiny widths
        ("LORA", {"runtime_config": {"ephemeral_gpu_offload": True}}),
        ("OFT", {"r": 0, "oft_block_size": 48}),
    ],
)
def test_what_plain_peft_trains_is_healthy(
    kind: str, values: dict[str, Any], folder: str, worker: Worker
) -> None:
    if kind not in kinds():
        pytest.skip(f"this PEFT has no {kind}")
    fields = adapter_config_fields(kind) or ()
    missing = set(values) - set(fields)
    if missing or (values.get("init_lora_weights") == "mica" and not has_mica()):
        pytest.skip(f"this PEFT does not know {missing or 'MiCA'}")
    found = checked(worker, folder, peft_type=kind, **values)
    assert not said(found) and not found.undetermined


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init_lora_weights": "mica", "r": 200}, "MiCA requires"),
        ({"init_lora_weights": "orthogonal", "rank_pattern": {"v_proj": 5}}, "to be even, got 5"),
        ({"init_lora_weights": "PiSSA"}, "Unknown initialization"),
    ],
)
def test_an_initialisation_that_peft_refuses_is_told_at_full_size(
    values: dict[str, Any], message: str, folder: str, worker: Worker
) -> None:
    """What looks at weights is asked of one layer of each shape; no model is trained."""
    if not has_mica():
        pytest.skip("this PEFT has not all of these initialisations")
    recipe = {"target_modules": QV, **values}
    found = lora_doctor.check(folder, recipe, depth="meta", worker=worker)
    (told,) = [one for one in found.findings if one.severity == "error"]
    assert told.rule == "LD217" and message in told.message


def test_names_of_other_models_are_no_failure_of_another_kind(folder: str, worker: Worker) -> None:
    """Part of the names match: PEFT trains those, as with LoRA. What is excluded was named."""
    if "exclude_modules" not in (adapter_config_fields("LOHA") or ()):
        pytest.skip("this PEFT excludes no modules")
    found = checked(
        worker, folder, peft_type="LOHA", target_modules=["q_proj", "v_proj", "fc1"],
        exclude_modules=["v_proj"],
    )  # fmt: skip
    assert [(one.rule, one.severity) for one in found.findings] == [("LD202", "warning")]
    assert "(fc1)" in found.findings[0].message


def test_values_for_layers_are_watched_while_peft_looks_them_up() -> None:
    from lora_doctor.model.pattern_effects import LookedUp, never_taken

    taken = LookedUp({"q_proj": 8, "k_proj": 4})
    assert not never_taken({"rank_pattern": taken})  # never asked: another way of reading it
    assert taken.get("q_proj", 2) == 8 and taken.get("layers.0.v_proj", 2) == 2
    assert [one.entry for one in never_taken({"rank_pattern": taken})] == ["k_proj"]


@pytest.mark.parametrize(("given", "run_with"), [(0.5, 0.0), (1.0, 1.0), (0.0, 0.0)])
def test_chance_does_not_leave_a_tiny_model_without_adapters(given: float, run_with: float) -> None:
    """Two layers that are each left out half of the time are both left out in every fourth step:
    the backward then raises, which a model of thirty layers never sees."""
    from lora_doctor.evidence.smaller_numbers import with_adapters_left

    recipe = as_recipe({"peft_type": "LOKR", "target_modules": ["o_proj"], "module_dropout": given})
    assert with_adapters_left(recipe).get("module_dropout") == run_with
