"""Which part of a composite config a class is built from.

An auto class may list a composite config for a class that takes its text part: Llama 4's for
`Llama4ForCausalLM`. `from_pretrained` then takes the part, and so does everything here.
"""

from __future__ import annotations

import copy
from typing import Any

from lora_doctor.errors import EvidenceError


def part_for(model_class: type, config: Any) -> Any:
    """The config that `from_pretrained` builds the class from: this one or its text part.

    Raises:
        EvidenceError: the class takes a part that transformers does not look for.
    """
    wanted: Any = getattr(model_class, "config_class", None)
    if not isinstance(wanted, type) or isinstance(config, wanted):
        return config
    parts = {key: value for key, value in vars(config).items() if isinstance(value, wanted)}
    if "text_config" in parts:
        part: Any = copy.deepcopy(parts["text_config"])
        quantization = getattr(config, "quantization_config", None)
        if quantization is not None:
            part.quantization_config = quantization
        return part
    if parts:
        key, name = next(iter(parts)), type(config).__name__
        raise EvidenceError(
            f"{model_class.__name__} takes a {wanted.__name__}, and transformers hands it the "
            f"whole {name} instead of its part `{key}`: no {name} can be loaded this way; train "
            f"the class of the whole, or its `.{key}`"
        )
    return config
