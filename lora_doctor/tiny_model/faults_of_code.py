"""Errors of the code that runs, which no size of a model and no input takes away."""

from __future__ import annotations

import traceback
import types
from typing import Any


def is_fault_of_code(error: BaseException) -> bool:
    """Whether code asks an object that transformers made for something that it does not have.

    Such objects are the outputs of a forward and its cache: `'MoeCausalLMOutputWithPast' object has
    no attribute 'image_outputs'`. Which attributes they have is up to the installed release alone;
    an attribute of a config, or of `None`, may be there with other sizes or inputs.
    """
    if not isinstance(error, AttributeError):
        return False
    from transformers.utils import ModelOutput

    made = (ModelOutput, *_cache_classes())
    asked = error.obj
    return issubclass(asked, made) if isinstance(asked, type) else isinstance(asked, made)


def missing_attribute(error: BaseException) -> str:
    """`class.attribute` where code asks a class, an object or a module of the installed
    transformers for an attribute that it does not have; else empty.

    Configs are left out: what one has is up to its `config.json`. So are modules that transformers'
    own code asks: what those have may be up to the config, too.
    """
    if not isinstance(error, AttributeError) or not error.name:
        return ""
    asked: Any = error.obj
    if isinstance(asked, types.ModuleType):
        owner = module = asked.__name__
    else:
        cls = asked if isinstance(asked, type) else type(asked)
        owner, module = cls.__name__, cls.__module__
        if _is_config(cls) or (_is_module(cls) and _raised_in(error, "transformers")):
            return ""
    return f"{owner}.{error.name}" if module.split(".")[0] == "transformers" else ""


def _is_config(cls: type) -> bool:
    from transformers import PretrainedConfig

    return issubclass(cls, PretrainedConfig)


def _is_module(cls: type) -> bool:
    from torch import nn

    return issubclass(cls, nn.Module)


def _raised_in(error: BaseException, package: str) -> bool:
    """Whether code of this package raised it; torch's `__getattr__` of modules does not count."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    tops = [str(frame.f_globals.get("__name__", "")).split(".")[0] for frame in frames]
    return next((top for top in reversed(tops) if top != "torch"), "") == package


def _cache_classes() -> tuple[type, ...]:
    """Base classes of what a forward keeps between calls; none in releases that use tuples."""
    import transformers

    return tuple(
        found for name in ("Cache", "DynamicCache") if (found := getattr(transformers, name, None))
    )
