"""What the installed transformers' model files say of sizes, read as text and never imported."""

from __future__ import annotations

import functools
import re

from lora_doctor.static.installed.environment import package_folder

#: The longest modeling file has 400 kB.
_SOURCE_BYTES = 2 << 20


@functools.cache
def modeling_source(model_type: str) -> str:
    """The modeling files of an architecture; empty where the installed release has none.

    A part of a model (`mllama_text_model`) has its class in the folder of the whole (`mllama`).
    """
    folder = package_folder("transformers")
    name = model_type.replace("-", "_").replace(".", "_")
    if folder is None or not re.fullmatch(r"\w+", name):
        return ""
    while name:
        files = sorted((folder / "models" / name).glob("modeling_*.py"))
        if files:
            small = [file for file in files if file.stat().st_size <= _SOURCE_BYTES]
            return "\n".join(file.read_text("utf-8", errors="replace") for file in small)
        name = name.rpartition("_")[0]
    return ""


def modeling_sources(model_types: tuple[str, ...]) -> str:
    """The modeling files of several architectures."""
    return "\n".join(filter(None, map(modeling_source, model_types)))


def embeds_its_vocabulary(model_types: tuple[str, ...]) -> bool:
    """Whether the class has an embedding of ``vocab_size`` rows, so that token ids go through it.

    CTC models have a ``vocab_size`` and a tokenizer, and none.
    """
    return bool(
        re.search(r"Embedding\(\s*(?:self\.)?config\.vocab_size\b", modeling_sources(model_types))
    )


def pads_in_its_embedding(model_types: tuple[str, ...]) -> bool:
    """Whether the class hands ``pad_token_id`` to ``nn.Embedding``, which refuses one outside."""
    return bool(
        re.search(
            r"Embedding\(\s*(?:self\.)?config\.vocab_size\s*,[^()]*(?:padding_idx|pad_token_id)",
            modeling_sources(model_types),
        )
    )


def changes_its_vocabulary(model_types: tuple[str, ...]) -> bool:
    """Whether the class computes with ``vocab_size``, so that its rows are another number."""
    # `[0, ..., config.vocab_size - 1]` is how docstrings name the range of a label.
    computed = r"vocab_size\s*[-+*](?!>|\s*1\s*\])|[-+*]\s*config\.\w*vocab_size"
    return bool(re.search(computed, modeling_sources(model_types)))


def counts_its_layers(model_types: tuple[str, ...]) -> bool:
    """Whether the class makes a stack of as many layers as an entry of its config says.

    Not so where it computes with that entry (``decoder_layers - 1``) or multiplies stages. True
    where the installed release has no such class to ask.
    """
    source = modeling_sources(model_types)
    if not source:
        return True
    ranges = re.findall(r"range\(([^\n]*(?:layers?|depth)\b[^\n]*)", source)
    computed = any(re.search(r"(?:layers?|depth)\)?\s*[-+*/]", found) for found in ranges)
    computed |= bool(re.search(r"= config\.\w*layers\s*[-+]\s*\d+\s*$", source, re.MULTILINE))
    return not computed and any(
        re.match(r"(?:0,\s*)?(?:self\.|config\.)\S*(?:layers?|depth)\)", found) for found in ranges
    )
