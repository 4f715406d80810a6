"""Errors of the code that runs, which no size of a model and no input takes away."""

from __future__ import annotations


def is_fault_of_code(error: BaseException) -> bool:
    """Whether code asks an object that transformers made for something that it does not have.

    Such objects are the outputs of a forward and its cache: `'MoeCausalLMOutputWithPast' object has
    no attribute 'image_outputs'`. Which attributes they have is up to the installed release alone;
    an attribute of a config, or of `None`, may be there with other sizes or inputs.
    """
    if not isinstance(error, AttributeError):
        return False
    from transformers.utils import ModelOutput

    return isinstance(error.obj, (ModelOutput, *_cache_classes()))


def _cache_classes() -> tuple[type, ...]:
    """Base classes of what a forward keeps between calls; none in releases that use tuples."""
    import transformers

    return tuple(
        found for name in ("Cache", "DynamicCache") if (found := getattr(transformers, name, None))
    )
