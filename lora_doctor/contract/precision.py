"""Mixed precision as the Trainer does it: autocast around the forward, a scaler for fp16.

Torch is imported inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lora_doctor.recipe.recipe import Recipe

#: Of the loss, for the gradients: small, so that no step is skipped to find a larger one.
SCALE = 64.0


@dataclass(frozen=True)
class Precision:
    """How a training step computes."""

    #: A torch device.
    device: str
    #: The dtype of the recipe's ``fp16`` or ``bf16``, ``None`` for a forward in the weights' own.
    autocast: Literal["float16", "bfloat16"] | None = None
    #: Whether a gradient scaler is used.
    scaled: bool = False

    @classmethod
    def of(cls, recipe: Recipe, dtype: str, device: str) -> Precision:
        """The recipe's, on a model whose weights are mostly of ``dtype``.

        Weights in float16 are trained with a scaler unless the recipe says that ``fp16`` is off:
        without one, gradients below 6e-8 are zero.
        """
        autocast = recipe.mixed_precision
        unsaid = autocast is None and "fp16" not in recipe and dtype == "float16"
        return cls(device, autocast, autocast == "float16" or unsaid)

    def forward(self) -> Any:
        """A context for the forward and the loss."""
        import torch

        wanted = self.autocast
        dtype = None if wanted is None else getattr(torch, wanted)
        return torch.autocast(self._kind, dtype=dtype, enabled=wanted is not None)

    def scaler(self) -> Any:
        """A ``GradScaler``; its scale is small and does not grow."""
        import torch

        kind = "cuda" if self._kind == "cuda" else "cpu"
        return torch.amp.GradScaler(
            kind, init_scale=SCALE, growth_interval=1 << 30, enabled=self.scaled
        )

    @property
    def _kind(self) -> str:
        return self.device.split(":")[0]
