"""Forwards of remote code that ask for more than tensors, or for what another transformers had.

Small repositories after the pattern of Phi-4-multimodal: a mode that is an enum, a table or words
in a message, and a cache by default whose methods are gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.sandbox.worker import Worker
from lora_doctor.tiny_model.batch.make_batch import make_batch
from lora_doctor.tiny_model.batch.run_forward import trainer_disables_cache
from tests.remote_repository import keep_modules_apart, load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

RECIPE = {"target_modules": ["mix"], "r": 4}

CODE = """
import enum
from typing import Literal, Optional
import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

class TinyConfig(PretrainedConfig):
    model_type = "tinymode"

    def __init__(self, vocab_size=64, hidden_size=16, use_cache=True, **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.use_cache = use_cache
        super().__init__(**kwargs)

class InputMode(enum.Enum):
    NONE = 7
    LANGUAGE = 0
    VISION = 1

class Task(str, enum.Enum):
    RANK = "rank"
    TEXT = "text"

MODES = {"speech": 2, "language": 1}

class TinyForCausalLM(PreTrainedModel):
    config_class = TinyConfig
    base_model_prefix = ""

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(0, 0.2)

    def get_input_embeddings(self):
        return self.embed

    def step(self, mode, past, length):
        return 1.0

    def forward(self, input_ids=None, attention_mask=None, labels=None, use_cache=None,
                past_key_values=None, ARGUMENT):
        if use_cache is None:
            use_cache = self.config.use_cache
        BODY
        hidden = self.embed(input_ids)
        logits = self.lm_head(torch.tanh(self.mix(hidden)) + hidden)
        loss = None
        if labels is not None:
            scores = logits[:, :-1].flatten(0, 1)
            loss = nn.functional.cross_entropy(scores, labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)
"""

#: The argument, what forward does with it, and the value that the batch then has.
MODES: dict[str, tuple[str, str, Any]] = {
    "enum": (
        "input_mode=None",
        "input_mode = InputMode(input_mode)\n"
        "        assert input_mode is InputMode.LANGUAGE, input_mode",
        0,
    ),
    "enum-deeper": (
        "which=None",
        "mode = (lambda value: Task(value))(which)\n        assert mode is Task.TEXT, mode",
        "text",
    ),
    "table": ("mode=None", "assert MODES[mode] == 1, mode", "language"),
    "message": (
        "task=None",
        "if task not in ('embed', 'rank'):\n"
        "            raise ValueError(f\"task must be one of 'embed', 'rank', got {task}\")",
        "embed",
    ),
    "annotated": (
        "*, task: Task",
        "assert task is Task.TEXT, task",
        "text",
    ),
    "literal": (
        "*, task: Optional[Literal['image', 'lm']]",
        "assert task == 'lm', task",
        "lm",
    ),
}

#: What forward does where it keeps a cache.
CACHES = {
    "method": "past = DynamicCache()\n            past.get_length_of_another_release(3)",
    "class": "past = DynamicCache.from_another_release(None)",
    "attribute": "past = DynamicCache().tokens_of_another_release",
}


def write(folder: Path, argument: str = "**kwargs", body: str = "pass", **config: Any) -> Path:
    folder.mkdir()
    code = CODE.replace("ARGUMENT", argument).replace("BODY", body)
    (folder / "modeling_tiny.py").write_text(code)
    values = {
        "model_type": "tinymode", "architectures": ["TinyForCausalLM"], "vocab_size": 64,
        "hidden_size": 16, "tie_word_embeddings": False,
        "auto_map": {"AutoConfig": "modeling_tiny.TinyConfig",
                     "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"},
        **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module", autouse=True)
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One child for all; the code of each repository goes where its folder's name says."""
    with pytest.MonkeyPatch.context() as patched:
        keep_modules_apart(patched, tmp_path_factory.mktemp("modules"))
        with Worker(threads=1) as child:
            yield child


@pytest.mark.parametrize("shape", MODES)
def test_a_mode_that_has_to_be_one_of_a_few(shape: str, tmp_path: Path) -> None:
    """The value is found in the enum, the table, the message or the annotation."""
    argument, body, value = MODES[shape]
    model = load(write(tmp_path / f"mode_{shape}", argument, body))
    with pytest.raises(Exception):  # noqa: B017 - each shape raises another
        model(input_ids=torch.arange(4)[None])
    batch = make_batch(model)
    name = argument.removeprefix("*, ").split("=")[0].split(":")[0]
    assert batch.inputs[name] == value and batch.loss == "labels", batch.notes


def test_phi_4s_shape_is_proven(tmp_path: Path, worker: Worker) -> None:
    folder = write(tmp_path / "phi", *MODES["enum"][:2])
    found = lora_doctor.check(str(folder), RECIPE, trust_remote_code=True, worker=worker)
    assert found.verdict == "healthy", found.findings


def trains(folder: Path, **settings: Any) -> str:
    """What plain transformers says of a step with the cache that the Trainer leaves on."""
    model = load(folder).train()
    if trainer_disables_cache():
        model.config.use_cache = False
    ids = torch.arange(8)[None]
    try:
        model(input_ids=ids, labels=ids).loss.backward()
    except AttributeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("shape", CACHES)
def test_a_cache_of_another_release(shape: str, tmp_path: Path, worker: Worker) -> None:
    """The default makes a cache, and training dies in it: where a trainer does not turn it off."""
    pytest.importorskip("transformers.cache_utils")
    body = f"if use_cache:\n            {CACHES[shape]}"
    broken = write(tmp_path / f"cache_{shape}", body=body)
    said = trains(broken)
    assert bool(said) is not trainer_disables_cache()
    found = lora_doctor.check(str(broken), RECIPE, trust_remote_code=True, worker=worker)
    assert [one.rule for one in found.findings] == (["LD104"] if said else [])
    if said:
        (finding,) = found.findings
        line = (broken / "modeling_tiny.py").read_text().splitlines()
        assert CACHES[shape].split()[-1] in line[(finding.location.line or 0) - 1]
        assert finding.proof.kind == "executed" and "use_cache" in finding.fixes[0].title
    else:
        assert found.verdict == "healthy"
    mended = write(tmp_path / f"{shape}_mended", body=body, use_cache=False)
    assert not trains(mended)
    again = lora_doctor.check(str(mended), RECIPE, trust_remote_code=True, worker=worker)
    assert again.verdict == "healthy", again.findings


ALWAYS = {
    "cache": "past = DynamicCache().tokens_of_another_release",
    "outputs": "past = BaseModelOutput().hidden_of_another_release",
    "static": "past = BaseModelOutput.from_another_release()",
}


@pytest.mark.parametrize("shape", ALWAYS)
def test_what_fails_whatever_is_passed(shape: str, tmp_path: Path, worker: Worker) -> None:
    """No batch can be made, because the code asks for what is not there: that is its failure."""
    folder = write(tmp_path / f"always_{shape}", body=ALWAYS[shape])
    assert trains(folder)
    found = lora_doctor.check(str(folder), RECIPE, trust_remote_code=True, worker=worker)
    assert [one.rule for one in found.findings] == ["LD104"], found.skipped
