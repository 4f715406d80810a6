"""Whether the installed PEFT saves resized embeddings unasked; read from its source."""

from __future__ import annotations

import functools

from lora_doctor.static.installed.environment import installed_text, package_folder


@functools.cache
def saves_resized_embeddings() -> bool:
    """Whether saving an adapter compares the vocabulary with the checkpoint's: where they differ,
    PEFT asks the model for its embeddings."""
    folder = package_folder("peft")
    text = installed_text(folder / "utils" / "save_and_load.py") if folder is not None else ""
    return "vocab_size" in text and "get_input_embeddings" in text
