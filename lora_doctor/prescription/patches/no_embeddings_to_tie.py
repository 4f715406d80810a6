"""PEFT on models that have no token embeddings.

From PEFT 0.18 on, putting adapters on asks which layers share the weight of the token embeddings,
and asks it of every model whose class lists tied weights. What RT-DETR ties are its detection
heads; it has no tokens, and ``get_input_embeddings`` of transformers 5 then raises
``NotImplementedError``: no adapter can be put on at all.

With the patch nothing is tied to embeddings that are not there. Patterns among the names of tied
weights (Zamba 2 in transformers 4), which PEFT takes for names and fails on, are passed by: what is
tied to the embeddings has a name. Everywhere else PEFT does what it did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lora_doctor.prescription.patches._support import Changes, Once

NAME = "no_embeddings_to_tie"
SUMMARY = "Lets PEFT adapt models that tie other weights than those of token embeddings"

_once = Once()
_ASKS = "_get_module_names_tied_with_embedding"


def why_not() -> str | None:
    """Why it does not fit the installed PEFT, or ``None``."""
    try:
        from peft.tuners.tuners_utils import BaseTuner  # noqa: F401
    except ImportError as error:
        return f"PEFT cannot be imported: {error}"
    return None


def install() -> Callable[[], None]:
    """Patch the question that PEFT's tuners ask of the model they are put on; nothing where the
    installed PEFT does not ask it."""
    from peft.tuners.tuners_utils import BaseTuner

    _once.forget()
    with Changes() as changes:
        if hasattr(BaseTuner, _ASKS):
            changes.around(BaseTuner, _ASKS, _answered)
    return changes.undo


def _answered(original: Any) -> Any:
    def names_tied_with_embedding(self: Any) -> list[str]:
        try:
            return list(original(self))
        except NotImplementedError:
            model_class = type(getattr(self, "model", self)).__name__
            _once.warning(
                f"patch {NAME}: {model_class} has no input embeddings; nothing is tied to them"
            )
            return []
        except AttributeError:
            keys = getattr(getattr(self, "model", self), "_tied_weights_keys", None) or ()
            names = [key for key in keys if isinstance(key, str)]
            if len(names) == len(keys):
                raise
            _once.warning(f"patch {NAME}: patterns among the names of tied weights are passed by")
            return sorted({name.rpartition(".")[0] for name in names})

    return names_tied_with_embedding
