"""Numbers that must agree between the parts of a model, read from errors about shapes."""

from __future__ import annotations

import re
from typing import Any

from lora_doctor.nn.embeddings import input_embeddings
from lora_doctor.tiny_model.batch.features import feature_width
from lora_doctor.tiny_model.config_roles import Node, flat_ints, role_of

_WIDTHS_DIFFER = re.compile(
    "features.*do not match|same number of (elements|tokens)|shape mismatch|elements of source"
    r"|shape '\[-1, \d+\]' is invalid for input"
)


def tie_stages(root: Node, text: str) -> dict[str, Any]:
    """The width of one stage of a tower, set to the output width of the stage before it, where the
    two are joined: "Expected size 128 but got size 224 for tensor number 1 in the list"."""
    match = re.search(r"Expected size (\d+) but got size (\d+) for tensor number", text)
    if match is None:
        return {}
    given, width = int(match[1]), int(match[2])
    towers = [n for n in root.walk() if re.search(r"vision|visual|image|audio|speech", n.path)]
    is_output = any(
        given in flat_ints(value) and role_of(key, value) in ("width", "channels")
        for node in towers
        for key, value in node.values.items()
    )
    named = ("hidden_size", "embed_dim", "d_model")
    found = [n.where(k) for n in towers for k in named if n.values.get(k) == width]
    return {found[0]: given} if is_output and len(found) == 1 else {}


def tie_channels(root: Node, text: str) -> dict[str, Any]:
    """The channels that a head takes, named so and not those of the backbone that the config has
    by default (UperNet's `auxiliary_in_channels` are a Swin's, its backbone is a ResNet):
    "weight of size [32, 192, 3, 3], expected input to have 192 channels, but got 512 channels"."""
    pattern = r"weight of size \[\d+, (\d+),.* to have \1 channels, but got (\d+) channels"
    match = re.search(pattern, text)
    if match is None:
        return {}
    found = [
        node.where(key)
        for node in root.walk()
        for key, value in node.values.items()
        if key.endswith("_in_channels") and value == int(match[1])
    ]
    return {where: int(match[2]) for where in found}


def tie_inputs(root: Node, text: str) -> dict[str, Any]:
    """The numbers that a layer takes, written down at the large size of an image: "mat1 and mat2
    shapes cannot be multiplied (2x64 and 3136x32)"."""
    match = re.search(r"cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)", text)
    if match is None:
        return {}
    given, taken = int(match[1]), int(match[2])
    found = [
        node.where(key)
        for node in root.walk()
        for key, value in node.values.items()
        if value == taken and re.search(r"(^|_)in(put)?_(size|dim|features)$", key)
    ]
    return {found[0]: given} if len(found) == 1 else {}


def tie_backbone(root: Node, text: str) -> dict[str, Any]:
    """The width that a head counts on, set to its backbone's own where the default configs of the
    two differ by what the error says (ViTMatte's): "to have 480 channels, but got 512"."""
    match = re.search(r"to have (\d+) channels, but got (\d+) channels", text)
    if match is None:
        return {}
    missing = int(match[2]) - int(match[1])
    return {
        node.where("hidden_size"): child.values["hidden_size"]
        for node in root.walk()
        for child in node.children
        if "backbone" in child.path
        and type(node.values.get("hidden_size")) is int
        and type(child.values.get("hidden_size")) is int
        and child.values["hidden_size"] - node.values["hidden_size"] == missing
    }


def tie_vocabularies(root: Node, text: str) -> dict[str, Any]:
    """A head with another vocabulary than the loss counts in ("shape '[-1, 552]' is invalid for
    input of size 34304", which is 64 times 536): the one that the loss counts in."""
    match = re.search(r"shape '\[-1, (\d+)\]' is invalid for input of size (\d+)", text)
    if not match:
        return {}
    wanted, size = int(match[1]), int(match[2])
    sizes = {n.where("vocab_size"): n.values.get("vocab_size") for n in root.walk()}
    if wanted not in sizes.values():
        return {}
    return {
        where: wanted
        for where, vocab in sizes.items()
        if isinstance(vocab, int) and vocab not in (0, wanted) and size % vocab == 0
    }


def tie_towers(root: Node, model: Any, text: str) -> dict[str, Any]:
    """The width of the features of a tower, set to the width of the text embeddings, where an
    error says that they differ."""
    weight = getattr(input_embeddings(model), "weight", None)
    if weight is None or not _WIDTHS_DIFFER.search(text):
        return {}
    text_width = int(weight.shape[-1])
    for modality, words in (("image", r"vision|visual|image"), ("audio", r"audio|speech")):
        width = feature_width(model, modality)
        if width and width != text_width:
            # The tower's own config says how wide it is, else the one around it (Ovis2's table).
            nodes = [node for node in root.walk() if re.search(words, node.path)]
            for node in [*nodes, root]:
                keys = _output_widths(node, width)
                if keys:
                    return {node.where(key): text_width for key in keys}
    return {}


def _output_widths(node: Node, width: int) -> list[str]:
    """Entries of a config that are as wide as the features of its tower; where some are named as
    those of the output, only these."""
    keys = [k for k, v in node.values.items() if v == width and role_of(k, v) == "width"]
    return [k for k in keys if re.search(r"out|proj", k)] or keys
