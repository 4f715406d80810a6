"""What is told in another language than English, in English words.

Phrases and their English stand in ``languages.toml`` beside this file. This is no translation: what
a failure is recognised by, its concepts, is left in the order in which it was written.
"""

from __future__ import annotations

import re
from functools import cache

from lora_doctor.engine.tables import table

#: The scripts of the languages of that file: a text without a character of them is left alone.
_SCRIPTS = re.compile(r"[\u3400-\u9fff]")
#: What is left of them, with their punctuation, which ends a sentence or parts it.
_ENDS, _REST = re.compile(r"[。！？；]"), re.compile(r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]+")


def in_english(text: str) -> str:
    """A text with the phrases of other languages in English; one in English as it is."""
    if not _SCRIPTS.search(text):
        return text
    for phrase, english in _phrases():
        text = phrase.sub(english, text)
    return _REST.sub(" ", _ENDS.sub(". ", text))


@cache
def _phrases() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple(
        (re.compile(phrase), english)
        for phrases in table("languages.toml").values()
        for phrase, english in phrases.items()
    )
