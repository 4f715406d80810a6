"""The small models that a dry run puts in the place of the user's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_doctor.dry_run.acts import small_models


def test_the_labels_of_the_user_decide_which_loss_a_head_takes(tmp_path: Path) -> None:
    """Labels of ours were tried on it: left in the config, rows of one 1 among zeros would fail."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_labels=3,
    )  # fmt: skip
    acting: Any = SimpleNamespace(session=SimpleNamespace(models=tmp_path, options={}))
    small = small_models.of(acting, transformers.BertForSequenceClassification, config)
    made = transformers.AutoConfig.from_pretrained(str(small.folder))
    assert made.problem_type is None and made.num_labels == 3
