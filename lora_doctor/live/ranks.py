"""What the processes of a training tell each other: whether they have the same adapters after the
same steps, and what each has seen in its part of them. Each puts a word into the store of their
process group; none waits for another one."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from typing import Any

#: Words that this process has said; they are said in the same order in each.
_said = [0]


class Words:
    """A word of each process that trains."""

    def __init__(self, store: Any, keys: list[str]) -> None:
        self._store, self._keys = store, keys

    @classmethod
    def say(cls, topic: str, word: str) -> Words | None:
        """Put this process's word into the store; ``None`` where there is no store. ``topic``: the
        same in each process."""
        group = sys.modules.get("torch.distributed")
        if group is None or not group.is_available() or not group.is_initialized():
            return None
        store = _store(group)
        if store is None:
            return None
        _said[0] += 1
        before = f"lora-doctor/{_said[0]}/{topic}"
        keys = [f"{before}/{rank}" for rank in range(group.get_world_size())]
        store.set(keys[group.get_rank()], word)
        return cls(store, keys)

    def heard(self) -> list[str] | None:
        """The words, by rank; ``None`` while one of them has said nothing."""
        if not self._store.check(self._keys):
            return None
        return [self._store.get(key).decode() for key in self._keys]

    def __len__(self) -> int:
        return len(self._keys)


class Ranks:
    """The sums of the sizes of the trainable numbers, of each process that trains."""

    def __init__(self, words: Words) -> None:
        self._words = words

    @classmethod
    def told(cls, model: Any, step: int) -> Ranks | None:
        """Put this process's sum after ``step`` into the store; ``None`` where it trains alone."""
        words = Words.say(f"adapters/{step}", _of(model))
        return None if words is None or len(words) < 2 else cls(words)

    def sums(self) -> Mapping[str, float] | None:
        """Rank to sum; ``None`` while one of them has told nothing. Empty where the processes do
        not train parameters of the same names and shapes: each has a part of the model then."""
        heard = self._words.heard()
        if heard is None:
            return None
        values = [word.split() for word in heard]
        if len({names for names, _ in values}) > 1:
            return {}
        return {str(rank): float(total) for rank, (_, total) in enumerate(values)}


def _store(group: Any) -> Any:
    """The store by which the processes have met, where torch gives it."""
    found = getattr(group.distributed_c10d, "_get_default_store", None)
    return found() if found is not None else None


def _of(model: Any) -> str:
    """Names and shapes of the trainable parameters as one word, and the sum of their sizes."""
    import torch

    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    names = repr([(name, tuple(one.shape)) for name, one in trained])
    with torch.no_grad():
        total = sum(float(one.detach().double().abs().sum()) for _, one in trained)
    return f"{hashlib.sha256(names.encode()).hexdigest()} {total!r}"
