"""What libraries do when imported and no task may ever need, put off until it is needed."""

from __future__ import annotations

import contextlib
import functools
import importlib
import types
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def compiling_when_called() -> Iterator[None]:
    """Within it, a function that a library gives to `torch.compile` is compiled at its first call.

    bitsandbytes decorates a few functions so, and `torch.compile` imports the whole of
    `torch._inductor` for it: a fifth of the processor time of importing torch, transformers and
    PEFT, paid by every recipe without quantization too. What is compiled, and how, stays the same;
    a refusal of `torch.compile` comes at the first call instead of at the import.
    """
    torch: Any = importlib.import_module("torch")
    compile_now = getattr(torch, "compile", None)
    if compile_now is None:  # torch 1
        yield
        return

    @functools.wraps(compile_now)
    def compile_later(model: Any = None, **options: Any) -> Any:
        if model is None:
            return functools.partial(compile_later, **options)
        if not isinstance(model, types.FunctionType):  # a module: the result has its attributes
            return compile_now(model, **options)
        return _compiled_at_first_call(model, functools.partial(compile_now, **options))

    torch.compile = compile_later
    try:
        yield
    finally:
        torch.compile = compile_now


def _compiled_at_first_call(
    function: Callable[..., Any], compile_now: Callable[..., Any]
) -> Callable[..., Any]:
    compiled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not compiled:
            compiled.append(compile_now(function))
        return compiled[0](*args, **kwargs)

    return call
