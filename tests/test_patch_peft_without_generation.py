"""A model of the hub that wraps its own inner model with PEFT while it is being loaded.

The repository is written here after the pattern of Phi-4-multimodal: the head class asserts that
its config describes two built-in adapters and calls ``get_peft_model`` with ``CAUSAL_LM`` on its
headless inner model. In one file or two, with one wrapper or two, it must load, train, generate,
save and reload.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.prescription import patches
from lora_doctor.recipe.edit import Patch
from tests.remote_repository import WRAP_AGAIN, write_repository

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.slow

BUILD = Patch("peft_without_generation")


@pytest.fixture(params=["one file", "split files"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(WRAP_AGAIN))
def wrap_again(request: pytest.FixtureRequest) -> str:
    return WRAP_AGAIN[request.param]


@pytest.fixture
def repository(
    tmp_path: Path, layout: str, wrap_again: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder of the model, with an own cache for its code."""
    cache = tmp_path / "modules"
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(cache))
    folder = tmp_path / "tinymm"
    write_repository(folder, layout, wrap_again)
    forget_remote_code()
    yield folder
    forget_remote_code()
    assert not patches._installed


def forget_remote_code() -> None:
    """The next load imports the code of the repository anew."""
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if not entry.endswith("/modules")]


def from_config(folder: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=True)
    return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)


def from_pretrained(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(str(folder), trust_remote_code=True)


def needs_patch() -> bool:
    """Before 4.50 every PreTrainedModel has the method."""
    return not hasattr(transformers.PreTrainedModel, "prepare_inputs_for_generation")


def batch() -> dict[str, Any]:
    tokens = torch.randint(3, 60, (2, 8))
    return {"input_ids": tokens, "labels": tokens}


def our_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line.getMessage() for line in caplog.records if line.name == "lora_doctor"]


def train(model: Any, part: str, inputs: dict[str, Any]) -> tuple[float, float]:
    """A few steps on the parameters with ``part`` in their name: first and last loss."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part in name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    optimizer = torch.optim.Adam(trained, lr=0.05)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def test_without_the_patch_it_does_not_load(repository: Path) -> None:
    if not needs_patch():
        assert from_config(repository)
        return
    with pytest.raises(AttributeError, match="prepare_inputs_for_generation"):
        from_config(repository)


def test_it_loads_trains_generates_saves_and_reloads(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    inputs = batch()
    with caplog.at_level(logging.INFO, logger="lora_doctor"):
        undo = patches.install(BUILD)
        try:
            model = from_config(repository)
            assert sum("lora_A.vision" in name for name, _ in model.named_parameters()) == 4
            assert sum("lora_A.speech" in name for name, _ in model.named_parameters()) == 4
            inner = model.model
            assert hasattr(inner, "prepare_inputs_for_generation") is not needs_patch()

            active = "vision" if any(
                "vision" in getattr(module, "active_adapters", [])
                for module in model.modules() if hasattr(module, "lora_A")
            ) else "speech"  # fmt: skip
            first, last = train(model, f"lora_A.{active}", inputs)
            train(model, f"lora_B.{active}", inputs)
            first, last = train(model, f".{active}.", inputs)
            assert last < first

            model.eval()
            generated = model.generate(inputs["input_ids"], max_new_tokens=3, do_sample=False)
            assert generated.shape[1] > 8
            with torch.no_grad():
                want = model(**inputs).logits
            saved = tmp_path / "saved"
            model.save_pretrained(saved)
            for file in repository.glob("*.py"):
                (saved / file.name).write_bytes(file.read_bytes())
            config = json.loads((saved / "config.json").read_text())
            config["auto_map"] = json.loads((repository / "config.json").read_text())["auto_map"]
            (saved / "config.json").write_text(json.dumps(config))

            forget_remote_code()
            again = from_pretrained(saved).eval()
            with torch.no_grad():
                assert (again(**inputs).logits - want).abs().max().item() == 0
            assert torch.equal(
                again.generate(inputs["input_ids"], max_new_tokens=3, do_sample=False), generated
            )
        finally:
            undo()
    assert len(our_lines(caplog)) == (1 if needs_patch() else 0), caplog.text
    if needs_patch():
        assert "TinyMMModel has no prepare_inputs_for_generation" in caplog.text
        forget_remote_code()
        with pytest.raises(AttributeError, match="prepare_inputs_for_generation"):
            from_config(repository)


def test_an_adapter_of_ones_own_on_top(repository: Path, tmp_path: Path) -> None:
    """The outer model is wrapped as ever: trains, generates, its adapter reloads."""
    torch.manual_seed(0)
    inputs = batch()
    undo = patches.install(BUILD)
    try:
        base = from_config(repository)
        weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["lm_head"])
        model = peft.get_peft_model(base, config)
        train(model, "lora_B.default", inputs)
        first, last = train(model, ".default.", inputs)
        assert last < first
        model.eval()
        generated = model.generate(input_ids=inputs["input_ids"], max_new_tokens=3, do_sample=False)
        with torch.no_grad():
            want = model(**inputs).logits
        model.save_pretrained(tmp_path / "adapter")

        fresh = from_config(repository)
        fresh.load_state_dict(weights)
        again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
        with torch.no_grad():
            assert (again(**inputs).logits - want).abs().max().item() == 0
        assert torch.equal(
            again.generate(input_ids=inputs["input_ids"], max_new_tokens=3, do_sample=False),
            generated,
        )
    finally:
        undo()


class Headless(torch.nn.Module):
    """A model of somebody's own, without anything of transformers'."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        return self.linear(input_ids)


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_2_SEQ_LM"])
def test_the_wrapper_itself_says_why_it_cannot_generate(task: str) -> None:
    undo = patches.install(BUILD)
    try:
        model = Headless()
        config = peft.LoraConfig(task_type=task, target_modules=["linear"])
        wrapped = peft.get_peft_model(model, config)
        assert not hasattr(model, "prepare_inputs_for_generation"), "lent, not given"
        wrapped.base_model.model(torch.randn(2, 4)).sum().backward()
        with pytest.raises(AttributeError, match="Headless has no 'prepare_inputs_for_generation'"):
            wrapped.generate(input_ids=torch.zeros(1, 1))
        with pytest.raises(AttributeError, match="Headless has no"):
            wrapped.prepare_inputs_for_generation(torch.zeros(1, 1))
    finally:
        undo()
    with pytest.raises(AttributeError):
        peft.get_peft_model(Headless(), config)


def test_a_model_that_can_generate_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    undo = patches.install(BUILD)
    try:
        model = transformers.LlamaForCausalLM(config)
        lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
        with caplog.at_level(logging.INFO, logger="lora_doctor"):
            wrapped = peft.get_peft_model(model, lora)
            out = wrapped.generate(input_ids=torch.ones(1, 3).long(), max_new_tokens=2)
        assert out.shape == (1, 5)
    finally:
        undo()
    assert not our_lines(caplog)
