"""Numbers on a device, read without holding up what is computed next."""

from __future__ import annotations

from typing import Any


class Later:
    """Numbers that are on their way here from the device.

    On a GPU the copy is asynchronous: :meth:`values` waits until the device has come so far, and
    for nothing that was asked of it afterwards.
    """

    def __init__(self, tensor: Any) -> None:
        """``tensor``: floating, of any shape; it is read as it is now."""
        import torch

        self._event: Any = None
        flat = tensor.detach().reshape(-1).float()
        if flat.device.type != "cuda":
            self._here = flat
            return
        self._here = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
        self._here.copy_(flat, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def values(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return [float(value) for value in self._here.tolist()]


def loss_in(output: Any) -> Any:
    """The scalar loss in what a forward returned; ``None`` where there is none."""
    loss = getattr(output, "loss", None)
    if loss is None and isinstance(output, dict):
        loss = output.get("loss")
    if loss is None or not hasattr(loss, "is_floating_point") or loss.numel() != 1:
        return None
    return loss


def norms_of(tensors: list[Any]) -> Any:
    """The norm of each of these tensors, together in one; ``None`` where there are none."""
    import torch

    if not tensors:
        return None
    return torch.stack([one.float() for one in torch._foreach_norm(tensors)])


def is_finite(value: float) -> bool:
    return value - value == 0
