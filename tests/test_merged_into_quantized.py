"""A script that merges into the 4-bit weights that it trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

import lora_doctor
from lora_doctor.sandbox.worker import Worker

SCRIPT = Path(__file__).parent / "scripts" / "merged_into_4bit.py"
LORA = 'LoraConfig(r=8, target_modules=["q_proj", "v_proj"])'
IA3 = 'IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])'


@pytest.mark.slow
def test_ia3_has_no_merge_for_four_bits(tmp_path: Path, worker: Worker) -> None:
    """PEFT raises NotImplementedError, after the training."""
    pytest.importorskip("transformers", minversion="4.53")  # before, 4 bits ask for a GPU
    script = tmp_path / "train.py"
    script.write_text(
        SCRIPT.read_text().replace(LORA, IA3).replace("import Lora", "import IA3Config, Lora")
    )
    diagnosis = lora_doctor.check("arch:mistral", script, worker=worker)
    (finding,) = diagnosis.findings
    assert (finding.rule, finding.severity) == ("LD323", "error")
    assert (finding.location.path, finding.location.line) == (str(script), 10)


def test_a_fresh_base_is_merged_into_in_silence(tmp_path: Path) -> None:
    """The usual way: the adapter is put onto the base in 16 bits, and merged there."""
    script = tmp_path / "train.py"
    again = (
        'base = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1")\n'
        'PeftModel.from_pretrained(base, "adapter").merge_and_unload()\n'
    )
    text = SCRIPT.read_text().replace("import LoraConfig", "import LoraConfig, PeftModel")
    script.write_text(text.replace("model = model.merge_and_unload()\n", again))
    assert not lora_doctor.check(str(script), depth="static", select=["LD323"]).findings
    assert lora_doctor.check(str(SCRIPT), depth="static", select=["LD323"]).findings


@pytest.mark.parametrize("way", ["trainer.model", "accelerator.unwrap_model(trainer.model)"])
def test_the_model_of_a_trainer_is_the_one_that_was_adapted(way: str, tmp_path: Path) -> None:
    """Also where the trainer puts the adapters on itself, onto a model that it loads itself."""
    script = tmp_path / "train.py"
    script.write_text(
        "from peft import LoraConfig\n"
        "from transformers import BitsAndBytesConfig\n"
        "from trl import SFTConfig, SFTTrainer\n\n"
        "bits = BitsAndBytesConfig(load_in_8bit=True)\n"
        'args = SFTConfig("out", model_init_kwargs={"quantization_config": bits})\n'
        'lora = LoraConfig(r=8, target_modules=["q_proj"])\n'
        'trainer = SFTTrainer("org/model", args=args, peft_config=lora)\n'
        "trainer.train()\n"
        f'{way}.merge_and_unload().save_pretrained("merged")\n'
    )
    (finding,) = lora_doctor.check(str(script), depth="static", select=["LD323"]).findings
    assert (finding.severity, finding.location.line) == ("info", 10)


@pytest.mark.parametrize("error", ["NotImplementedError", "(OSError, RuntimeError)", "ImportError"])
def test_a_program_may_be_ready_for_a_refusal(error: str, tmp_path: Path) -> None:
    """LD316 is silent about a merge that is tried, unless what PEFT raises gets through."""
    pytest.importorskip("peft", minversion="0.9")  # the first with a layer for AQLM
    merge = "model = model.merge_and_unload()\n"
    tried = f"try:\n    {merge}except {error}:\n    pass\n"
    script = tmp_path / "train.py"
    script.write_text((SCRIPT.parent / "merged_into_aqlm.py").read_text().replace(merge, tried))
    found = lora_doctor.check(str(script), depth="static", select=["LD316"]).findings
    assert bool(found) is (error == "ImportError")
