"""What the 8-bit layers of bitsandbytes hang on the autograd graph, beside saved tensors.

``MatMul8bitLt`` keeps its input, and a copy of each column of it that holds an outlier (a value of
at least ``llm_int8_threshold``), as attributes of its node. Autograd does not know of them: neither
checkpointing nor the end of the backward lets go of them, only the end of the graph does. How many
columns hold an outlier depends on the numbers; each layer has a copy of its own, also where
several read the same input.
"""

from __future__ import annotations

from typing import Any

from lora_doctor.model.meta_copy import MetaCopy


class EightBitInputs:
    """Adds up the bytes of the inputs of all 8-bit layers that separate outliers, while hooked.

    ``bytes``: what the copies take at most, when every column holds an outlier.
    """

    def __init__(self, base: Any, thinned: MetaCopy) -> None:
        self.bytes = 0
        self.handles: list[Any] = []
        self._over = False
        for path, module in base.named_modules():
            if separates_outliers(module):
                self.handles.append(module.register_forward_pre_hook(self._hook(thinned, path)))

    def forward_is_over(self) -> None:
        """What checkpointing computes once more lives as long as one layer's backward."""
        self._over = True

    def _hook(self, thinned: MetaCopy, path: str) -> Any:
        import torch

        times = thinned.times(path)

        def count(_: Any, args: tuple[Any, ...]) -> None:
            if args and not self._over and torch.is_grad_enabled():
                self.bytes += int(args[0].numel()) * args[0].element_size() * times

        return count


def separates_outliers(module: Any) -> bool:
    """Whether it is an 8-bit layer, out of :func:`without_outliers`, with a threshold."""
    return getattr(module, "outlier_threshold", 0.0) > 0


def without_outliers(module: Any) -> None:
    """The 8-bit layer on meta, where no number tells an outlier, runs as if there were none."""
    module.outlier_threshold = float(module.state.threshold or 0.0)
    module.state.threshold = 0.0
