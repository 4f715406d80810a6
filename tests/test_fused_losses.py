"""LoRA on the output head beside a loss that takes the head's weight: asked of the recipe, of
scripts and of the files of frameworks, judged by the source of what is installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.recipe.files.read_write import read_recipe
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.rules import ld512_head_adapter_not_in_loss as rule
from lora_doctor.static.installed import fused_losses

LIGER = """
from liger_kernel.transformers.model.llama import lce_forward as llama_lce_forward

def apply_liger_kernel_to_llama(rope: bool = True, fused_linear_cross_entropy: bool = True):
    modeling_llama.LlamaForCausalLM.forward = llama_lce_forward

def apply_liger_kernel_to_qwen3(rope: bool = True, fused_linear_cross_entropy: bool = True):
    from liger_kernel.transformers.model.qwen3 import lce_forward as llama_lce_forward
    modeling_qwen3.Qwen3ForCausalLM.forward = llama_lce_forward

def apply_liger_kernel_to_opt(fused_linear_cross_entropy: bool = False):
    modeling_opt.OPTForCausalLM.forward = llama_lce_forward

MODEL_TYPE_TO_APPLY_LIGER_FN = {
    "llama": apply_liger_kernel_to_llama,
    "qwen3": apply_liger_kernel_to_qwen3,
    "opt": apply_liger_kernel_to_opt,
}
"""
FORWARD = (
    "def lce_forward(self):\n    # self.lm_head.weight\n    return loss(self.lm_head.weight)\n"
)
TRAINER = """
class {name}Trainer:
    def __init__(self, model):
        if {outer}:
            if is_peft_model(model) and isinstance(model.get_output_embeddings(), BaseTunerLayer):
                raise ValueError("no adapter on `lm_head`")
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Packages with the lines of Liger and TRL that decide."""
    files = {
        "liger_kernel/transformers/monkey_patch.py": LIGER,
        "liger_kernel/transformers/model/llama.py": FORWARD,
        "liger_kernel/transformers/model/qwen3.py": f"\n\n{FORWARD}",
        "trl/trainer/sft_trainer.py": TRAINER.format(name="SFT", outer="is_peft_available()"),
        "trl/trainer/dpo_trainer.py": TRAINER.format(name="DPO", outer="self.use_liger_kernel"),
        "trl/trainer/kto_trainer.py": TRAINER.format(name="KTO", outer="loss_type == 'x'"),
    }
    for name, text in files.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(fused_losses, "package_folder", lambda name: tmp_path / "site" / name)
    caches = (fused_losses.liger_reads_head, fused_losses.trl_refuses_head)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.usefixtures("installed")
def test_the_line_that_takes_the_weight() -> None:
    llama = fused_losses.liger_reads_head("llama")
    assert str(llama) == "liger_kernel/transformers/model/llama.py:3"
    assert str(fused_losses.liger_reads_head("qwen3")).endswith("qwen3.py:5")
    assert fused_losses.liger_reads_head("opt") is None  # it keeps its loss
    assert fused_losses.liger_reads_head("bert") is None


@pytest.mark.usefixtures("installed")
def test_the_trainers_that_raise() -> None:
    found = {name: fused_losses.trl_refuses_head(f"{name}Trainer") for name in ("SFT", "DPO")}
    assert {name: one and one.with_liger for name, one in found.items()} == {
        "SFT": False, "DPO": True,
    }  # fmt: skip
    assert found["SFT"] is not None and found["SFT"].message == "no adapter on `lm_head`"
    assert fused_losses.trl_refuses_head("KTOTrainer") is None  # under a condition of its own
    assert fused_losses.trl_refuses_head("RewardTrainer") is None


FILES = {
    "axolotl.yml": "base_model: x\nadapter: lora\nlora_r: 8\nsequence_len: 9\nmicro_batch_size: 1\n"
    "liger_fused_linear_cross_entropy: true\n",
    "llamafactory.yaml": "model_name_or_path: x\nstage: sft\nfinetuning_type: lora\ntemplate: y\n"
    "cutoff_len: 9\nenable_liger_kernel: true\n",
    "trl.yaml": "model_name_or_path: x\nuse_peft: true\nlora_r: 8\nuse_liger_kernel: true\n",
    "recipe.yaml": "r: 8\nuse_liger_kernel: true\n",
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_has_its_word_for_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    assert read_recipe(path).get("use_liger_kernel") is True


def test_stages_with_logits_keep_their_loss(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(FILES["llamafactory.yaml"].replace("sft", "dpo"), encoding="utf-8")
    assert read_recipe(path).get("use_liger_kernel") is None


def test_a_script_says_it_by_an_argument_or_a_class(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    wrapped = "model = peft.get_peft_model(model, peft.LoraConfig(r=8))\n"
    path.write_text(
        "import peft, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained('x')\n" + wrapped +
        "transformers.Trainer(model, transformers.TrainingArguments('o', use_liger_kernel=True))\n",
        encoding="utf-8",
    )  # fmt: skip
    assert read_setup(path).recipe.get("use_liger_kernel") is True
    path.write_text(
        "import peft\nfrom liger_kernel.transformers import AutoLigerKernelForCausalLM\n"
        "model = AutoLigerKernelForCausalLM.from_pretrained('x')\n" + wrapped,
        encoding="utf-8",
    )
    setup = read_setup(path)
    assert (setup.model, setup.recipe.get("model_class")) == ("x", "AutoModelForCausalLM")


def _llama() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=4,
        )
    )  # fmt: skip


RECIPES = [
    ({"target_modules": ["q_proj", "lm_head"], "use_liger_kernel": True}, True),
    ({"target_modules": ["q_proj", "embed_tokens"], "use_liger_kernel": True}, False),
    (
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "use_liger_kernel": True},
        False,
    ),
    (
        {
            "target_modules": ["q_proj", "lm_head"], "use_liger_kernel": True,
            "liger_kernel_config": {"fused_linear_cross_entropy": False},
        },
        False,
    ),
    ({"target_modules": "all-linear", "use_liger_kernel": True}, False),
]  # fmt: skip


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("recipe", "bypassed"), RECIPES)
def test_the_verdict_on_a_recipe(
    recipe: dict[str, Any], bypassed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, "liger_version", lambda: "0.8")
    found = lora_doctor.check(_llama(), {"task_type": "CAUSAL_LM", **recipe}, depth="meta").findings
    assert any(finding.rule == "LD512" for finding in found) == bypassed


@pytest.mark.parametrize(("recipe", "bypassed"), RECIPES)
def test_ligers_own_forward(
    recipe: dict[str, Any], bypassed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run as it is; only its kernel, which needs a GPU, is the same product in torch."""
    pytest.importorskip("liger_kernel.transformers")
    import peft
    import torch
    from torch.nn import functional

    def loss(*, hidden_states: Any, lm_head_weight: Any, labels: Any, **_: Any) -> Any:
        logits = functional.linear(hidden_states, lm_head_weight)[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())

    module = importlib.import_module("liger_kernel.transformers.model.llama")
    monkeypatch.setattr(module, "LigerForCausalLMLoss", loss)
    keys = ("target_modules", "modules_to_save")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", **{key: recipe[key] for key in keys if key in recipe}
    )
    model = peft.get_peft_model(_llama(), config)
    patch = importlib.import_module("liger_kernel.transformers")._apply_liger_kernel_to_instance
    patch(
        model=model.get_base_model(), rope=False, rms_norm=False, swiglu=False,
        **recipe.get("liger_kernel_config", {}),
    )  # fmt: skip
    ids = torch.arange(3, 19).reshape(2, 8)
    model(input_ids=ids, labels=ids).loss.backward()
    head = [one.grad for name, one in model.named_parameters() if "lm_head" in name and
            one.requires_grad]  # fmt: skip
    assert (bool(head) and all(gradient is None for gradient in head)) == bypassed
