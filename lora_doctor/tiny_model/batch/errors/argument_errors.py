"""Errors about arguments: one that is missing, unexpected, not together with another, or None.

Each function changes the draft as the error calls for and says how; an empty text where the error
is not about that.
"""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterable
from typing import Any

from lora_doctor.tiny_model.batch.arguments import can_disable_cache, can_make
from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.errors.raised import Raised
from lora_doctor.tiny_model.batch.values.unknown import can_guess
from lora_doctor.tiny_model.faults_of_code import is_fault_of_code

_MISSING = re.compile(r"missing \d+ required .*?argument")
_REQUIRED = re.compile(
    r"(have to|must|need to|should|please) (be )?"
    r"(specify|provide|pass|given|provided|specified)"
    r"|is required|are required|(cannot|must not|should not) be `?None|is None"
    r"|not provided|No \w+ provided",
    re.IGNORECASE,
)
_LONGEST_STATEMENT = 8  # lines of code


def arguments(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """Arguments that are refused, or required by name."""
    return (
        _unexpected(draft, inputs, raised.text)
        or _one_sample(draft, raised.text)
        or _end_of_sequence(draft, raised.text)
        or _not_both(draft, inputs, raised.text)
        or _no_cache(draft, raised)
        or _required(draft, inputs, raised.text)
    )


def _unexpected(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", text)
    if unexpected is None or unexpected[1] not in inputs:
        return ""
    draft.exclude.add(unexpected[1])
    return f"left out {unexpected[1]}"


def _one_sample(draft: Draft, text: str) -> str:
    """No padding token: a classifier cannot find the last token of a row."""
    if not re.search(r"batch sizes? > 1", text) or draft.batch_size <= 1:
        return ""
    draft.batch_size = 1
    draft.one_sample = text
    return "one sample"


def _end_of_sequence(draft: Draft, text: str) -> str:
    if draft.tokens.last_id:
        return ""
    if not re.search(r"at least one <?eos>? token|index -1 .* size 0$", text):
        return ""
    draft.tokens.last_id = draft.end_of_sequence()
    last_id = draft.tokens.last_id
    return f"token {last_id} (end of sequence) last" if last_id else ""


def _not_both(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    both = re.search(r"both.*?(\w+)`? and `?(\w+)", text)
    if both is None or both[1] not in inputs or both[2] not in inputs:
        return ""
    main = getattr(draft.model, "main_input_name", "")
    out = both[2] if both[1] == main or both[2] != main else both[1]
    draft.exclude.add(out)
    return f"left out {out}"


def _no_cache(draft: Draft, raised: Raised) -> str:
    about_cache = re.search(r"cache|past_key_values", raised.text, re.IGNORECASE)
    if not about_cache or not can_disable_cache(draft):
        return ""
    if is_fault_of_code(raised.exception):
        draft.cache_error = raised.exception
    draft.extra["use_cache"] = False
    return "use_cache=False"


def _required(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    if not (_MISSING.search(text) or _REQUIRED.search(text)):
        return ""
    for name in re.findall(r"\w+", text):
        if name == "input_ids" and name not in draft.parameters:
            name = "decoder_input_ids"  # raised by the decoder behind another tower
        if can_make(draft, name) and not draft.is_decided(name, inputs):
            return _added(draft, name)
    return ""


def none_where_it_is_read(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """An optional argument that the code goes on to use: it stands in the line that raised."""
    if "NoneType" not in str(raised.exception):
        return ""
    for frame in reversed(traceback.extract_tb(raised.exception.__traceback__)):
        name = _optional(draft, inputs, re.findall(r"\w+", frame.line or ""))
        if name:
            return _added(draft, name)
    return ""


def not_made_by_forward(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """An optional argument that forward makes from the others where it is not given, and that it
    could not make (`global_attention_mask = ...`, Longformer's, from three separators)."""
    for frame in traceback.extract_tb(raised.exception.__traceback__):
        if frame.name != "forward" or frame.lineno is None:
            continue
        name = _optional(draft, inputs, _assigned(frame.filename, frame.lineno))
        if name:
            return _added(draft, name)
    return ""


def _assigned(filename: str, last: int) -> list[str]:
    """The name to which the statement that ends in line `last` assigns."""
    for number in range(last, max(0, last - _LONGEST_STATEMENT), -1):
        made = re.match(r"\s*(\w+) = ", linecache.getline(filename, number))
        if made:
            return [made[1]]
    return []


def _optional(draft: Draft, inputs: dict[str, Any], names: Iterable[str]) -> str:
    """The first of the names that is an argument which was left out so far; else empty."""
    for name in names:
        new = name in draft.parameters and not draft.is_decided(name, inputs)
        if new and can_guess(draft, name):
            return name
    return ""


def _added(draft: Draft, name: str) -> str:
    draft.include.add(name)
    return f"added {name}"


def several_choices(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """`logits.view(-1, num_choices)`: each sample is several texts to choose from."""
    if draft.choices or not re.search(r"\bnum_choices\b", raised.line):
        return ""
    draft.choices = 2
    return "two texts per sample to choose from"
