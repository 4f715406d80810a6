"""What to try next when construction or forward objects to a shrunken config."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from lora_doctor.nn.embeddings import input_embeddings
from lora_doctor.tiny_model.config_roles import Node, flat_ints, role_of, spread, tree
from lora_doctor.tiny_model.shrink.build import TooBig
from lora_doctor.tiny_model.shrink.sections import asked_sections, ids_of_code
from lora_doctor.tiny_model.shrink.sizes import Changes, Sizes
from lora_doctor.tiny_model.shrink.widths import agreed_widths, asked_rows

_ROLES_TO_RESTORE = (
    "image",
    "rotary",
    "head_dim",
    "channels",
    "kv_heads",
    "heads",
    "positions",
    "state",
    "ids",
    "depth",
    "window",
)


def relax(sizes: Sizes, objection: str, changes: Changes) -> list[Sizes]:
    """What to try next: entries that the objection names, a larger image, then role by role."""
    options = []
    changed = {
        change.key.rpartition(".")[2] for items in changes.by_role.values() for change in items
    }
    named = frozenset(key for key in changed if re.search(rf"\b{re.escape(key)}\b", objection))
    named -= {"vocab_size", "hidden_size"}
    if named - sizes.keep_keys:
        why = f"named in the objection, kept: {', '.join(sorted(named))} ({objection})"
        options.append(replace(sizes, keep_keys=sizes.keep_keys | named, why=why, step="named"))
    # One role at a time, from the first attempt only: failures stay independent. Where that one
    # was too big, the one with smaller widths is the first.
    if sizes.step not in ("first", "smaller"):
        return options
    if changes.multiples:
        why = f"numbers of layers in proportion ({objection})"
        options.append(replace(sizes, in_proportion=True, why=why, step="other"))
    for grid in (8, 12, 16):
        if grid > sizes.grid and any("image" in k for k in changed):
            why = f"{grid} patches per side ({objection})"
            options.append(replace(sizes, grid=grid, why=why, step="other"))
            break
    if sizes.base > 32 and re.search(r"shape|[Ss]ize|divisible|multiple of", objection):
        # widths that the code rounds up or divides: numbers with more twos in them
        why = f"larger widths ({objection})"
        options.append(replace(sizes, base=128, why=why, step="other"))
    parts = re.search(r"cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)", objection)
    if sizes.base > 32 and parts and int(parts[1]) % 3 == 0 < int(parts[2]) % 3:
        # six parts of one width (LiLT's boxes): numbers with a three in them
        why = f"repaired: widths of thirds ({objection})"
        options.insert(0, replace(sizes, base=96, why=why, step="repaired"))
    options.append(replace(sizes, min_depth=4, why=f"four layers ({objection})", step="other"))
    for role in _ROLES_TO_RESTORE:
        if role in changes.by_role or (role == "depth" and "layers" in changes.by_role):
            why = f"{role} left as they were ({objection})"
            kept = {role, "kv_heads"} if role == "heads" else {role}  # groups of as many heads
            options.append(replace(sizes, keep_roles=frozenset(kept), why=why, step="other"))
    return options


def relax_too_big(sizes: Sizes, error: TooBig, config: Any) -> list[Sizes]:
    """Smaller widths; then the entries whose numbers stand in the largest parameter's shape."""
    if sizes.base > 32:
        return [replace(sizes, base=32, why=f"smaller widths ({error})", step="smaller")]
    overrides = dict(sizes.overrides)
    for node in tree(config).walk():
        for key, value in node.values.items():
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            role = role_of(key, value)
            if role in ("vocab", "ids", "heads", "kv_heads", "depth") or value < 4:
                continue
            # a width itself or, where each stage doubles it, the first of them
            factors = [dim // value for dim in error.shape if dim > 256 and dim % value == 0]
            fits = any(f <= 64 and (value >= 128 or f & (f - 1) == 0) for f in factors)
            if fits and (role == "channels" or value >= 128):
                overrides[node.where(key)] = max(4, value // 8 // 4 * 4)
    entries = tuple(sorted(overrides.items(), key=lambda item: item[0]))
    if entries == sizes.overrides:
        return []
    return [replace(sizes, overrides=entries, why=f"repaired: {error}", step="repaired")]


def repair(sizes: Sizes, model: Any, config: Any, objections: list[str]) -> list[Sizes]:
    """Entries that do not fit each other, read from the objections and from the model."""
    root = tree(config)
    overrides: dict[str, Any] = {}
    # The first was said before other layouts were guessed, whose sizes mean nothing.
    overrides.update(agreed_widths(root, objections[0] if objections else ""))
    for text in objections[:1] if overrides else objections:
        overrides.update(_rope_sections(root, text))
        overrides.update(asked_sections(root, text))
        overrides.update(_missing_entries(root, text))
        overrides.update(_empty_entries(root, text))
        overrides.update(_asked_flags(root, text))
        overrides.update(_position_factors(root, text))
        overrides.update(_unchosen(root, text))
        overrides.update(_tie_vocabularies(root, text))
        overrides.update(_tie_stages(root, text))
        overrides.update(_tie_channels(root, text))
        overrides.update(_tie_inputs(root, text))
        overrides.update(_tie_backbone(root, text))
        overrides.update(asked_rows(root, text))
        if model is not None:
            overrides.update(ids_of_code(root, model, text))
        if model is not None and _WIDTHS_DIFFER.search(text):
            overrides.update(_tie_towers(root, model))
    known = dict(sizes.overrides)
    fresh = {where: value for where, value in overrides.items() if known.get(where) != value}
    if not fresh:
        return []
    entries = tuple(sorted({**known, **fresh}.items(), key=lambda item: item[0]))
    why = f"repaired: {'; '.join(objections)[:300]}"
    return [replace(sizes, overrides=entries, why=why, step="repaired")]


_WIDTHS_DIFFER = re.compile(
    "features.*do not match|same number of (elements|tokens)|shape mismatch|elements of source"
    r"|shape '\[-1, \d+\]' is invalid for input"
)


def _tie_stages(root: Node, text: str) -> dict[str, Any]:
    """The width of one stage of a tower, set to what the stage before it puts out, where the two
    are joined: "Expected size 128 but got size 224 for tensor number 1 in the list"."""
    match = re.search(r"Expected size (\d+) but got size (\d+) for tensor number", text)
    if match is None:
        return {}
    given, width = int(match[1]), int(match[2])
    towers = [n for n in root.walk() if re.search(r"vision|visual|image|audio|speech", n.path)]
    puts_out = any(
        given in flat_ints(value) and role_of(key, value) in ("width", "channels")
        for node in towers
        for key, value in node.values.items()
    )
    named = ("hidden_size", "embed_dim", "d_model")
    found = [n.where(k) for n in towers for k in named if n.values.get(k) == width]
    return {found[0]: given} if puts_out and len(found) == 1 else {}


def _tie_channels(root: Node, text: str) -> dict[str, Any]:
    """The channels that a head takes, named so and not those of the backbone that the config has
    by default (UperNet's `auxiliary_in_channels` are a Swin's, its backbone is a ResNet):
    "weight of size [32, 192, 3, 3], expected input to have 192 channels, but got 512 channels"."""
    said = r"weight of size \[\d+, (\d+),.* to have \1 channels, but got (\d+) channels"
    match = re.search(said, text)
    if match is None:
        return {}
    found = [
        node.where(key)
        for node in root.walk()
        for key, value in node.values.items()
        if key.endswith("_in_channels") and value == int(match[1])
    ]
    return {where: int(match[2]) for where in found}


def _tie_inputs(root: Node, text: str) -> dict[str, Any]:
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


def _tie_backbone(root: Node, text: str) -> dict[str, Any]:
    """The width that a head counts on, set to its backbone's own where the default configs of the
    two differ by what the objection says (ViTMatte's): "to have 480 channels, but got 512"."""
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


def _rope_sections(root: Node, text: str) -> dict[str, Any]:
    """Sections that stand in the code, not in the config, written into it at the right sum."""
    match = re.search(r"sum exactly to (\d+) .*?split_sizes=\[([\d, ]+)\]", text)
    if not match:
        return {}
    total, parts = int(match[1]), [int(n) for n in match[2].split(",")]
    found: dict[str, Any] = {}
    if len(parts) > 3 and parts[: len(parts) // 2] == parts[len(parts) // 2 :]:
        parts, total = parts[: len(parts) // 2], total // 2  # the code doubles the list
    for node in root.walk():
        if re.search(r"vision|visual|audio", node.path) or "num_attention_heads" not in node.values:
            continue
        for key in ("rope_parameters", "rope_scaling"):
            rope = node.values.get(key)
            if isinstance(rope, dict) or (rope is None and key == "rope_parameters"):
                found[node.where(key)] = {**(rope or {}), "mrope_section": spread(total, parts)}
    return found


def _missing_entries(root: Node, text: str) -> dict[str, Any]:
    """`'XConfig' object has no attribute 'pad_token_id'`: taken from a sub-config, or 0."""
    found: dict[str, Any] = {}
    for class_name, key in re.findall(r"'(\w+)' object has no attribute '(\w+)'", text):
        for node in root.walk():
            if type(node.holder).__name__ == class_name and key not in node.values:
                known = [n.values[key] for n in root.walk() if n.values.get(key) is not None]
                if key == "rope_theta":
                    known.append(10000.0)
                if known or role_of(key, 0) == "ids":
                    found[node.where(key)] = known[0] if known else 0
    return found


def _empty_entries(root: Node, text: str) -> dict[str, Any]:
    """Entries left None that the code computes with, and rotary settings that are not there."""
    found: dict[str, Any] = {}
    layer_type = re.search(r"KeyError: '(\w+_attention)'", text)
    rope_gap = re.search(r"KeyError: '(rope_type|rope_theta|full_attention)'", text)
    default = {"rope_type": "default", "rope_theta": 10000.0}
    for node in root.walk():
        values = node.values
        if not all(isinstance(values.get(k), int) for k in ("hidden_size", "num_attention_heads")):
            continue
        heads = values["num_attention_heads"]
        if re.search(r"NoneType|positional argument|not be None", text):
            for key, value in values.items():
                if value is None:
                    small = filling(key, values, text)
                    if small is not None:
                        found[node.where(key)] = small
        asks = "rope_scaling[" in text or "rope_scaling.get(" in text
        if asks and values.get("rope_scaling", 0) is None:
            rope: dict[str, Any] = {"rope_type": "default"}
            if "mrope_section" in text:  # a quarter for time, the rest for height and width
                half = (values.get("head_dim") or values["hidden_size"] // heads) // 2
                rope["mrope_section"] = spread(half, [2, 3, 3])
            found[node.where("rope_scaling")] = rope
        for key in re.findall(r"`?(\w*window\w*)`?[^.]*(?:not set|is None)", text):
            if values.get(key) is None and values.get("layer_types"):
                found[node.where(key)] = 16
        if not values.get("rope_parameters") and "rope_parameters" in values:
            if layer_type:
                kinds = sorted(set(values.get("layer_types") or [layer_type[1]]))
                found[node.where("rope_parameters")] = {kind: dict(default) for kind in kinds}
            elif rope_gap or "NoneType" in text:
                found[node.where("rope_parameters")] = dict(default)
    return found


def filling(key: str, values: dict[str, Any], text: str) -> Any:
    """A small value for an entry that is None, by its role; None where no guess is sound."""
    heads, layers = values["num_attention_heads"], values.get("num_hidden_layers", 0)
    role = role_of(key, 0)
    if role == "head_dim":
        return values.get("head_dim") or values["hidden_size"] // heads
    if role in ("heads", "kv_heads"):
        return heads
    if role == "experts":
        return 4
    if key == "vocab_size":
        return 512
    if key == "pad_token_id":
        return 0
    if role == "topk":
        return 2
    if "shared_expert" in key:
        return 1
    if role == "width" and "intermediate" in key:
        return values.get("intermediate_size")
    if key == "layer_types":
        return ["full_attention"] * layers
    if key == "mlp_layer_types":
        return ["dense", *["sparse"] * (layers - 1)]
    if key.startswith("clip") and "clamp" in text:
        return 8.0
    return None


def _asked_flags(root: Node, text: str) -> dict[str, Any]:
    """Switches that the objection asks for ("make sure that `is_decoder=True`"), and those that
    turn on what it says is not there ("Fast Mamba kernels are not available")."""
    found: dict[str, Any] = {}
    if re.search(r"not available|not installed", text):
        for node in root.walk():
            for key, value in node.values.items():
                words = key.removeprefix("use_").split("_") if key.startswith("use_") else []
                if value is True and words and all(re.search(rf"(?i)\b{w}", text) for w in words):
                    found[node.where(key)] = False
    for key, asked in re.findall(r"\b(\w+)\s?=\s?(True|False)\b", text):
        for node in root.walk():
            value = node.values.get(key)
            if isinstance(value, bool) and value is not (asked == "True"):
                found[node.where(key)] = asked == "True"
    return found


def _position_factors(root: Node, text: str) -> dict[str, Any]:
    """Factors of position embeddings that must multiply to the length of the batch."""
    match = re.search(r"factors: \((\d+), (\d+)\) .*sequence_length: (\d+)", text)
    if not match:
        return {}
    old, length = [int(match[1]), int(match[2])], int(match[3])
    return {
        node.where(key): type(value)([4, length // 4])
        for node in root.walk()
        for key, value in node.values.items()
        if isinstance(value, (list, tuple)) and list(value) == old
    }


def _tie_vocabularies(root: Node, text: str) -> dict[str, Any]:
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


def _unchosen(root: Node, text: str) -> dict[str, Any]:
    """A default that the objection names and nobody chose, of several that the config lists:
    `default_language` is the first of `languages`."""
    found: dict[str, Any] = {}
    for node in root.walk():
        for key, value in node.values.items():
            listed = node.values.get(f"{key.removeprefix('default_')}s")
            if value is None and key in text and isinstance(listed, (list, tuple)) and listed:
                found[node.where(key)] = listed[0]
    return found


def _tie_towers(root: Node, model: Any) -> dict[str, Any]:
    """The width that a tower gives out, set to the width of the text embeddings."""
    from lora_doctor.tiny_model.batch.features import feature_width

    weight = getattr(input_embeddings(model), "weight", None)
    if weight is None:
        return {}
    text = int(weight.shape[-1])
    for kind, words in (("image", r"vision|visual|image"), ("audio", r"audio|speech")):
        width = feature_width(model, kind)
        if not width or width == text:
            continue
        # The tower's own config says how wide it is, else the one around it (Ovis2's table).
        nodes = [node for node in root.walk() if re.search(words, node.path)]
        for node in [*nodes, root]:
            keys = [k for k, v in node.values.items() if v == width and role_of(k, v) == "width"]
            out = [k for k in keys if re.search(r"out|proj", k)] or keys
            if out:
                return {node.where(key): text for key in out}
    return {}
