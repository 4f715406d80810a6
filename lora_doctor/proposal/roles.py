"""Jobs that linear layers do in a transformer: by name and by shape.

Used where a recipe written for one family of models is read on another one. A fused layer does
several jobs: ``qkv_proj`` does query, key and value.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lora_doctor.results.structure import ModuleGroup, Structure

Job = Literal["query", "key", "value", "output", "gate", "up", "down"]

_ATTENTION_IN: frozenset[Job] = frozenset({"query", "key", "value"})
_GATE_UP: frozenset[Job] = frozenset({"gate", "up"})

#: Conventions of naming, not of models. The first that fits a leaf name gives its jobs.
_NAMES: tuple[tuple[str, frozenset[Job]], ...] = (
    (r"q_?k_?v(_proj|_linear)?|query_key_value|w_?qkv|c_attn|qkv_attn|att_?qkv", _ATTENTION_IN),
    (r"kv(_[ab])?(_proj(_with_mqa)?)?|key_value|w_?kv", frozenset({"key", "value"})),
    (r"q(_[ab])?(_proj|_lin|_linear)?|query(_proj)?|w_?q|to_q", frozenset({"query"})),
    (r"k(_proj|_lin|_linear)?|key(_proj)?|w_?k|to_k", frozenset({"key"})),
    (r"v(_proj|_lin|_linear)?|value(_proj)?|w_?v|to_v", frozenset({"value"})),
    (r"o(_proj)?|out_proj|out_lin|attn_out|attention_output|to_out", frozenset({"output"})),
    (r"gate_up(_proj)?|up_gate_proj|w12|wi_fused|gate_and_up_proj", _GATE_UP),
    (r"gate(_proj)?|w1|wi_0|linear_fc1_gate", frozenset({"gate"})),
    (r"up(_proj)?|w3|wi_1|dense_h_to_4h|c_fc|fc1|lin1|fc_in|wi|linear_fc1", frozenset({"up"})),
    (
        r"down(_proj)?|w2|wo|dense_4h_to_h|fc2|lin2|fc_out|linear_fc2",
        frozenset({"down"}),
    ),
    (r"linear_in|wqkv_packed", _ATTENTION_IN),
)  # fmt: skip


def jobs_of_name(name: str) -> frozenset[Job]:
    """Jobs that a target entry asks for, by the last part of its path."""
    path, _, leaf = name.lower().rpartition(".")
    for pattern, jobs in _NAMES:
        if re.fullmatch(pattern, leaf):
            return jobs
    if leaf in ("dense", "c_proj", "proj"):
        inside_mlp = re.search(r"mlp|ffn|feed_forward", path)
        return frozenset({"down"}) if inside_mlp else frozenset({"output"})
    return frozenset()


def jobs_of_group(group: ModuleGroup, structure: Structure) -> frozenset[Job]:
    """Jobs of a layer of this model: its part of the block, its shape, then its name."""
    if group.kind not in ("linear", "conv1d") or len(group.shape) != 2:
        return frozenset()
    out, into = group.shape if group.kind == "linear" else group.shape[::-1]
    named = jobs_of_name(group.leaf)
    if group.role == "attention":
        return _attention_jobs(group, structure, named, out, into)
    if group.role in ("mlp", "experts"):
        return _mlp_jobs(group, structure, named, out, into)
    return frozenset()


def _attention_jobs(
    group: ModuleGroup, structure: Structure, named: frozenset[Job], out: int, into: int
) -> frozenset[Job]:
    if named & {"query", "key", "value"}:
        return named
    siblings = [other for other in _siblings(group, structure) if other is not group]
    elsewhere = {job for other in siblings for job in jobs_of_name(other.leaf)}
    # One wide layer beside an output is the fused input: query + key + value heads.
    if out > into and not elsewhere & _ATTENTION_IN:
        return _ATTENTION_IN
    if named:
        return frozenset({"output"})
    return frozenset({"output"}) if elsewhere & _ATTENTION_IN else frozenset()


def _mlp_jobs(
    group: ModuleGroup, structure: Structure, named: frozenset[Job], out: int, into: int
) -> frozenset[Job]:
    siblings = _siblings(group, structure)
    if named == {"down"} or (out < into and not named & _GATE_UP):
        return frozenset({"down"})
    # Small experts widen on the way back, so a name that says so counts beside the shape.
    narrowing = {
        _in_features(other)
        for other in siblings
        if _narrows(other) or jobs_of_name(other.leaf) == {"down"}
    }
    if any(out == 2 * width for width in narrowing):
        return _GATE_UP
    others = [
        other for other in siblings if other is not group and _in_features(other) not in narrowing
    ]
    if not others and narrowing:
        return _GATE_UP  # the only way in does whatever a recipe calls gate or up
    return named & _GATE_UP or (_GATE_UP if out > into else frozenset())


def _siblings(group: ModuleGroup, structure: Structure) -> list[ModuleGroup]:
    """Layers of the same role in the same block (the pattern up to the last number)."""
    block = group.pattern.rpartition("*.")[0]
    return [
        other
        for other in structure.groups
        if other.role == group.role
        and other.kind in ("linear", "conv1d")
        and other.pattern.rpartition("*.")[0] == block
        and len(other.shape) == 2
    ]


def _in_features(group: ModuleGroup) -> int:
    return group.shape[1] if group.kind == "linear" else group.shape[0]


def _out_features(group: ModuleGroup) -> int:
    return group.shape[0] if group.kind == "linear" else group.shape[1]


def _narrows(group: ModuleGroup) -> bool:
    return _out_features(group) < _in_features(group)
