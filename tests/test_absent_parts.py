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
    from lora_doctor.tiny_model.model_error import ModelError
    from lora_doctor.tiny_model.shrink.absent_parts import all_absent

    config = transformers.LlavaConfig()
    model = type("Model", (), {"modules": lambda self: [self], "vision_tower": None})()
    said = ModelError(
        "TypeError", "'NoneType' object is not callable", line="out = self.vision_tower("
    )
    assert not all_absent(model, config, [said])
    config.vision_config = None
    assert all_absent(model, config, [said])
    assert not all_absent(
        model, config, [said, ModelError("RuntimeError", "shapes cannot be multiplied")]
    )
    assert not all_absent(model, config, [])


def test_what_is_said_to_people_is_not_read():
    """The sentence around an exception may be worded anew, and decides nothing."""
    transformers = pytest.importorskip("transformers")
    from lora_doctor.tiny_model.config_roles import tree
    from lora_doctor.tiny_model.model_error import ModelError
    from lora_doctor.tiny_model.shrink.absent_parts import all_absent
    from lora_doctor.tiny_model.shrink.empty_entries import empty_entries

    config = transformers.LlamaConfig()
    config.rope_scaling = None
    error = ModelError("TypeError", "'NoneType' object is not subscriptable", "rope_scaling['x']")
    assert empty_entries(tree(config), error)
    told = "TypeError: 'NoneType' object is not callable at `rope_scaling[self.vision_tower(`"
    assert not empty_entries(tree(config), ModelError(told=told))
    model = type("Model", (), {"modules": lambda self: [self], "vision_tower": None})()
    assert not all_absent(model, config, [ModelError(told=told)])


def test_the_line_of_the_models_code_stands_beside_a_message_that_names_nothing(tmp_path):
    from lora_doctor.tiny_model.model_error import ModelError

    code = tmp_path / "modeling_x.py"
    code.write_text("def forward(self):\n    return self.vision_tower(1)\n")
    space = {}
    exec(compile(code.read_text(), str(code), "exec"), space)
    try:
        space["forward"](type("Model", (), {"vision_tower": None})())
    except TypeError as raised:
        error = ModelError.of(raised, "X.forward: {}")
    assert (error.kind, error.line) == ("TypeError", "return self.vision_tower(1)")
    assert error.message == "'NoneType' object is not callable"
    assert error.told == (
        "X.forward: TypeError: 'NoneType' object is not callable at `return self.vision_tower(1)`"
    )
