"""Reentrant gradient checkpointing whose backward never ends, stopped where it begins again.

A checkpointed layer that hands a tensor on which it was given by keyword (WavLM's position bias)
puts itself in front of that tensor: to torch it is now made by this very layer. Its recomputation
uses the tensor, so that the backward of the recomputation arrives at the layer once more, and so
on, until memory or patience ends. Torch is imported inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class EndlessRecomputation(RuntimeError):
    """The backward of a checkpointed layer needs the backward of that same layer."""


@contextmanager
def ended_where_it_begins_again() -> Iterator[None]:
    """In the block a reentrant recomputation that waits for itself raises
    :class:`EndlessRecomputation`; every other one runs as it would."""
    from torch.utils import checkpoint

    function = getattr(checkpoint, "CheckpointFunction", None)
    if function is None:  # a torch without the reentrant kind
        yield
        return
    original = function.backward
    # Not by thread: torch goes on in another one when backwards are nested deeply.
    running: set[int] = set()

    def backward(context: Any, *gradients: Any) -> Any:
        if id(context) in running:
            raise EndlessRecomputation(
                "the backward of a checkpointed layer calls itself without end: reentrant "
                "checkpointing, and the layer returns a tensor that it was given by keyword"
            )
        running.add(id(context))
        try:
            return original(context, *gradients)
        finally:
            running.discard(id(context))

    function.backward = staticmethod(backward)
    try:
        yield
    finally:
        function.backward = staticmethod(original)
