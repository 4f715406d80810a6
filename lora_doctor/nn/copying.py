"""Copies of a model that leave the original alone, and a process that is left as it was found."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lora_doctor.nn.rebinding import deep_copy


def structural_copy(model: Any) -> Any:
    """A model of its own whose weights lie in the same storage as the original's.

    Modules, hooks, buffers and settings are copied; each parameter becomes a new parameter over
    the same memory (tied ones stay tied), so the copy costs almost nothing. Whoever trains the
    copy must first give :func:`own_storage` to what will be trained. Weights that are no floating
    numbers (quantized ones) are shared as they are: nothing trains them.

    Raises whatever ``copy.deepcopy`` raises on an attribute that cannot be copied.
    """
    import torch

    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if type(parameter) is torch.nn.Parameter and parameter.is_floating_point():
            twin = torch.nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
            twin.__dict__.update(parameter.__dict__)  # marks such as `_is_hf_initialized`
        else:
            twin = parameter
        memo[id(parameter)] = twin
    memo.update((id(tensor), tensor) for tensor in _settled_8bit(model))
    # deepcopy keeps what it has copied alive under this key; ours must live as long.
    memo[id(memo)] = list(memo.values())
    return deep_copy(model, memo)


def _settled_8bit(model: Any) -> list[Any]:
    """The 8-bit weights and scales of bitsandbytes' layers, which copies share.

    A layer's first forward takes them from its parameter into its own state: done by the copy, it
    would leave the original, which has the same parameter, without any. So the original does it
    now, as it would in its own first forward.
    """
    found = []
    for module in model.modules():
        settle = getattr(module, "init_8bit_state", None)
        if settle is None:
            continue
        if getattr(module.weight, "CB", None) is not None:
            settle()
        held = (getattr(module.state, name, None) for name in ("CB", "SCB"))
        found += [tensor for tensor in held if tensor is not None]
    return found


def own_storage(parameters: Any) -> None:
    """Give each of these parameters memory of its own."""
    for parameter in parameters:
        parameter.data = parameter.data.clone()


@contextmanager
def undisturbed(seed: int = 0) -> Iterator[None]:
    """Seed every generator, and put generators and torch's global switches back at the end."""
    import torch

    numpy = sys.modules.get("numpy")
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    states = (torch.get_rng_state(), torch.cuda.get_rng_state_all() if cuda else None)
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    default_dtype = torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    gradients = torch.is_grad_enabled()
    try:
        seed_everything(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        if states[1] is not None:
            torch.cuda.set_rng_state_all(states[1])
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)
        torch.set_default_dtype(default_dtype)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_grad_enabled(gradients)


@contextmanager
def attributes_kept(model: Any) -> Iterator[None]:
    """Put back what forwards leave behind on modules: a Qwen-VL keeps the offsets of its positions
    for the next call, which then runs where the first one of a training would not.

    Hooks that a forward installs go with the attribute that says they are there: transformers 5
    collects hidden states by such hooks, and would install them twice. Parameters, buffers and
    modes are not touched.
    """
    before = [(module, dict(vars(module)), _hooks(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, kept, hooks in before:
            for name, installed in hooks.items():
                registered = vars(module)[name]
                registered.clear()
                registered.update(installed)
            now = vars(module)
            for name in [name for name in now if name not in kept]:
                del now[name]
            for name, value in kept.items():
                if name != "training" and now.get(name) is not value:
                    now[name] = value


@contextmanager
def statistics_kept(model: Any) -> Iterator[None]:
    """Put back the running statistics of batch norms, which a forward in training mode moves: a
    forward that only looks is no training."""
    before = [
        (buffer, buffer.clone())
        for module in model.modules()
        if getattr(module, "track_running_stats", False)
        for buffer in module._buffers.values()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def _hooks(module: Any) -> dict[str, dict[int, Any]]:
    """What is registered on a module, by the name of the dictionary that holds it."""
    return {
        name: dict(value)
        for name, value in vars(module).items()
        if "_hooks" in name and isinstance(value, dict)
    }


def random_state(put_back: Any = None) -> Any:
    """The state of torch's generator on the CPU, which dropout draws from; sets one that is given.

    What runs twice from one state drops out the same.
    """
    import torch

    if put_back is not None:
        torch.set_rng_state(put_back)
    return torch.get_rng_state()


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators: some models draw from each in ``forward``."""
    import torch

    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed(seed)
    torch.manual_seed(seed)
