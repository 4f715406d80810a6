"""Adapters that a model brings itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterState:
    """One adapter in a model that brings adapters itself."""

    #: Name of the adapter.
    name: str
    #: Whether the model brings it; otherwise it is the recipe's.
    brought: bool
    #: Layers that it sits in.
    layers: int
    #: Weight tensors that it has.
    tensors: int
    #: Parameters that it has.
    parameters: int
    #: Tensors that are trainable as the model comes out of loading.
    trainable: int = 0
    #: Layers in which it takes part as the model comes out of loading.
    active: int = 0
    #: ``trainable`` after the recipe's adapter was put on; ``None`` without one.
    trainable_wrapped: int | None = None
    #: ``active`` after the recipe's adapter was put on; ``None`` without one.
    active_wrapped: int | None = None


@dataclass(frozen=True)
class BuiltIn:
    """Adapters that a model brings itself, and what becomes of them."""

    #: Each adapter.
    adapters: tuple[AdapterState, ...]
    #: Whether the recipe puts an adapter of its own on top; when not, the built-in ones are what is
    #: trained.
    wrapped: bool
    #: Whether ``from_pretrained`` of this transformers makes every weight trainable again.
    loading_unfreezes: bool
    #: Patterns of weights that are no adapter and would be trained.
    base_trainable: tuple[str, ...] = ()
    #: Parameters of ``base_trainable``.
    base_trainable_parameters: int = 0
    #: Parameters that are no adapter.
    base_parameters: int = 0
