"""The chat template of the model's files, tried as training would use it.

Runs in a child process: a template is a program, if a confined one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.results.chat_template import ChatTemplate
from lora_doctor.text import single_line

#: Stand for the tokens that a template writes.
_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
#: Tags that transformers adds to the language.
_OWN_TAGS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_TURNS = (("user", "How are you?"), ("assistant", "Well."))


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    template: str,
    file: str,
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A :class:`ChatTemplate` as JSON.

    Args:
        source: of the model; not read.
        recipe: not read.
        template: the text of the template.
        file: that it is in.
        patches: none matters here.

    Raises:
        EvidenceError: the installed packages cannot format a conversation.
    """
    tokenizer = _tokenizer()
    first: Exception | None = None
    for conversation in _conversations():
        try:
            tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False)
        except ImportError as error:
            raise EvidenceError(single_line(str(error), 300), remedy="package") from error
        except Exception as error:  # noqa: BLE001 - what the template raises is the evidence
            if not _is_broken(error, template):
                return asdict(ChatTemplate(file))
            first = first or error
        else:
            return asdict(ChatTemplate(file))
    assert first is not None
    line = getattr(first, "lineno", None)
    text = single_line(str(first), 300)
    return asdict(ChatTemplate(file, type(first).__name__, text, line))


def _tokenizer() -> Any:
    """One without a vocabulary: the text of the conversation is all that is asked for."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {token: number for number, token in enumerate(_TOKENS.values())}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), **_TOKENS
    )


def _conversations() -> Iterator[list[dict[str, Any]]]:
    """With texts, and with lists of parts, as templates of multimodal models take them."""
    for make in (str, lambda text: [{"type": "text", "text": text}]):
        turns = [{"role": role, "content": make(text)} for role, text in _TURNS]
        yield turns
        yield [{"role": "system", "content": make("Be brief.")}, *turns]


def _is_broken(error: Exception, template: str) -> bool:
    """Whether no conversation can help: the template is no Jinja, or names something that neither
    transformers nor a conversation gives. What it raises by itself is its opinion of these ones."""
    import jinja2

    if isinstance(error, jinja2.TemplateSyntaxError):
        return True
    if isinstance(error, jinja2.UndefinedError):
        name = str(error).removesuffix(" is undefined").strip("'")
        return name.isidentifier() and name in _called(template)
    # The class itself: raise_exception of a template raises a class above it.
    return type(error) is jinja2.TemplateRuntimeError and str(error).startswith("No ")


def _called(template: str) -> set[str]:
    """Names that the template calls as functions: nothing in a conversation can be one, and
    arguments of ``apply_chat_template`` are values."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(_OWN_TAGS.sub("", template))
    except TemplateSyntaxError:  # it has been compiled: with another tag of transformers' own
        return set()
    calls = tree.find_all(nodes.Call)
    return {call.node.name for call in calls if isinstance(call.node, nodes.Name)}
