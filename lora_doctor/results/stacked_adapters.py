"""A model on which ``get_peft_model`` was called more than once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StackedAdapter:
    """One adapter of a model that was wrapped more than once."""

    #: Its ``peft_type``.
    method: str
    #: Name of the adapter.
    name: str
    #: Number of the ``PeftModel`` that it belongs to, 0 is the outermost; ``None`` when none of
    #: them knows it.
    wrapper: int | None
    #: Weight tensors that it has.
    tensors: int
    #: Of these, trainable.
    trainable: int
    #: Of these, written by the outermost model's ``save_pretrained``.
    saved: int
    #: Whether it takes part in the forward.
    active: bool


@dataclass(frozen=True)
class Stacked:
    """What several calls of ``get_peft_model`` made."""

    #: Class and method, the outermost first.
    wrappers: tuple[str, ...]
    #: Each adapter.
    members: tuple[StackedAdapter, ...]
    #: Tensors that are saved.
    saved_names: int = 0
    #: Of these, those whose name no adapter on the bare model has.
    renamed: int = 0
    #: One of these names.
    renamed_example: str = ""
    #: Layers with an adapter that its config does not name: an earlier call put it there, and the
    #: later one took its name.
    leftovers: tuple[str, ...] = ()
    #: Tensors in ``leftovers``.
    leftover_tensors: int = 0
    #: Where the outermost is in the model; empty when it is the model.
    path: str = ""
