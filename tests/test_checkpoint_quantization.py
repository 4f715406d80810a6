"""Checkpoints that come quantized, as they are published: none is called healthy that was not run
quantized, and what is said of each is what plain transformers and PEFT do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.engine.registry import find_rules
from lora_doctor.engine.symptoms import find_by_message
from lora_doctor.errors import InputError
from lora_doctor.prescription.apply import apply
from lora_doctor.recipe.files.prescription import Prescription
from lora_doctor.sandbox.worker import Worker
from tests.quantized_folders import (
    LLAMA,
    METHODS,
    QWEN,
    write,
    write_fp8,
    write_mxfp4,
    write_packed,
)

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.quantizers.auto", reason="transformers before 4.38")

RECIPE = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
#: Methods whose layers do not run on a CPU, or do not train.
UNPROVEN = ("fp8", "gptq", "hqq", "bitnet", "modelopt")


def known(*names: str) -> Any:
    """Skips where the installed transformers lacks a class."""
    missing = [name for name in names if not hasattr(transformers, name)]
    return pytest.mark.skipif(bool(missing), reason=f"this transformers has no {missing}")


def codes(diagnosis: Any) -> set[str]:
    return {finding.rule for finding in diagnosis.findings if finding.rule.startswith("LD3")}


def raised(folder: Path, **options: Any) -> str:
    """What plain `from_pretrained` raises on a folder of random weights; empty for nothing."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    made = transformers.AutoConfig.for_model(**plain)
    model = transformers.AutoModelForCausalLM.from_config(made)
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    try:
        transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    except Exception as error:  # noqa: BLE001 - whatever it raises is the question
        return str(error)
    return ""


@pytest.mark.parametrize("method", UNPROVEN)
def test_no_checkpoint_is_healthy_that_was_not_run_quantized(
    method: str, tmp_path: Path, worker: Worker
) -> None:
    """The quantization was dropped, and every such folder was proved as plain linear layers."""
    folder = write(tmp_path, method)
    diagnosis = lora_doctor.check(str(folder), RECIPE, depth="tiny", worker=worker)
    assert diagnosis.verdict != "healthy"
    assert diagnosis.before is not None
    assert any(note.is_unproven for note in diagnosis.before.notes)


@pytest.mark.parametrize("method", ["gptq", "awq", "aqlm", "compressed-tensors fp8", "hqq"])
def test_a_missing_package_is_named_as_transformers_names_it(
    method: str, tmp_path: Path, worker: Worker
) -> None:
    """`pip install` of the message is for this release: AWQ's package is another in 4 and 5."""
    message = raised(write(tmp_path, method))
    if "install" not in message:
        pytest.skip("the package is installed here")
    diagnosis = lora_doctor.check(str(tmp_path), RECIPE, depth="meta", worker=worker)
    (finding,) = [finding for finding in diagnosis.findings if finding.rule == "LD309"]
    shown = finding.evidence[1].value
    assert " ".join(message.split())[:80] in shown, (message, shown)
    assert finding.fixes[0].safety == "manual"


@known("GptOssConfig")
def test_mxfp4_trains_once_it_is_dequantized(tmp_path: Path, worker: Worker) -> None:
    """gpt-oss as published; the edit of the fix is what plain transformers is given, and trains."""
    folder = write_mxfp4(tmp_path)
    diagnosis = lora_doctor.fix(str(folder), RECIPE, unsafe_fixes=True, worker=worker)
    assert codes(diagnosis) == {"LD308"}
    assert diagnosis.fixed_recipe is not None and diagnosis.fixed_recipe.get("dequantize") is True
    assert diagnosis.after is not None and diagnosis.after.as_answer().outcome == "passed"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=transformers.Mxfp4Config(dequantize=True)
    )
    assert trains(model)


@known("FineGrainedFP8Config")
def test_fp8_is_not_proven_as_stored_and_proven_dequantized(tmp_path: Path, worker: Worker) -> None:
    """Its kernels want a GPU. That a laptop has none is no failure of the recipe's."""
    folder = write_fp8(tmp_path)
    stored = lora_doctor.check(str(folder), RECIPE, worker=worker)
    trainable = "LD308" not in codes(stored)
    assert all(finding.severity == "warning" for finding in stored.findings) or not trainable
    config = transformers.FineGrainedFP8Config()
    if not hasattr(config, "dequantize"):
        assert not trainable  # 4.57: it says so itself, and cannot dequantize
        return
    wanted = {**RECIPE, "dequantize": True}
    assert lora_doctor.check(str(folder), wanted, worker=worker).verdict == "healthy"
    full = lora_doctor.check(str(folder), wanted, depth="full", worker=worker)
    assert full.before is not None and full.before.outcome == "passed", full.before
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=transformers.FineGrainedFP8Config(dequantize=True)
    )
    assert trains(model)


def test_a_bitsandbytes_checkpoint_is_a_quantized_recipe(tmp_path: Path, worker: Worker) -> None:
    """It was proved without quantization and without `prepare_model_for_kbit_training`."""
    pytest.importorskip("bitsandbytes")
    quantization = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    plain = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**sizes()))
    plain.save_pretrained(tmp_path / "plain", safe_serialization=True)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "plain", quantization_config=quantization, device_map={"": "cpu"}
        )
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"this transformers does not quantize here: {error}")
    folder = tmp_path / "quantized"
    model.save_pretrained(folder, safe_serialization=True)
    tiny = lora_doctor.check(str(folder), RECIPE, worker=worker)
    assert tiny.recipe.quantized == "4bit" and tiny.verdict == "healthy"
    assert tiny.recipe.get("bnb_4bit_quant_type") == "nf4"
    full = lora_doctor.check(str(folder), RECIPE, depth="full", worker=worker)
    assert full.before is not None and full.before.outcome == "passed", full.before


@pytest.mark.parametrize("method", ["fp8", "bitnet", "bitsandbytes 8-bit"])
def test_a_quantization_on_top_is_what_transformers_makes_of_it(
    method: str, tmp_path: Path, worker: Worker
) -> None:
    """Another method is refused by `from_pretrained`; the same one wins over the recipe."""
    pytest.importorskip("bitsandbytes")
    folder = write(tmp_path, method)
    asked = {**RECIPE, "load_in_4bit": True}
    diagnosis = lora_doctor.check(str(folder), asked, depth="meta", worker=worker)
    (finding,) = [finding for finding in diagnosis.findings if finding.rule == "LD311"]
    quantization = transformers.BitsAndBytesConfig(load_in_4bit=True)
    message = raised(folder, quantization_config=quantization)
    if method.startswith("bitsandbytes"):
        assert finding.severity == "warning" and diagnosis.recipe.quantized == "8bit"
        assert "you are passing" not in message
    else:
        assert finding.severity == "error"
        assert "you are passing a BitsAndBytesConfig" in message


def test_the_text_part_of_a_config_may_hold_the_quantization(
    tmp_path: Path, worker: Worker
) -> None:
    """As multimodal checkpoints of FP8 have it; transformers 5.24 looks there as well."""
    folder = write(tmp_path, "modelopt")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"] = {"quantization_config": config.pop("quantization_config")}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    from lora_doctor.static.model_files import gather_static

    assert gather_static(folder, source="m").quantization_config == METHODS["modelopt"]


def test_other_architectures_are_asked_alike(tmp_path: Path, worker: Worker) -> None:
    """Nothing here knows which model it is."""
    if not hasattr(transformers, "Qwen3Config"):
        pytest.skip("this transformers has no Qwen3")
    folder = write(tmp_path, "modelopt", **QWEN)
    diagnosis = lora_doctor.check(str(folder), RECIPE, depth="meta", worker=worker)
    assert codes(diagnosis) == {"LD312"}


def test_torchao_is_really_run(tmp_path: Path, worker: Worker) -> None:
    """Its int8 layers run on a CPU: the tiny model is quantized, saved, loaded and trained."""
    pytest.importorskip("torchao")
    folder = write(tmp_path, "torchao int8")
    diagnosis = lora_doctor.check(str(folder), RECIPE, worker=worker)
    assert diagnosis.verdict == "healthy", diagnosis
    assert diagnosis.before is not None
    assert any("torchao" in note.text for note in diagnosis.before.notes)


def test_packed_weights_of_compressed_tensors_take_no_adapters(
    tmp_path: Path, worker: Worker
) -> None:
    """A layer without a `weight`; dequantized while loading it has one, and trains."""
    pytest.importorskip("compressed_tensors")
    folder = write(tmp_path, "compressed-tensors packed")
    diagnosis = lora_doctor.fix(str(folder), RECIPE, unsafe_fixes=True, worker=worker)
    assert codes(diagnosis) == {"LD310"}
    assert diagnosis.after is not None and diagnosis.after.as_answer().outcome == "passed"


def test_packed_weights_that_are_not_loaded_are_random_ones(tmp_path: Path, worker: Worker) -> None:
    """HQQ in transformers 5: loading succeeds, and every linear layer is new."""
    pytest.importorskip("hqq")
    folder = write_packed(tmp_path, "hqq", ("W_q", "scale", "zero", "nbits", "group_size"))
    _, told = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    lost = any(name.endswith("q_proj.weight") for name in told["missing_keys"])
    diagnosis = lora_doctor.check(str(folder), RECIPE, depth="meta", worker=worker)
    assert lost == (codes(diagnosis) == {"LD309"}), (told["missing_keys"], diagnosis.findings)


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors packed"])
def test_packed_names_are_no_missing_layers(method: str, tmp_path: Path, worker: Worker) -> None:
    """`q_proj.qweight` is what GPTQ makes of `q_proj.weight`: nothing is missing or left out."""
    folder = write_packed(tmp_path, method, ("qweight", "qzeros", "scales", "g_idx"))
    diagnosis = lora_doctor.check(str(folder), RECIPE, depth="meta", worker=worker)
    assert codes(diagnosis) == {finding.rule for finding in diagnosis.findings}


def test_loading_kwargs_dequantize_the_checkpoint(tmp_path: Path) -> None:
    """What a training script gets from a prescription is what the fix was proved with."""
    if not hasattr(transformers, "Mxfp4Config"):
        pytest.skip("this transformers has no MXFP4")
    write(tmp_path / "mxfp4", "mxfp4")
    prescription = Prescription(str(tmp_path / "mxfp4"), recipe={"dequantize": True})
    config = apply(prescription).loading_kwargs()["quantization_config"]
    assert type(config).__name__ == "Mxfp4Config" and config.dequantize is True
    write(tmp_path / "gptq", "gptq")
    with pytest.raises(InputError, match="cannot be dequantized while it loads"):
        apply(Prescription(str(tmp_path / "gptq"), recipe={"dequantize": True})).loading_kwargs()


def sizes() -> dict[str, Any]:
    return {
        key: value for key, value in LLAMA.items() if key not in ("architectures", "model_type")
    }


def trains(model: Any) -> bool:
    """Whether plain PEFT and torch bring the loss of one batch down."""
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config).train()
    ids = torch.randint(0, 200, (2, 12))
    parameters = [one for one in wrapped.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(4):
        loss = wrapped(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("ValueError: Target module TritonV2QuantLinear() is not supported.", "LD310"),
        (
            "Target module QuantLinear() is not supported. Currently, only `torch.nn.Linear`",
            "LD310",
        ),
        ("quantized with mxfp4 but that quantization method do not support training.", "LD308"),
        ("Loading an AWQ quantized model requires gptqmodel. `pip install gptqmodel`", "LD309"),
        (
            "The model is quantized with AwqConfig but you are passing a GPTQConfig config",
            "LD311",
        ),
        ("Unknown quantization type, got modelopt - supported types are: ['awq']", "LD312"),
    ],
)
def test_the_messages_are_explained(message: str, code: str) -> None:
    """Pasted into `explain`, each leads to its rule first."""
    assert find_by_message(message, find_rules())[0].rule.code == code
