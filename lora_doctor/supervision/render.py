"""Samples of a data file through the tokenizer, as TRL's ``SFTTrainer`` makes rows of them.

The tokenizer is any of transformers; nothing is imported here. A setting of the loss whose mask
these samples cannot have gives the reason instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_doctor.results.supervision import LossOn
from lora_doctor.supervision.observe import common_prefix, find
from lora_doctor.supervision.rows import IGNORED, Row
from lora_doctor.supervision.samples import Sample
from lora_doctor.supervision.tokenizer import template_of
from lora_doctor.text import single_line

NO_MASK = "this transformers has no return_assistant_tokens_mask"
NO_MARKS = "the chat template has no {% generation %} marks"
NO_CONVERSATION = "the rows are not conversations"
NO_PROMPT = "the rows have no separate prompt and completion"


@dataclass(frozen=True)
class Rendering:
    """How samples are made into rows."""

    tokenizer: Any
    #: The end-of-text token is put behind texts that lack it, as TRL does.
    append_eos: bool = True
    max_length: int | None = None
    #: ``keep_start`` or ``keep_end``.
    truncation_mode: str = "keep_start"
    #: What stands between user and answer, as token ids; empty without.
    response_ids: tuple[int, ...] = ()
    #: A template for training in the place of the tokenizer's own.
    chat_template: str | None = None


@dataclass(frozen=True)
class Tokens:
    """A sample as token ids, with every mask that it can have."""

    ids: Sequence[int]
    text: str | None
    prompt_ids: Sequence[int] | None
    masks: Mapping[LossOn, Sequence[bool]]
    given: Sequence[int] | None = None


def tokens_of(sample: Sample, how: Rendering) -> Tokens:
    """The sample through template and tokenizer, not cut yet.

    Raises what the template or the tokenizer raises.
    """
    if sample.kind == "tokens":
        every: dict[LossOn, Sequence[bool]] = {"all": [True] * len(sample.input_ids)}
        return Tokens(sample.input_ids, None, None, every, sample.labels)
    if sample.messages and template_of(how.tokenizer):
        return _conversation(sample, how)
    if sample.messages and not sample.text:
        raise ValueError("a conversation, and the tokenizer has no chat template")
    return _plain(sample, how)


def row_of(tokens: Tokens, sample: Sample, number: int, loss_on: LossOn, how: Rendering) -> Row:
    """The row as the loss gets it: labels by this setting, cut at the limit."""
    if loss_on == "given" and tokens.given is not None:
        labels = list(tokens.given)
    else:
        mask = tokens.masks[loss_on]
        labels = [one if on else IGNORED for one, on in zip(tokens.ids, mask, strict=True)]
    kept = _kept(len(tokens.ids), how)
    return Row(
        list(tokens.ids[kept]),
        labels[kept],
        number,
        uncut_ids=tokens.ids,
        uncut_labels=labels,
        prompt_ids=tokens.prompt_ids,
        text=tokens.text,
        answer=sample.answer,
    )


def why_not(samples: Sequence[Sample], loss_on: LossOn, how: Rendering) -> str:
    """Why this setting can mask nothing in these samples; empty where it can."""
    if loss_on == "assistant":
        if not any(sample.messages for sample in samples):
            return NO_CONVERSATION
        if not can_mask(how.tokenizer):
            return NO_MASK
        return ""
    if loss_on == "completion" and not any(one.kind == "prompt-completion" for one in samples):
        return NO_PROMPT
    return ""


def can_mask(tokenizer: Any) -> bool:
    """Whether the installed transformers marks the assistant's tokens."""
    parameters = inspect.signature(type(tokenizer).apply_chat_template).parameters
    return "return_assistant_tokens_mask" in parameters


def refusal_of(error: Exception) -> str:
    """Why a sample cannot be made into a row. Only a template's own sentence is repeated: messages
    of other exceptions may hold the row."""
    name = type(error).__name__
    own = isinstance(error, ValueError) and "template" in str(error)
    if name == "TemplateError" or own:
        return single_line(f"{name}: {error}", 300)
    return f"{name} while the row was tokenized"


def _kept(length: int, how: Rendering) -> slice:
    if how.max_length is None or length <= how.max_length:
        return slice(None)
    if how.truncation_mode == "keep_end":
        return slice(length - how.max_length, None)
    return slice(how.max_length)


def _conversation(sample: Sample, how: Rendering) -> Tokens:
    tokenizer = how.tokenizer
    turns = [*sample.messages, *sample.completion_messages]
    template = {"chat_template": how.chat_template} if how.chat_template else {}
    arguments = {**sample.template_arguments, **template}
    text = tokenizer.apply_chat_template(turns, tokenize=False, **arguments)
    ids, assistant = _ids_and_mask(tokenizer, turns, arguments)
    prompt = _prompt(sample, turns)
    prompt_ids = None
    if prompt:
        prompt_ids = _ids(
            tokenizer.apply_chat_template(
                prompt, tokenize=True, add_generation_prompt=True, **arguments
            )
        )
    masks = _masks(ids, how)
    if assistant is not None:
        masks["assistant"] = assistant
    if sample.kind == "prompt-completion" and prompt_ids is not None:
        start = common_prefix(prompt_ids, ids)
        masks["completion"] = [index >= start for index in range(len(ids))]
    return Tokens(ids, text, prompt_ids, masks)


def _prompt(sample: Sample, turns: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages before the last answer; none where the last message is no answer."""
    if sample.completion_messages:
        return list(sample.messages)
    return list(turns[:-1]) if turns[-1].get("role") == "assistant" else []


def _ids_and_mask(
    tokenizer: Any, turns: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]
) -> tuple[list[int], list[bool] | None]:
    """Token ids, and which are the assistant's; no mask where transformers has none."""
    if not can_mask(tokenizer):
        return _ids(tokenizer.apply_chat_template(turns, tokenize=True, **arguments)), None
    found = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **arguments
    )
    mask = found.get("assistant_masks")
    ids = _ids(found)
    if mask is not None and len(mask) == len(ids):
        return ids, [bool(one) for one in mask]
    return ids, [False] * len(ids)


def _ids(found: Any) -> list[int]:
    """A list of integers, whatever ``apply_chat_template`` of this release gives."""
    ids = found["input_ids"] if isinstance(found, Mapping) or hasattr(found, "keys") else found
    if ids and isinstance(ids[0], (list, tuple)):
        ids = ids[0]
    return [int(one) for one in ids]


def _plain(sample: Sample, how: Rendering) -> Tokens:
    tokenizer = how.tokenizer
    text = sample.text + sample.completion
    eos = tokenizer.eos_token
    if how.append_eos and eos and sample.kind != "classes" and not text.endswith(eos):
        text += eos
    ids = list(tokenizer(text)["input_ids"])
    masks = _masks(ids, how)
    prompt_ids = None
    if sample.kind == "prompt-completion":
        prompt_ids = list(tokenizer(sample.text)["input_ids"])
        # A tokenizer that ends every text ends the prompt alone as well; nobody means that.
        if prompt_ids and prompt_ids[-1] == tokenizer.eos_token_id:
            prompt_ids = prompt_ids[:-1]
        start = common_prefix(prompt_ids, ids)
        masks["completion"] = [index >= start for index in range(len(ids))]
    return Tokens(ids, text, prompt_ids, masks)


def _masks(ids: Sequence[int], how: Rendering) -> dict[LossOn, Sequence[bool]]:
    masks: dict[LossOn, Sequence[bool]] = {"all": [True] * len(ids)}
    if how.response_ids:
        at = find(ids, how.response_ids)
        start = len(ids) if at is None else at + len(how.response_ids)
        masks["response"] = [index >= start for index in range(len(ids))]
    return masks


def with_labels(row: Row, labels: Sequence[int]) -> Row:
    """The row with the labels that a collator made of it."""
    return replace(row, labels=list(labels))
