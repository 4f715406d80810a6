"""Mixed precision of a GPU on the meta device, which has no autocast of its own.

``torch.autocast`` casts the arguments of some functions to half precision, of others to float32.
Which it does to a function is asked of torch itself: the function runs once on fake tensors of
CUDA, which need no GPU, and the dtype of its result tells. The casts then happen to the meta
tensors, above autograd, so that what the backward keeps is what it keeps on a GPU: copies in half
precision of float32 weights and inputs too.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from lora_doctor.memory_plan.quiet import quiet

#: What autocast casts the arguments of a function to; ``None``: it leaves them alone.
Policy = Literal["lower", "float32"]


class Autocast:
    """``torch.autocast`` as it acts on ``device``, for tensors on the meta device.

    Args:
        dtype: ``float16`` or ``bfloat16``.
        device: of whose rules are asked.
    """

    def __init__(self, dtype: str, device: str = "cuda") -> None:
        import torch

        self.dtype = getattr(torch, dtype)
        self.device = device
        self._policies: dict[Any, Policy | None] = {}
        self._weights: dict[int, tuple[Any, Any]] = {}
        self._backward = False

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Functions called in this context are cast; code that asks is told so, as PEFT does."""
        with self._enabled(), _mode(self):
            yield
        self._weights.clear()  # as leaving autocast does

    def backward(self, loss: Any) -> None:
        """The backward is not cast, but what checkpointing computes once more in it is."""
        import torch

        # By the engine itself: `loss.backward()` is a function that the mode sees, and no mode is
        # on inside of what it has seen.
        engine: Any = torch.autograd.Variable._execution_engine
        one = torch.ones_like(loss)
        self._backward = True
        try:
            with self.forward():
                engine.run_backward(
                    (loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True
                )
        finally:
            self._backward = False

    def cast(self, function: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """The arguments as this function gets them."""
        from torch.utils._pytree import tree_map

        if not self._acts():
            return args, kwargs
        policy = self._policy(function, args, kwargs)
        if policy is None:
            return args, kwargs
        one = self._lowered if policy == "lower" else _raised
        return tree_map(one, args), tree_map(one, dict(kwargs))

    def _acts(self) -> bool:
        import torch

        if self._backward and not torch.is_grad_enabled():
            return False
        return bool(torch.is_autocast_enabled(self.device))

    @contextlib.contextmanager
    def _enabled(self) -> Iterator[None]:
        import torch

        before = torch.is_autocast_enabled(self.device), torch.get_autocast_dtype(self.device)
        torch.set_autocast_enabled(self.device, True)
        torch.set_autocast_dtype(self.device, self.dtype)
        try:
            yield
        finally:
            torch.set_autocast_enabled(self.device, before[0])
            torch.set_autocast_dtype(self.device, before[1])

    def _lowered(self, value: Any) -> Any:
        """A weight that is trained is cast once for all functions, like autocast's own cache."""
        if not _is_float(value) or value.dtype == self.dtype:
            return value
        if not (value.requires_grad and value.is_leaf) or value._is_view():
            return value.to(self.dtype)
        if id(value) not in self._weights:
            self._weights[id(value)] = (value, value.to(self.dtype))
        return self._weights[id(value)][1]

    # -- asking torch -----------------------------------------------------------------------------

    def _policy(self, function: Any, args: Any, kwargs: Mapping[str, Any]) -> Policy | None:
        import torch
        from torch.utils._pytree import tree_flatten

        leaves = tree_flatten((args, kwargs))[0]
        if not any(_is_float(value) for value in leaves):
            return None
        looks = tuple(
            (value.dim(), _is_float(value)) if isinstance(value, torch.Tensor)
            else value if isinstance(value, torch.dtype) else type(value)
            for value in leaves
        )  # fmt: skip
        key = (function, looks)
        if key not in self._policies:
            self._policies[key] = self._asked(function, args, kwargs)
        return self._policies[key]

    def _asked(self, function: Any, args: Any, kwargs: Mapping[str, Any]) -> Policy | None:
        import torch

        if self._dtype_of_result(function, args, kwargs, torch.float32) == self.dtype:
            return "lower"
        if self._dtype_of_result(function, args, kwargs, self.dtype) == torch.float32:
            return "float32"
        return None

    def _dtype_of_result(
        self, function: Any, args: Any, kwargs: Mapping[str, Any], dtype: Any
    ) -> Any:
        """The dtype of what it makes of floats of ``dtype``; ``None`` where it makes no tensor, or
        asks for numbers that fake tensors have not."""
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.utils._python_dispatch import _disable_current_modes
        from torch.utils._pytree import tree_flatten, tree_map

        def fake(value: Any) -> Any:
            if isinstance(value, torch.device):
                return torch.device(self.device)
            if not isinstance(value, torch.Tensor):
                return value
            own = dtype if _is_float(value) else value.dtype
            return torch.empty(value.shape, dtype=own, device=self.device)

        with _disable_current_modes(), FakeTensorMode(), torch.no_grad(), quiet(logging.ERROR):
            try:
                made = function(*tree_map(fake, args), **tree_map(fake, dict(kwargs)))
            except Exception:  # noqa: BLE001 - whatever it cannot do without numbers
                return None
        tensors = [one for one in tree_flatten(made)[0] if isinstance(one, torch.Tensor)]
        return tensors[0].dtype if tensors else None


@contextlib.contextmanager
def mixed_by_the_trainer(model: Any, mixed: Autocast | None) -> Iterator[None]:
    """The model's forward as accelerate wraps it: autocast, and its outputs cast to float32."""
    if mixed is None:
        yield
        return
    plain, own = model.forward, vars(model).get("forward")

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with mixed.forward():
            return plain(*args, **kwargs)

    model.forward = _outputs_in_float32(forward)
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


def _outputs_in_float32(forward: Any) -> Any:
    try:
        from accelerate.utils import convert_outputs_to_fp32
    except ImportError:
        return forward
    return convert_outputs_to_fp32(forward)


def _mode(autocast: Autocast) -> Any:
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            args, kwargs = autocast.cast(function, args, kwargs or {})
            return function(*args, **kwargs)

    return Mode()


def _raised(value: Any) -> Any:
    import torch

    return value.float() if _is_float(value) and value.dtype != torch.float32 else value


def _is_float(value: Any) -> bool:
    """Whether autocast would touch it: it leaves doubles alone."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.dtype != torch.float64
    )
