"""Classes of the user's own, and of a model's repository: built, and loaded as the user will."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.sandbox.worker import Worker
from tests.remote_repository import keep_modules_apart

pytest.importorskip("torch")
pytest.importorskip("peft")

RECIPE = {"target_modules": ["v_proj"], "r": 4}
CONFIGURATION = """
from transformers import PretrainedConfig

class PlainConfig(PretrainedConfig):
    model_type = "plain_lm"

    def __init__(self, vocab_size=64, hidden_size=16, num_hidden_layers=2, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**kwargs)
"""
MODELING = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutput

from .configuration_plain import PlainConfig

class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden):
        return hidden + self.v_proj(torch.relu(self.q_proj(hidden)))

class PlainForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = PlainConfig
    base_model_prefix = "model"
    _tied_weights_keys = TIED

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        LAST_LINE

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(0, 0.2)

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            rows = logits[:, :-1].reshape(-1, logits.shape[-1])
            loss = nn.functional.cross_entropy(rows, labels[:, 1:].reshape(-1))
        return CausalLMOutput(loss=loss, logits=logits)
"""


def transformers_at_least(version: str) -> bool:
    from packaging.version import Version
    from transformers import __version__

    return Version(__version__) >= Version(version)


def repository(folder: Path, *, last_line: str = "self.post_init()", tied: str = "None") -> Path:
    """A checkpoint whose classes are code beside it."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    modeling = MODELING.replace("LAST_LINE", last_line).replace("TIED", tied)
    (folder / "configuration_plain.py").write_text(CONFIGURATION, "utf-8")
    (folder / "modeling_plain.py").write_text(modeling, "utf-8")
    config = {
        "architectures": ["PlainForCausalLM"],
        "model_type": "plain_lm",
        "tie_word_embeddings": tied != "None",
        "auto_map": {
            "AutoConfig": "configuration_plain.PlainConfig",
            "AutoModelForCausalLM": "modeling_plain.PlainForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    shapes = {"embed.weight": (64, 16), "lm_head.weight": (64, 16)}
    for layer in (0, 1):
        for name in ("q_proj", "v_proj"):
            shapes[f"layers.{layer}.{name}.weight"] = (16, 16)
            shapes[f"layers.{layer}.{name}.bias"] = (16,)
    if tied != "None":
        del shapes["lm_head.weight"]
    tensors = {name: torch.full(shape, 0.1) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(autouse=True)
def modules_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_modules_apart(monkeypatch, tmp_path / "modules")


def load(folder: Path) -> Any:
    """The model as a training script loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def checked(folder: Path, worker: Worker) -> lora_doctor.Diagnosis:
    return lora_doctor.check(str(folder), RECIPE, trust_remote_code=True, worker=worker)


@pytest.mark.parametrize("last_line", ["pass", "self.init_weights()"])
def test_code_that_this_release_constructs_and_cannot_load(
    last_line: str, tmp_path: Path, worker: Worker
) -> None:
    """A class that never calls `post_init` is constructed and trains, but fails in
    `from_pretrained` of transformers 5 only, which is how the user gets it; one that calls
    `init_weights` instead, as code of transformers 3 does, cannot even be constructed there."""
    folder = repository(tmp_path / "old_style", last_line=last_line)
    diagnosis = checked(folder, worker)
    found = [finding.rule for finding in diagnosis.findings]
    if not transformers_at_least("5"):
        load(folder)
        assert found == []
        return
    with pytest.raises(AttributeError, match="all_tied_weights_keys"):
        load(folder)
    assert found == ["LD104"]
    (finding,) = diagnosis.findings
    assert finding.severity == "error" and finding.proof.kind == "executed"
    assert "post_init" in finding.fixes[0].title


def test_the_same_code_with_its_last_line_trains(tmp_path: Path, worker: Worker) -> None:
    """The advice is right: with `self.post_init()` it loads, and is healthy."""
    folder = repository(tmp_path / "new_style")
    load(folder)
    diagnosis = checked(folder, worker)
    assert diagnosis.findings == ()
    assert diagnosis.before is not None and diagnosis.before.outcome == "passed"


def test_a_tied_head_of_ones_own_is_no_missing_weight(tmp_path: Path, worker: Worker) -> None:
    """The library's own ties are asked, so that the head is not taken for random."""
    tied = '{"lm_head.weight": "embed.weight"}' if transformers_at_least("5") else (
        '["lm_head.weight"]'
    )  # fmt: skip
    folder = repository(tmp_path / "tied_style", tied=tied)
    model = load(folder)
    assert model.lm_head.weight is model.embed.weight
    assert "LD606" not in [finding.rule for finding in checked(folder, worker).findings]


def test_a_factory_that_raises_what_a_rule_knows_is_a_finding(worker: Worker) -> None:
    """It was "bad input", without a word of the rule that knows the message."""
    diagnosis = lora_doctor.check("tests.models:without_post_init", RECIPE, worker=worker)
    (finding,) = diagnosis.findings
    assert finding.rule == "LD001" and "LD104" in finding.message
    assert finding.severity == "error"


def test_a_factory_that_raises_something_of_its_own_is_no_finding(worker: Worker) -> None:
    """No rule is named where none fits."""
    with pytest.raises(lora_doctor.InputError, match="not mounted"):
        lora_doctor.check("tests.models:without_its_data", RECIPE, worker=worker)


def test_a_factory_that_wraps_what_cannot_generate_is_ld101(worker: Worker, tmp_path: Path) -> None:
    """And with the patch of the prescription in force when it runs, it builds its model."""
    if not transformers_at_least("4.50"):
        pytest.skip("every model of this transformers is a GenerationMixin")
    source = "tests.models:wraps_its_inner_model"
    diagnosis = lora_doctor.check(source, RECIPE, worker=worker)
    (finding,) = diagnosis.findings
    assert finding.rule == "LD101"
    fixed = lora_doctor.fix(source, RECIPE, select=["LD101"], worker=worker)
    assert [one.rule for one in fixed.applied] == ["LD101"]
    assert fixed.remaining == ()


BUFFER = (
    "self.post_init()",
    'self.register_buffer("scale", torch.ones(16), persistent=False)\n        self.post_init()',
)
USED = ("hidden = self.embed(input_ids)", "hidden = self.embed(input_ids) * self.scale")
COMPUTED_AGAIN = (
    "def _init_weights(self, module):",
    "def _init_weights(self, module):\n        if module is self:\n            self.scale.fill_(1)",
)


def with_buffer(folder: Path, *edits: tuple[str, str]) -> Path:
    """The repository, with a table that its constructor computes and no file holds."""
    file = repository(folder) / "modeling_plain.py"
    text = file.read_text("utf-8")
    for old, new in (BUFFER, USED, *edits):
        assert old in text
        text = text.replace(old, new)
    file.write_text(text, "utf-8")
    return folder


def loaded_scale(folder: Path) -> Any:
    """The buffer as the user gets it, fresh memory being filled with NaN."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return load(folder).scale
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_buffer_that_loading_leaves_without_values(tmp_path: Path, worker: Worker) -> None:
    """transformers 5 computes nothing again that the constructor has computed: what the buffer
    holds is what lay in memory, and no word is said."""
    folder = with_buffer(tmp_path / "computes_once")
    scale = loaded_scale(folder)
    diagnosis = checked(folder, worker)
    found = [finding.rule for finding in diagnosis.findings]
    if not transformers_at_least("5"):
        assert bool((scale == 1).all()) and found == []
        return
    assert bool(scale.isnan().all()) and found == ["LD109"]
    (finding,) = diagnosis.findings
    assert finding.severity == "error" and finding.proof.kind == "executed"
    assert finding.evidence[0].value == ["scale"]


def test_a_buffer_that_is_computed_again_trains(tmp_path: Path, worker: Worker) -> None:
    """The advice is right: computed in `_init_weights`, it is there, and the model is healthy."""
    folder = with_buffer(tmp_path / "computes_again", COMPUTED_AGAIN)
    assert bool((loaded_scale(folder) == 1).all())
    diagnosis = checked(folder, worker)
    assert [finding.message for finding in diagnosis.findings] == []
    assert diagnosis.before is not None and diagnosis.before.outcome == "passed"


def test_a_class_of_the_script_around_the_model_may_have_what_the_model_lacks(
    worker: Worker,
) -> None:
    """Its head is saved, and trains: only what is inside it is looked at, and that is said."""
    script = Path(__file__).parent / "scripts" / "own_class_around_the_model.py"
    diagnosis = lora_doctor.check(script, depth="meta", worker=worker)
    assert not diagnosis.findings
    (note,) = (note for note in diagnosis.notes if "is not built" in note.text)
    assert note.text.startswith("Regressor (") and ":21)" in note.text and note.is_gap
    (skipped,) = (one for one in diagnosis.skipped if one.rule == "LD209")
    assert "may have such parts" in skipped.reason
