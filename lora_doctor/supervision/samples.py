"""What a row of a data file is: a conversation, a prompt with its completion, a text, a label.

The names of columns are those that TRL and the common data sets use. What cannot be told from the
row alone (how a script joins instruction and input) is said in ``joined``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

#: What kind of sample it is.
Kind = Literal["messages", "prompt-completion", "text", "classes", "tokens"]
_ROLES = {"human": "user", "gpt": "assistant", "bard": "assistant", "bing": "assistant"}
_LABELS = ("label", "labels")
_TEXTS = ("text", "sentence")


@dataclass(frozen=True)
class Sample:
    """One row, by what it is made of."""

    kind: Kind
    #: Messages of the conversation, or those of the prompt.
    messages: Sequence[Mapping[str, Any]] = ()
    #: Messages of the completion.
    completion_messages: Sequence[Mapping[str, Any]] = ()
    #: The text, or the prompt.
    text: str = ""
    #: The completion.
    completion: str = ""
    #: The class, or the classes.
    label: Any = None
    #: Token ids and labels of a row that is tokenized already.
    input_ids: Sequence[int] = ()
    labels: Sequence[int] | None = None
    #: What the template is told beside the messages.
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    #: How columns were put together that no library puts together by itself; empty without any.
    joined: str = ""

    @property
    def answer(self) -> str | None:
        """The last answer, as the row has it."""
        if self.kind == "prompt-completion" and not self.completion_messages:
            return self.completion
        turns = [*self.messages, *self.completion_messages]
        if not turns or turns[-1].get("role") != "assistant":
            return None
        return content_text(turns[-1].get("content"))


class NoSampleError(Exception):
    """The row is nothing that is trained on; the text says why."""


def as_sample(row: Mapping[str, Any]) -> Sample:
    """The row as a sample.

    Raises:
        NoSampleError: it has none of the columns, or one of another kind.
    """
    if "input_ids" in row:
        return _tokens(row)
    if "prompt" in row and "completion" in row:
        return _prompt_completion(row)
    if "messages" in row or "conversations" in row or "conversation" in row:
        return _conversation(row)
    if "instruction" in row and ("output" in row or "response" in row):
        return _instruction(row)
    text = next((row[name] for name in _TEXTS if isinstance(row.get(name), str)), None)
    if text is not None:
        return _text(row, text)
    raise NoSampleError(
        "has none of the columns messages, prompt and completion, instruction and output, text, "
        f"or input_ids, but {', '.join(map(str, list(row)[:8])) or 'none at all'}"
    )


def content_text(content: Any) -> str | None:
    """The text of a message's content, which may be in parts; ``None`` where it has none."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts else None
    return None


def _conversation(row: Mapping[str, Any]) -> Sample:
    name = next(key for key in ("messages", "conversations", "conversation") if key in row)
    messages = _messages(row[name], name)
    return Sample("messages", messages, template_arguments=_template_arguments(row))


def _prompt_completion(row: Mapping[str, Any]) -> Sample:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Sample("prompt-completion", text=prompt, completion=completion)
    if isinstance(prompt, str) or isinstance(completion, str):
        raise NoSampleError("prompt and completion have to be two texts or two lists of messages")
    return Sample(
        "prompt-completion",
        _messages(prompt, "prompt"),
        _messages(completion, "completion"),
        template_arguments=_template_arguments(row),
    )


def _instruction(row: Mapping[str, Any]) -> Sample:
    instruction, answer = row["instruction"], row.get("output", row.get("response"))
    more = row.get("input") or ""
    if not all(isinstance(one, str) for one in (instruction, more, answer)):
        raise NoSampleError("instruction, input and output have to be texts")
    prompt = f"{instruction}\n\n{more}" if more else instruction
    return Sample(
        "prompt-completion",
        [{"role": "user", "content": prompt}],
        [{"role": "assistant", "content": answer}],
        text=f"{prompt}\n",
        completion=str(answer),
        joined="instruction and input as the user's message, output as the assistant's",
    )


def _text(row: Mapping[str, Any], text: str) -> Sample:
    for name in _LABELS:
        if row.get(name) is not None:
            return Sample("classes", text=text, label=row[name])
    return Sample("text", text=text)


def _tokens(row: Mapping[str, Any]) -> Sample:
    ids = row["input_ids"]
    labels = row.get("labels")
    if not _integers(ids) or not ids:
        raise NoSampleError("input_ids has to be a list of integers")
    if labels is not None and not (_integers(labels) and len(labels) == len(ids)):
        raise NoSampleError("labels has to be a list of integers, one for each of input_ids")
    return Sample("tokens", input_ids=ids, labels=labels)


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int for one in value)


def _messages(value: Any, name: str) -> list[dict[str, Any]]:
    """Messages with ``role`` and ``content``; those with ``from`` and ``value`` are renamed."""
    if isinstance(value, str):  # a column of CSV
        try:
            value = json.loads(value)
        except ValueError:
            raise NoSampleError(f"{name} is a text, not a list of messages") from None
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise NoSampleError(f"{name} is not a list of messages")
    if not value:
        raise NoSampleError(f"{name} is an empty list")
    return [_message(one, name) for one in value]


def _message(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    if "from" in value and "value" in value and "role" not in value:
        role = str(value["from"])
        return {"role": _ROLES.get(role, role), "content": value["value"]}
    if not isinstance(value.get("role"), str):
        raise NoSampleError(f"a message in {name} has no role")
    # Columns of Parquet are the same for all messages: those that a message lacks are null there.
    return {key: one for key, one in value.items() if one is not None or key == "content"}


def _template_arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    """``tools`` and ``chat_template_kwargs``, as TRL hands them to the template."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            raise NoSampleError("tools is a text that is not JSON") from None
    more = row.get("chat_template_kwargs")
    found = dict(more) if isinstance(more, dict) else {}
    return {**found, "tools": tools} if tools else found
