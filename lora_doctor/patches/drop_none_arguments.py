"""Arguments that PEFT passes as ``None`` to a model that does not take them.

The wrapper of a ``task_type`` calls the model with the arguments of a text model:
``input_ids``, ``inputs_embeds``, ``decoder_input_ids``, ``labels`` and so on, ``None`` where the
caller gave nothing. A model of images or sound may not take the name at all ("got an unexpected
keyword argument"), or hand its ``**kwargs`` on beside its own value ("got multiple values for
keyword argument").

With the patch, such an argument is left out when it is ``None`` and one of those that PEFT adds by
itself, and either its default is ``None`` anyway or ``forward`` has no parameter of that name. The
model is then called as it would be without PEFT. An argument with a value is never touched.

All adapter types pass ``BaseTuner.forward``, or that of a subclass; prompt learning and adaption
prompts call the model directly, so there the model gets a hook when it is wrapped.
"""

from __future__ import annotations

import functools
import inspect
import logging
import weakref
from collections.abc import Callable
from typing import Any

NAME = "drop_none_arguments"
SUMMARY = "Leaves out arguments that PEFT passes as None and the model does not take"

_log = logging.getLogger("lora_doctor")

#: Flags on the answer: decorators of transformers take them off ``**kwargs``, so that leaving them
#: out of a call that would have worked is not worth a word.
_FLAGS = frozenset({"output_attentions", "output_hidden_states", "return_dict"})


def why_not() -> str | None:
    """Why it does not fit the installed PEFT, or ``None``."""
    try:
        import peft
        from peft.tuners.tuners_utils import BaseTuner
    except ImportError as error:
        return f"PEFT cannot be imported as expected: {error}"
    kinds = {item.kind for item in inspect.signature(BaseTuner.forward).parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return f"BaseTuner.forward of PEFT {peft.__version__} takes no free keyword arguments"
    if not _added_by_peft():
        return f"the wrappers of PEFT {peft.__version__} add no arguments that are known here"
    return None


def install() -> Callable[[], None]:
    """Patch the tuners' ``forward``, and hook models that are wrapped without a tuner."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTuner

    added = _added_by_peft()
    original_forward, original_init = BaseTuner.forward, PeftModel.__init__
    hooks: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    @functools.wraps(original_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original_forward(self, *args, **_without_idle_nones(self.model, kwargs, added))

    # A partial of a plain function, so that the hooked model can still be pickled.
    before = functools.partial(_before_forward, added)

    @functools.wraps(original_init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original_init(self, *args, **kwargs)
        base = self.base_model
        if not isinstance(base, BaseTuner) and base not in hooks:
            hooks[base] = base.register_forward_pre_hook(before, with_kwargs=True)

    BaseTuner.forward = forward
    PeftModel.__init__ = __init__

    def undo() -> None:
        BaseTuner.forward = original_forward
        PeftModel.__init__ = original_init
        for handle in hooks.values():
            handle.remove()

    return undo


def _before_forward(
    added: frozenset[str], module: Any, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The hook of a model that is wrapped without a tuner."""
    return args, _without_idle_nones(module, kwargs, added)


def _added_by_peft() -> frozenset[str]:
    """The arguments that some wrapper passes on whether or not the caller gave them."""
    import peft

    wrappers: list[Any] = [
        getattr(peft, name) for name in dir(peft) if name.startswith("PeftModelFor")
    ]
    return frozenset(
        item.name
        for wrapper in wrappers
        for item in inspect.signature(wrapper.forward).parameters.values()
        if item.default is None
    )


def _without_idle_nones(
    model: Any, kwargs: dict[str, Any], added: frozenset[str]
) -> dict[str, Any]:
    """The keyword arguments without those that are ``None`` to no effect."""
    nones = [name for name, value in kwargs.items() if value is None and name in added]
    if not nones:
        return kwargs
    # A decorated forward tells of the one that it wraps (transformers, accelerate).
    parameters = inspect.signature(model.forward).parameters
    free = [name for name, item in parameters.items() if item.kind is item.VAR_KEYWORD]
    idle = [name for name in nones if name not in parameters or parameters[name].default is None]
    unknown = [name for name in idle if name not in parameters and not (free and name in _FLAGS)]
    if unknown:
        _say_once(type(model).__name__, tuple(unknown))
    return {name: value for name, value in kwargs.items() if name not in idle}


@functools.cache
def _say_once(model_class: str, names: tuple[str, ...]) -> None:
    _log.warning(
        "patch %s: %s.forward does not take %s; left out, for they are None",
        NAME, model_class, ", ".join(names),
    )  # fmt: skip
