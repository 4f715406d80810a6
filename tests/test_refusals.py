"""Where PEFT says itself why it refuses a recipe, its message is the answer."""

from __future__ import annotations

import lora_doctor
from lora_doctor.model.built_in_adapters import _joined
from lora_doctor.results.built_in_adapters import AdapterState
from lora_doctor.rules._peft_config import says_why

OWN_REASON = """Traceback (most recent call last):
  File "/opt/venv/lib/python3.11/site-packages/peft/tuners/lora/layer.py", line 433, in pissa_init
    raise TypeError(
TypeError: Please initialize PiSSA under float32, float16, or bfloat16."""
BROKEN_OFF = """Traceback (most recent call last):
  File "/opt/venv/lib/python3.11/site-packages/peft/tuners/lora/layer.py", line 120, in __init__
    self.weight = layer.weight.to(dtype)
                  ^^^^^^^^^^^^^^^
AttributeError: 'NoneType' object has no attribute 'to'"""
ELSEWHERE = """Traceback (most recent call last):
  File "/home/user/model.py", line 12, in forward
    raise ValueError("no")
ValueError: no"""


def test_a_message_that_peft_raises_is_the_reason() -> None:
    assert says_why(OWN_REASON)
    assert not says_why(BROKEN_OFF)
    assert not says_why(ELSEWHERE)
    assert not says_why("")


def test_the_finding_quotes_it_once() -> None:
    recipe = {"target_modules": ["q_proj"], "bias": "weird"}
    diagnosis = lora_doctor.check("arch:llama", recipe, depth="meta")
    assert [finding.rule for finding in diagnosis.findings] == ["LD217"]
    message = diagnosis.findings[0].message
    assert message.startswith("PEFT refuses the settings of this LORA adapter: ")
    assert message.count("weird") == 1


def test_an_adapter_is_active_in_no_more_layers_than_it_sits_in() -> None:
    """The recipe's adapter has the name of the built-in one, and is put on top of it."""
    brought = {"default": AdapterState("default", True, layers=6, tensors=12, parameters=96)}
    wrapped = {
        "default": AdapterState(
            "default", True, layers=12, tensors=24, parameters=192, trainable=24, active=12
        )
    }
    (state,) = _joined(brought, wrapped)
    assert (state.active_wrapped, state.layers) == (12, 12)
    assert (state.trainable_wrapped, state.tensors) == (24, 24)
