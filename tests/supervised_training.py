"""What a tiny training really does with rows and labels, by plain torch and transformers.

Nothing here asks the tool how labels come about: the tests hold its answer against this.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_doctor.engine.registry import find_rules
from lora_doctor.engine.settings import Data, Settings
from lora_doctor.errors import EvidenceError
from lora_doctor.evidence.supervision import gather
from lora_doctor.recipe.recipe import Recipe, make_recipe
from lora_doctor.results.supervision import Supervision

IGNORED = -100


def _masks_are_known() -> bool:
    """Whether the installed transformers marks the assistant's tokens."""
    from transformers import PreTrainedTokenizerBase

    known = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return "return_assistant_tokens_mask" in known


needs_masks = pytest.mark.skipif(
    not _masks_are_known(), reason="this transformers has no return_assistant_tokens_mask"
)
Labelled = tuple[Sequence[int], Sequence[int]]


def look(
    folder: Path, file: Path, recipe: Mapping[str, Any] | None = None, **data: Any
) -> Supervision:
    """The evidence that ``check MODEL --data FILE`` has, gathered in this process."""
    source = {"kind": "folder", "name": str(folder), "folder": str(folder),
              "trust_remote_code": False}  # fmt: skip
    given = {"file": str(file), "rows": 64, "evaluation": None, "samples": "people", **data}
    return Supervision.from_json(gather(source, _recipe(recipe).to_json(), data=given))


def codes(found: Supervision, recipe: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Rules on data that find something, each with its severity."""
    settings = Settings(data=Data(Path("rows.jsonl"), None, 64, "people"))
    case: Any = _Case(supervision=found, recipe=_recipe(recipe), settings=settings)
    severities = {}
    for rule in find_rules():
        if rule.code.startswith("LD9"):
            with contextlib.suppress(EvidenceError):  # a rule about what a dry run saw is skipped
                severities |= {one.rule: one.severity for one in rule().check(case)}
    return severities


class _Case(SimpleNamespace):
    """A case of rows alone: no command was run."""

    @property
    def dry_run(self) -> Any:
        raise EvidenceError("no command was run")

    def has(self, name: str) -> bool:
        return name == "supervision"

    def __getattr__(self, name: str) -> Any:
        raise EvidenceError(f"rows alone: there is no {name}")


def _recipe(recipe: Mapping[str, Any] | None) -> Recipe:
    return make_recipe(dict(recipe or {}), where="test", origin="option")


@cache
def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def new_model(folder: Path) -> Any:
    """The folder's model with random weights, always the same."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(AutoConfig.from_pretrained(folder))


def train(folder: Path, rows: Sequence[Labelled], steps: int = 60) -> Any:
    """A model that has learned these rows by heart: all weights are trained, because that takes
    a second, and a label that is ignored is ignored for an adapter just the same."""
    import torch

    model = new_model(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        ids, labels = rows[step % len(rows)]
        loss(model, ids, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def loss(model: Any, ids: Sequence[int], labels: Sequence[int]) -> Any:
    """The loss that the model itself takes on one row."""
    import torch

    return model(input_ids=torch.tensor([list(ids)]), labels=torch.tensor([list(labels)])).loss


def generate(model: Any, prompt: Sequence[int], stops: Sequence[int], most: int = 40) -> list[int]:
    """What the model writes greedily behind the prompt, until one of ``stops`` or ``most``."""
    import torch

    written = model.generate(
        input_ids=torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=most, do_sample=False, eos_token_id=list(stops), pad_token_id=0,
    )  # fmt: skip
    return [int(one) for one in written[0][len(prompt) :]]


def masked_before(ids: Sequence[int], start: int) -> list[int]:
    """Labels of an answer that begins at ``start``."""
    return [IGNORED] * start + list(ids[start:])


def conversation(folder: Path, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Token ids of the whole row, and of its prompt with the generation prompt."""
    tokenizer = tokenizer_of(folder)
    turns = row["messages"]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    return ids, tokenizer(prompt, add_special_tokens=False)["input_ids"]


def probability(model: Any, before: int, token: int) -> float:
    """How likely the model takes ``token`` behind ``before`` alone."""
    import torch

    logits = model(input_ids=torch.tensor([[before]])).logits[0, -1]
    return float(logits.softmax(-1)[token])
