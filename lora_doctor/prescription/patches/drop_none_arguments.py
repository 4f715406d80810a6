"""Arguments that PEFT passes as ``None`` to a model that does not take them.

The wrapper of a ``task_type`` calls the model with the arguments of a text model:
``input_ids``, ``inputs_embeds``, ``decoder_input_ids``, ``labels`` and so on, ``None`` where the
caller gave nothing. A model of images or sound may not take the name at all ("got an unexpected
keyword argument"), or hand its ``**kwargs`` on beside its own value ("got multiple values for
keyword argument").

With the patch, such an argument is left out when it is ``None`` and one of those that PEFT adds by
itself, and either its default is ``None`` anyway or ``forward`` has no parameter of that name. The
model is then called as it would be without PEFT. An argument with a value is never touched.

All adapter types pass ``BaseTuner.forward``, or that of a subclass (AdaLoRA has its own); prompt
learning and adaption prompts call the model directly, so there the model gets a hook when it is
wrapped.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from lora_doctor.prescription.patches._support import Changes, Once

NAME = "drop_none_arguments"
SUMMARY = "Leaves out arguments that PEFT passes as None and the model does not take"

_once = Once()

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

    _once.forget()
    added = _added_by_peft()
    hooks: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
    # A partial of a plain function, so that the hooked model can still be pickled.
    before = functools.partial(_before_forward, added)

    def filtered(original: Any) -> Any:
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self, *args, **_without_idle_nones(self.model, kwargs, added))

        return forward

    def hooking(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            base = self.base_model
            if not isinstance(base, BaseTuner) and base not in hooks:
                hooks[base] = base.register_forward_pre_hook(before, with_kwargs=True)

        return __init__

    with Changes() as changes:
        for tuner in _with_own_forward(BaseTuner):
            changes.around(tuner, "forward", filtered)
        changes.around(PeftModel, "__init__", hooking)

    def undo() -> None:
        changes.undo()  # first, so that no hook is set any more
        for handle in list(hooks.values()):
            handle.remove()

    return undo


def _with_own_forward(tuner: type) -> Iterator[type]:
    """The class and those of its subclasses that do not inherit ``forward``."""
    if "forward" in vars(tuner):
        yield tuner
    subclasses: list[type] = tuner.__subclasses__()
    for derived in subclasses:
        yield from _with_own_forward(derived)


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
        _once.warning(
            f"patch {NAME}: {type(model).__name__}.forward does not take {', '.join(unknown)}; "
            "left out, for they are None"
        )
    return {name: value for name, value in kwargs.items() if name not in idle}
