"""A tower that the config leaves out is not looked for."""

from __future__ import annotations

import pytest


def test_a_tower_that_the_config_leaves_out_costs_no_attempts():
    """Gemma 4's default config has no vision: thirteen other sizes were tried in vain, for three
    seconds in each task."""
    transformers = pytest.importorskip("transformers")
    config_class = getattr(transformers, "Gemma4Config", None)
    if config_class is None:
        pytest.skip("this transformers has no Gemma 4")
    from lora_doctor.tiny_model.shrink.shrink import shrink

    shrunk = shrink(config_class(), transformers.Gemma4ForConditionalGeneration)
    assert shrunk.attempts == 1
    assert shrunk.batch.modality == ["text"]
    assert "image" in shrunk.batch.left_out


def test_a_part_that_is_there_is_no_absent_tower():
    """What a forward says of a tower that exists is a matter of sizes, and has to be tried."""
    transformers = pytest.importorskip("transformers")
    from lora_doctor.tiny_model.shrink.absent_parts import all_absent

    config = transformers.LlavaConfig()
    model = type("Model", (), {"modules": lambda self: [self], "vision_tower": None})()
    said = "TypeError: 'NoneType' object is not callable at `out = self.vision_tower(`"
    assert not all_absent(model, config, [said])
    config.vision_config = None
    assert all_absent(model, config, [said])
    assert not all_absent(model, config, [said, "RuntimeError: shapes cannot be multiplied"])
    assert not all_absent(model, config, [])
