"""The text of each token of a row, and which of them are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: From token ids to text, special tokens by their names and no spaces cleaned up.
Decode = Callable[[Sequence[int]], str]
#: Tokens of a row that are shown: its beginning and its end, where prompts and answers meet ends.
SHOWN = 320
#: Tokens before one that its text is read with: pieces of a word, or of a character of several
#: bytes, have a text only beside each other.
_CONTEXT = 4
_BROKEN = "\ufffd"


def token_texts(ids: Sequence[int], decode: Decode) -> list[str]:
    """The text that each token adds to those before it; ``�`` for a part of a character."""
    texts = []
    for index in range(len(ids)):
        before = ids[max(0, index - _CONTEXT) : index]
        texts.append(_added(decode(before) if before else "", decode([*before, ids[index]])))
    return texts


def _added(before: str, both: str) -> str:
    """What stands in ``both`` behind ``before``."""
    if before.endswith(_BROKEN) and not both.startswith(before):
        # The token completes a character of which the tokens before it were parts.
        return both[len(before.rstrip(_BROKEN)) :]
    return both[len(before) :]


def shown_part(length: int) -> tuple[range, range]:
    """Indices of the tokens that are shown of a row: its first and its last."""
    if length <= SHOWN:
        return range(length), range(0)
    head = SHOWN // 2
    return range(head), range(length - (SHOWN - head), length)
