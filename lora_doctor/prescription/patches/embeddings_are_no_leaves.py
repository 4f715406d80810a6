"""Embeddings that need a gradient may be changed in place.

``enable_input_require_grads`` calls ``requires_grad_`` on what the input embeddings put out. With
frozen embeddings that is a leaf of autograd, and a model that adds positions to it in place
(``embeddings += positions``) or writes image features into it gets "a leaf Variable that requires
grad is being used in an in-place operation".

With the patch such a leaf is handed on as a copy, which needs a gradient too and is no leaf: the
same numbers, for the memory of one more tensor of embeddings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from lora_doctor.prescription.patches._support import Changes, Once

NAME = "embeddings_are_no_leaves"
SUMMARY = "Lets models change embeddings in place whose gradient was asked for"
#: The library whose import it waits for in a real run; PEFT need not have been imported.
LIBRARY = "transformers.modeling_utils"

_ENABLE = "enable_input_require_grads"
_once = Once()


def why_not() -> str | None:
    """Why it does not fit the installed transformers, or ``None``."""
    try:
        import transformers
        from transformers import PreTrainedModel
    except ImportError as error:
        return f"transformers cannot be imported: {error}"
    method = getattr(PreTrainedModel, _ENABLE, None)
    if not inspect.isfunction(method):
        return f"PreTrainedModel of transformers {transformers.__version__} has no {_ENABLE}"
    return None


def install() -> Callable[[], None]:
    """Patch ``PreTrainedModel.enable_input_require_grads``; models that have it enabled already
    are left as they are."""
    from transformers import PreTrainedModel

    _once.forget()
    handles: list[Any] = []

    def followed(original: Any) -> Any:
        def enable(self: Any) -> Any:
            before = {id(module): len(module._forward_hooks) for module in self.modules()}
            result = original(self)
            hooked = [
                module
                for module in self.modules()
                if len(module._forward_hooks) > before[id(module)]
            ]
            handles.extend(module.register_forward_hook(_handed_on) for module in hooked)
            return result

        return enable

    changes = Changes()
    with changes:
        changes.around(PreTrainedModel, _ENABLE, followed)

    def undo() -> None:
        changes.undo()
        while handles:
            handles.pop().remove()

    return undo


def _handed_on(module: Any, inputs: Any, output: Any) -> Any:
    """A forward hook; a module-level function, so that the model can be copied and pickled."""
    import torch

    if not isinstance(output, torch.Tensor) or not output.requires_grad or not output.is_leaf:
        return None
    _once.warning(f"patch {NAME}: what {type(module).__name__} puts out is handed on as a copy")
    return output.clone()
