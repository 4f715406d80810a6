"""What a loaded tokenizer says of itself: special ids, and what its template does with an answer.

Asked of the object: it is any tokenizer of transformers, which this module does not import.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lora_doctor.results.supervision import TokenizerFacts

#: A conversation whose answer is found again in what the template makes of it.
_QUESTION, _ANSWER = "lora doctor question", "lora doctor answer"
_PROBE = ({"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER})
_MARKS = re.compile(r"\{%-?\s*generation\b")


def describe(
    tokenizer: Any, stop_ids: Sequence[int] | None, placeholder_ids: Iterable[int] = ()
) -> TokenizerFacts:
    """The facts of a tokenizer.

    Args:
        tokenizer: a tokenizer of transformers.
        stop_ids: ids at which generation stops by the model's files; ``None`` where they do not
            say, then it stops at the tokenizer's own end-of-text token.
        placeholder_ids: ids that stand for parts of an image or a sound, by the model's config.
    """
    template = template_of(tokenizer)
    ends = end_of_turn_ids(tokenizer)
    eos = tokenizer.eos_token_id
    stops = tuple(stop_ids) if stop_ids is not None else (() if eos is None else (eos,))
    special = list(tokenizer.all_special_ids)
    ids = {tokenizer.bos_token_id, eos, tokenizer.pad_token_id, *ends, *stops, *special}
    named = sorted(one for one in ids if one is not None)[:200]
    taken = {tokenizer.bos_token_id, eos, *ends, *stops, *placeholder_ids}
    return TokenizerFacts(
        bos_id=tokenizer.bos_token_id,
        eos_id=eos,
        pad_id=tokenizer.pad_token_id,
        end_of_turn_ids=ends,
        stop_ids=stops,
        stop_known=stop_ids is not None or eos is not None,
        has_template=bool(template),
        has_generation_marks=bool(template and _MARKS.search(template)),
        generation_prompt=_generation_prompt(tokenizer),
        placeholder_ids=tuple(placeholder_ids),
        names={str(one): _name(tokenizer, one) for one in named},
        unused_special_tokens=tuple(_name(tokenizer, one) for one in special if one not in taken),
    )


def template_of(tokenizer: Any) -> str:
    """The chat template that a conversation gets; empty without one."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else ""


def end_of_turn_ids(tokenizer: Any) -> tuple[int, ...]:
    """The token that the template puts behind an answer to end it; none where it puts none.

    The template is asked with a conversation of its own. It is the first special or added token
    behind the answer.
    """
    whole = render(tokenizer, _PROBE)
    if whole is None or _ANSWER not in whole:
        return ()
    behind = whole.rpartition(_ANSWER)[2]
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if behind.strip() else []
    known = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return tuple(one for one in ids if one in known)[:1]


def render(tokenizer: Any, messages: Sequence[Any], **arguments: Any) -> str | None:
    """What the template makes of a conversation, as text; ``None`` where it refuses it."""
    if not template_of(tokenizer):
        return None
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, **arguments)
    except Exception:  # noqa: BLE001 - a template raises what it likes; then it has no answer
        return None
    return text if isinstance(text, str) else None


def _generation_prompt(tokenizer: Any) -> str:
    without = render(tokenizer, _PROBE[:1])
    with_it = render(tokenizer, _PROBE[:1], add_generation_prompt=True)
    if without is None or with_it is None or not with_it.startswith(without):
        return ""
    return with_it[len(without) :]


def _name(tokenizer: Any, token: int) -> str:
    found = tokenizer.convert_ids_to_tokens(token)
    return found if isinstance(found, str) else str(token)
