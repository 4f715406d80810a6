"""Default configs of transformers that contradict themselves, set right as a user would.

Runs where transformers is imported.
"""

from __future__ import annotations

from typing import Any


def with_room_for_tokens(config: Any) -> Any:
    """A default config whose special tokens lie outside its own vocabulary cannot be built
    (SmolVLM's padding token): the vocabulary is made large enough, as a user would."""
    parts = [value for value in vars(config).values() if hasattr(value, "to_dict")]
    for part in (config, *parts):
        size = vars(part).get("vocab_size")
        pad = vars(part).get("pad_token_id")
        if isinstance(size, int) and isinstance(pad, int) and pad >= size:
            part.vocab_size = pad + 1
    return config
