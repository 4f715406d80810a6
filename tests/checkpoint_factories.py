"""Factories that load the checkpoint of ``tests/folders/base_without_head``, which the language
model of it has whole and a classifier has no head of."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

#: Removed when the process ends.
_PLACE = tempfile.TemporaryDirectory(prefix="lora-doctor-tests-")
_FOLDER = Path(__file__).parent / "folders" / "base_without_head"


@cache
def folder() -> str:
    """A checkpoint with weights; made in each process, always the same."""
    import torch
    import transformers

    place = _PLACE.name
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.AutoConfig.from_pretrained(str(_FOLDER))
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(place)
    return place


def classifier() -> Any:
    import transformers

    return transformers.AutoModelForSequenceClassification.from_pretrained(folder(), num_labels=3)


def language_model() -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder())


def seeded_classifier() -> Any:
    """Its head is drawn from a seed: the same after every loading."""
    import torch

    torch.manual_seed(0)
    return classifier()


def with_a_head_of_its_own() -> Any:
    """The head comes from somewhere else, as from a file of the user's."""
    import torch

    model = classifier()
    with torch.no_grad():
        values = torch.linspace(-1, 1, model.score.weight.numel())
        model.score.weight.copy_(values.reshape(model.score.weight.shape))
    return model


def from_its_config() -> Any:
    """Names the checkpoint and does not load it."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder(), num_labels=3)
    return transformers.AutoModelForSequenceClassification.from_config(config)


def detector() -> Any:
    """A module of one's own around a loaded model."""
    import torch

    class Detector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = language_model()
            self.config = self.model.config
            self.head = torch.nn.Linear(self.config.hidden_size, 4)

        def forward(self, input_ids: Any) -> Any:
            states = self.model(input_ids, output_hidden_states=True).hidden_states[-1]
            return self.head(states).pow(2).mean()

    return Detector()
