"""What the numbers of a transformers config mean, and which small numbers stand for them.

A config is a tree: a `PretrainedConfig` with sub-configs (objects or plain dicts). Every integer
in it has a *role* that its name tells (width, heads, vocabulary, ...), never the model type.
Numbers of one role that are equal before are equal after, numbers that differ stay different, and
products (`heads * head_dim == hidden_size`) hold again: that keeps towers tied to each other
without a table of architectures.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lora_doctor.tiny_model.per_layer import overrides_of

# Order matters: the first pattern that matches a key gives its role.
_ROLES: tuple[tuple[str, str], ...] = (
    ("keep", r"type_vocab_size|chunk_size_feed_forward|num_labels|pretraining_tp|_kernel_|kernel_"),
    # numbers in one flattened patch: they follow from the patch size, which is kept
    ("keep", r"^(video_)?patch_dim$|multiple_of$"),
    ("keep", r"(^|_)(pos|pos_emb|position|positions|grid)_(height|width)$"),
    ("chunk", r"chunk_(size|len|length)$"),
    ("keep", r"^(torch_dtype|dtype|transformers_version|id2label|label2id|max_length|min_length)$"),
    ("compression", r"compress\w*_(rate|ratio)s?$"),
    ("drop", r"layer_?drop|drop_?path|stochastic_depth|survival_prob"),
    ("ids", r"_token_ids?$|_token_index$|_token_idx$|_index_token$|_token_indices$"),
    ("ids", r"^(pad|bos|eos|sep|mask|unk|cls|image|audio|video)_(index|idx|id)$|suppress_tokens$"),
    ("ids", r"^(image|video|audio|vision|img)_\w*_id$|^(boi|eoi|boa|eoa|bov|eov)_\w*(id|index)$"),
    ("vocab", r"vocab_size|vocab_offset|_vocab$|codebook_size$|^num_embeddings$|^n_words$"),
    ("threshold", r"^(first_k_dense_replace|num_dense_layers|n_dense_layers|max_window_layers)$"),
    ("threshold", r"^num_kv_shared_layers$|^first_n_dense|^moe_layer_start_index$|_start_layer$"),
    ("period", r"(_period|_freq|_frequency|_interval|_sparse_step|_layer_step|_pattern)$"),
    ("period", r"every_n|_every_.*layers$|^attn_res_block|layers_per_\w*block$"),
    ("offset", r"_layer_offset$"),
    ("feature_layer", r"feature_layers?$|select_layer$"),
    ("layer_index", r"(layers?|block|attn|deepstack|sparse)\w*_(ind(ex|ices|exes)|idxs?|ids)$"),
    ("layer_index", r"^(mlp_only|cross_attention|moe|global_attn|no_rope|full_attn|nope)_layers?$"),
    ("layer_index", r"(_indexes|_idxs|layer_ids|_layers)$|(^|_)out_indices$"),
    ("experts", r"^(moe_)?(num|n)_(local_|routed_|moe_)?experts$|^num_ffn_experts$|^moe_experts$"),
    ("experts", r"num_(local_|routed_)?experts$|expert_num$"),
    ("topk", r"experts_per_tok(en)?$|^moe_(top_?k|k)$|^(router_)?top_?k(_experts)?$|^topk$"),
    ("topk", r"^moe_router_topk$|^num_selected_experts$|^n_activated_experts$|_experts_top_?k$"),
    ("expert_groups", r"^(n_group|num_expert_groups?|moe_num_groups)$"),
    ("expert_topgroups", r"^(topk_group|topk_groups|limited_groups)$"),
    ("rotary", r"^rotary_dim$|^rotary_ndims$|^rope_dim$"),
    ("kv_heads", r"(key_value|kv)_heads?$|head_kv$|multi_query_group_num$|key_heads$|kv_n_heads$"),
    ("kv_heads", r"(^|_)(n_groups|ngroups)$|num_(key_value|query)_groups$"),
    (
        "head_dim",
        r"head_dim$|^d_kv$|d_head$|dim_head$|kv_channels$|_head_size$|^head_size$|headdim$",
    ),
    ("head_dim", r"dim_per_head$|head_width$|^head_feature_size$"),
    ("heads", r"(^|_)(n_|num_)?\w*heads?$"),
    (
        "positions",
        r"max_\w*position|position_embeddings$|^n_positions$|^n_ctx$|max_seq_len|^seq_len",
    ),
    ("positions", r"max_\w*_?(length|len)$|^max_pos_emb$|model_max_length|max_sequence_length"),
    ("window", r"^sliding_windows?(_size)?$|^attention_window$|^local_attention$|window_length$"),
    (
        "image",
        r"^(\w+_)?image_size$|^img_size$|^pretrain_image_size$|^input_resolution$|^resolution$",
    ),
    ("patch", r"^(\w+_)?patch_size$"),
    ("merge", r"merge_size$|^scale_factor$|shuffle_\w+$|pooling_kernel_size$|downsample_ratio$"),
    ("merge", r"^downsample_(factor|rate)$|proj_downsample|^merge_kernel"),
    ("tokens", r"image_seq_len(gth)?$|tokens_per_image$|num_image_tokens$|^num_(image_)?patches$"),
    ("tokens", r"^latent_query_num$|^num_query_tokens$|^num_(object_)?queries$"),
    ("tokens", r"num_position_embeddings$|image_token_num$|num_vision_tokens$|^max_num_patches$"),
    ("mask_span", r"^mask_(time|feature)_length$"),
    ("state", r"^(\w+_)?state_size$|^mamba_d_state$|^ssm_state|time_step_rank|mamba_dt_rank$"),
    (
        "width",
        r"hidden_(size|dim)s?$|d_model$|n_embd$|embed_dims?$|embedding_(size|dim)s?$|emb_dim$",
    ),
    (
        "width",
        r"intermediate|ffn_?(dim|hidden)?|d_ff$|n_inner$|d_inner$|mlp_dim$|inner_dim$|_rank$",
    ),
    ("width", r"proj(ection|ector|ect)?_?(\w+_)?(dim|size|dims)$|lru_width|width$|^dims?$|_width$"),
    ("width", r"(^|_)(conv|tdnn|output|input|in|out|vision|text|audio|latent)_dim$|_out_dims?$"),
    ("width", r"embeds?_hidden|hidden_size|_linear_units$|_units$|^feature_size$|_features$"),
    ("channels", r"channels?(_list)?$|(^|_)chs$|n(um)?_filters$|filter_size|_feature_sizes?$"),
    ("width", r"_(dim|size|dims|sizes)$|upsample_groups$"),
)
_COMPILED = tuple((role, re.compile(pattern)) for role, pattern in _ROLES)
_DEPTH = re.compile(
    r"(^|_)(layers?|depths?|blocks?|block_repeats|numb_of_layers|repeats)$|^(num|n)_\w*(layers?|blocks?)(_\w+)?$"
)
_NOT_DEPTH = re.compile(
    r"shared|window|nextn|dense|upscale|residual|kv|mtp|feature|skip|conv|tdnn|feat_extract|duration"
    r"|predictor|random|postnet|conditioning|sparse|_per_|levels|adapter|mask|target|exit"
)


#: A list with one number for each stage of a tower (SAM 2's Hiera), or for each layer.
_PER_STAGE = re.compile(r"_per_(stage|level|layer)$")


def role_of(key: str, value: Any) -> str:
    """The role of one entry; `value` decides where a name serves for two things.

    "depth" is a number of equal layers (or a list of them, one per stage); "other" is unknown.
    """
    number = isinstance(value, int) and not isinstance(value, bool)
    numbers = is_numbers(value)
    stages = _PER_STAGE.search(key) if numbers else None
    if stages:  # `blocks_per_stage: [1, 2, 7, 2]`: the name of one of them says what they are
        key = key[: stages.start()]
    if stages and _is_depth(key):
        return "depths"
    if _is_depth(key):
        if number and value > 0:
            return "depth"
        if numbers and key.rstrip("s").endswith(
            ("depth", "repeat", "num_block", "num_layer", "layer")
        ):
            # `layers: [3, 4, 6, 3]` counts, `moe_layers: [1, 3, 5]` names layers
            named = re.search(r"(attention|moe|only|rope|source|attn|scaling)_layers$", key)
            return "layer_index" if named else "depths"
    role = _role_of_name(key)
    # `backbone_feature_sizes: [[256, 256], [128, 128]]` are heights and widths
    return "maps" if role == "channels" and are_pairs(value) else role


# The same few names are asked for a thousand times while one config is shrunk.
@functools.lru_cache(maxsize=4096)
def _is_depth(key: str) -> bool:
    return bool(_DEPTH.search(key)) and not _NOT_DEPTH.search(key)


@functools.lru_cache(maxsize=4096)
def _role_of_name(key: str) -> str:
    return next((role for role, pattern in _COMPILED if pattern.search(key)), "other")


def is_numbers(value: Any) -> bool:
    """True for a non-empty flat list or tuple of plain integers."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    )


def are_pairs(value: Any) -> bool:
    """True for a non-empty list of two plain integers each: heights and widths."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(is_numbers(item) and len(item) == 2 for item in value)
    )


def flat_ints(value: Any) -> Iterator[int]:
    """Every integer in a number or (nested) list of numbers."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from flat_ints(item)


def map_ints(value: Any, change: Any) -> Any:
    """`value` with `change` applied to each integer; lists keep their type and shape."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map_ints(item, change) for item in value)
    return value


@dataclass
class Node:
    """One config of the tree: `values` are its entries that are not themselves configs.

    `own_entries`: number of a layer to the entries that it has instead of these.
    """

    path: str
    holder: Any
    values: dict[str, Any]
    children: list[Node] = field(default_factory=list)
    own_entries: dict[int, dict[str, Any]] = field(default_factory=dict)

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def is_table(self) -> bool:
        """Whether it is a dict from kinds to numbers, named for what the numbers are."""
        numbers = [type(value) is int for value in self.values.values()]
        return isinstance(self.holder, dict) and bool(numbers) and all(numbers)

    def where(self, key: str) -> str:
        """The dotted path of one entry."""
        return f"{self.path}.{key}" if self.path else key

    def set(self, key: str, value: Any) -> None:
        """Write one entry into the config behind this node."""
        self.values[key] = value
        if isinstance(self.holder, dict):
            self.holder[key] = value
        else:
            setattr(self.holder, key, value)


# Dicts that hold settings of one thing, not a sub-config with a model inside.
_PLAIN_DICTS = re.compile(
    r"label|rope|task_specific|quantization|attribute_map|pruned|generation|auto_map|^_|kwargs$"
)


def tree(config: Any, path: str = "", seen: set[int] | None = None) -> Node:
    """The tree of `config`. Sub-config objects that occur twice appear once."""
    seen = set() if seen is None else seen
    seen.add(id(config))
    entries = config if isinstance(config, dict) else vars(config)
    node = Node(path, config, {}, own_entries=overrides_of(config))
    for key, value in list(entries.items()):
        if not isinstance(key, str):
            continue
        if key.startswith("_"):
            # `_vocab_size` behind a property `vocab_size` (PaliGemma in 4.44) is an entry, too, and
            # so are a backbone's `_out_indices`.
            public = getattr(type(config), key[1:], None)
            is_entry = type(value) is int or is_numbers(value)
            if isinstance(public, property) and public.fset and is_entry:
                node.values[key[1:]] = value
            continue
        where = f"{path}.{key}" if path else key
        is_config = hasattr(value, "to_dict") and hasattr(value, "model_type")
        is_dict = isinstance(value, dict) and bool(value) and not _PLAIN_DICTS.search(key)
        if is_config or (is_dict and all(isinstance(k, str) for k in value)):
            if id(value) not in seen:
                node.children.append(tree(value, where, seen))
        elif is_blocks(value):
            node.children += _block_nodes(value, where, seen)
        else:
            node.values[key] = value
    return node


def is_blocks(value: Any) -> bool:
    """Whether it describes blocks one by one: a list of dicts, or one of such lists a stage."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    if all(isinstance(item, dict) for item in value):
        return all(isinstance(key, str) for item in value for key in item)
    return all(is_blocks(item) for item in value)


def _block_nodes(blocks: Any, where: str, seen: set[int]) -> list[Node]:
    found: list[Node] = []
    for number, item in enumerate(blocks):
        path = f"{where}.{number}"
        inner = isinstance(item, dict)
        found += [tree(item, path, seen)] if inner else _block_nodes(item, path, seen)
    return found


def width_map(
    root: Node, base: int, roles: tuple[str, ...] = ("width", "channels")
) -> dict[int, int]:
    """Small widths for the widths of the whole tree: original number -> shrunken number.

    `base` (a multiple of 32, units: features) is the smallest. Ratios up to 8 between two widths
    are kept (`intermediate == 4 * hidden`, the stages of a hierarchical vision model), because code
    computes one from the other; all are multiples of 32, so that heads and groups divide them.
    """
    numbers: set[int] = set()
    next_to: set[tuple[int, int]] = set()  # stages: convolutions take the one's as groups
    for node in root.walk():
        for entries in (node.values, *node.own_entries.values()):
            for key, value in entries.items():
                if role_of(key, value) in roles:
                    found = [n for n in flat_ints(value) if n > base // 2]
                    numbers.update(found)
                    next_to.update(itertools.pairwise(found))
    mapping: dict[int, int] = {}
    top, grain = 0, max(32, base // 2)
    for number in sorted(numbers):
        choice = 0
        for other, small in mapping.items():
            factor, rest = divmod(number, other)
            if (
                rest == 0
                and 2 <= factor <= 8
                and small * factor > top
                and small * factor <= (16 if (other, number) in next_to else 8) * base
            ):
                choice = small * factor
                break
        if not choice:
            choice = max(base, (top // grain + 1) * grain)
        if choice >= number:  # nothing to win; keep it, and everything above it larger
            choice = number
        mapping[number] = choice
        top = max(top, choice)
    return mapping


def vocab_map(root: Node, ids: int) -> dict[int, int]:
    """Small vocabularies, all different, with room for `ids` special ids and 256 normal ones.

    None is a multiple of 16, as widths are: PEFT looks for the embeddings of a prompt by the first
    weight that has as many rows as the vocabulary.
    """
    numbers: set[int] = set()
    for node in root.walk():
        for key, value in node.values.items():
            if role_of(key, value) == "vocab":
                numbers.update(n for n in flat_ints(value))
    start = 520 if ids <= 128 else 64 * ((ids + 384) // 64) + 8
    big = sorted(n for n in numbers if n > start)
    small = {number: start + 16 * rank for rank, number in enumerate(big)}
    for number in _codebooks(root) & set(big):  # a code is so many bits
        power = 512
        while power < number and (power in numbers or power in small.values()):
            power *= 2
        small[number] = power
    return small


def _codebooks(root: Node) -> set[int]:
    """Sizes of codebooks that are powers of two."""
    found = [
        n
        for node in root.walk()
        for key, value in node.values.items()
        if key.endswith("codebook_size")
        for n in flat_ints(value)
    ]
    return {n for n in found if n > 0 and n & (n - 1) == 0}


def id_map(root: Node) -> dict[int, int]:
    """New ids for special tokens that would fall outside the small vocabulary: 64, 65, ..."""
    numbers: set[int] = set()
    for node in root.walk():
        for key, value in node.values.items():
            if role_of(key, value) == "ids":
                numbers.update(n for n in flat_ints(value) if n >= 64)
    return {number: 64 + rank for rank, number in enumerate(sorted(numbers))}


def small_heads(heads: int) -> int:
    """4 heads, or the power of two below where the original has fewer."""
    return 4 if heads >= 4 else 2 if heads >= 2 else heads


def small_head_dim(head_dim: int) -> int:
    """An eighth, even, 8 to 32: linear, so that `192 == 128 + 64` holds afterwards."""
    if head_dim <= 8:
        return head_dim
    small = max(8, head_dim // 8)
    return min(32, small + small % 2)


def spread(total: int, parts: list[int]) -> list[int]:
    """Split `total` in the proportions of `parts`, each at least 1 where its part is not 0.

    Equal parts stay equal where that is possible: height and width are rotated side by side.
    """
    whole = sum(parts) or 1
    result = [max(1, total * p // whole) if p else 0 for p in parts]
    for part in sorted(set(parts), key=parts.count, reverse=True):
        if part and sum(result) + parts.count(part) <= total:
            result = [r + (p == part) for r, p in zip(result, parts, strict=True)]
    while sum(result) > total and max(result) > 1:
        result[result.index(max(result))] -= 1
    while sum(result) < total:
        result[result.index(min(r for r, p in zip(result, parts, strict=True) if p))] += 1
    return result
