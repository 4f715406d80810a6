"""PEFT's language-model wrappers around a model that cannot generate by itself.

``PeftModelForCausalLM`` and ``PeftModelForSeq2SeqLM`` read ``prepare_inputs_for_generation`` off
the model that they wrap. A base model without a head has none since transformers 4.50 took
``GenerationMixin`` out of ``PreTrainedModel``. Where the user makes the wrapper, the recipe is
wrong and is what should be edited. But some models of the hub call ``get_peft_model`` on their
inner model inside their own ``__init__`` (Phi-4-multimodal does, for its built-in adapters): there
is no recipe to edit, and the failure comes while the model is being loaded.

With the patch the wrapper is made. Its own ``generate`` says what is missing; the outer model,
which has the head, generates as ever. It is the constructors of PEFT's classes that change, so it
does not matter how the repository is laid out or how often its code is imported anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from lora_doctor.prescription.patches._support import Changes, Once

NAME = "peft_without_generation"
SUMMARY = "Lets PEFT's language-model wrappers be built on a model that cannot generate by itself"

_once = Once()

_WRAPPERS = ("PeftModelForCausalLM", "PeftModelForSeq2SeqLM")
#: What the constructors of the PEFT versions read off the wrapped model.
_READ = ("prepare_inputs_for_generation", "_prepare_encoder_decoder_kwargs_for_generation")


class CannotGenerate:
    """Stands where the wrapper keeps the method that its model lacks; says so when called."""

    def __init__(self, model_class: str, method: str) -> None:
        self.model_class = model_class
        self.method = method

    def error(self) -> AttributeError:
        return AttributeError(
            f"{self.model_class} has no {self.method!r}, so this PEFT wrapper around it cannot "
            "generate: call generate() on the model with the language-model head that holds it"
        )

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise self.error()


def why_not() -> str | None:
    """Why it does not fit the installed PEFT, or ``None``."""
    try:
        import peft
    except ImportError as error:
        return f"PEFT cannot be imported: {error}"
    for name in _WRAPPERS:
        wrapper = getattr(peft, name, None)
        if wrapper is None:
            return f"PEFT {peft.__version__} has no {name}"
        if "model" not in inspect.signature(wrapper.__init__).parameters:
            return f"the constructor of PEFT {peft.__version__}'s {name} takes no 'model'"
        if not callable(getattr(wrapper, "generate", None)):
            return f"PEFT {peft.__version__}'s {name} has no 'generate'"
    return None


def install() -> Callable[[], None]:
    """Patch the constructors and ``generate`` of PEFT's language-model wrappers."""
    import peft

    _once.forget()
    with Changes() as changes:
        for name in _WRAPPERS:
            wrapper = getattr(peft, name)
            code = inspect.unwrap(wrapper.__init__).__code__
            read = tuple(method for method in _READ if method in code.co_names)
            if not read:
                continue  # this PEFT does not ask the model, so nothing can be missing
            changes.around(wrapper, "__init__", partial(_tolerant_constructor, read))
            changes.around(wrapper, "generate", _explaining_generate)
    return changes.undo


def _tolerant_constructor(read: tuple[str, ...], original: Any) -> Any:
    signature = inspect.signature(original)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        model = signature.bind(self, *args, **kwargs).arguments["model"]
        missing = [method for method in read if not hasattr(model, method)]
        with _lent(model, missing):
            original(self, *args, **kwargs)

    return __init__


@contextmanager
def _lent(model: Any, missing: list[str]) -> Iterator[None]:
    """The model has the missing methods while it is being wrapped, and not a moment longer: what
    others conclude from their absence (transformers' ``can_generate``) stays true."""
    model_class = type(model).__name__
    for method in missing:
        # Into the instance's dictionary: a module would refuse or register what is set on it.
        vars(model)[method] = CannotGenerate(model_class, method)
    try:
        yield
    finally:
        for method in missing:
            vars(model).pop(method, None)
    if missing:
        _once.warning(
            f"patch {NAME}: {model_class} has no {missing[0]}; PEFT's wrapper around it was built "
            "without"
        )


def _explaining_generate(original: Any) -> Any:
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        missing = vars(self).get("base_model_prepare_inputs_for_generation")
        if isinstance(missing, CannotGenerate):
            raise missing.error()
        return original(self, *args, **kwargs)

    return generate
