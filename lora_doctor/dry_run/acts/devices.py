"""A machine without a GPU: ``cuda`` in the user's code is read as ``cpu``, and that is told."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting


def prepare(acting: Acting) -> None:
    """Once torch is there, and sees no GPU."""
    acting.after("torch", lambda module: _without_gpu(acting, module))
    acting.after("bitsandbytes.nn.modules", lambda module: not_repacked(acting, module))


def not_repacked(acting: Acting, module: ModuleType) -> None:
    """bitsandbytes repacks 4-bit weights for some CPUs when it evaluates, and fails at widths that
    are no multiple of a block. No GPU does that, and small models have such widths."""
    if "has_avx512bf16" in vars(module):
        acting.replaced.around(module, "has_avx512bf16", lambda original: False)
    if hasattr(module, "Int8Params"):
        acting.replaced.around(module.Int8Params, "to", stay)


def stay(original: Any, weight: Any, *arguments: Any, **named: Any) -> Any:
    """An 8-bit weight that is sent where it is already would lose its scale: PEFT does that on a
    CPU alone, after it has read the weight for DoRA."""
    quantized = str(weight.dtype) == "torch.int8"  # what is not yet becomes it by being sent
    if quantized and len(arguments) == 1 and arguments[0] == weight.device and not named:
        return weight
    return original(weight, *arguments, **named)


def _without_gpu(acting: Acting, torch: ModuleType) -> None:
    if torch.cuda.is_available():
        return
    _mode(acting, torch).__enter__()
    _autocast(acting, torch)
    _set_device(acting, torch)


def _is_gpu(value: Any, torch: Any) -> bool:
    if isinstance(value, str):
        return value == "cuda" or value.startswith("cuda:")
    return isinstance(value, torch.device) and value.type == "cuda"


def _numbered(arguments: Any) -> bool:
    """Whether the first argument is the number of a device, as ``model.to(local_rank)`` gives."""
    return len(arguments) > 1 and type(arguments[1]) is int


def _named(arguments: Any, torch: Any) -> bool:
    return any(_is_gpu(one, torch) for one in arguments[1:])


def _told(acting: Acting) -> None:
    acting.note("cpu", "this machine has no GPU: cuda was read as cpu", once="cuda")


def _mode(acting: Acting, torch: Any) -> Any:
    moves, calls = torch.Tensor.to, torch.Tensor.cuda

    class CudaIsCpu(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        """Every function of torch that takes a device."""

        def __torch_function__(
            self, function: Any, types: Any, arguments: Any = (), named: Any = None
        ) -> Any:
            named = named or {}
            if function is calls:
                _told(acting)
                return arguments[0]
            if function is moves and (_numbered(arguments) or _named(arguments, torch)):
                _told(acting)
                first = "cpu" if _numbered(arguments) else arguments[1]
                rest = ("cpu" if _is_gpu(one, torch) else one for one in (first, *arguments[2:]))
                arguments = (arguments[0], *rest)
            if "device" in named and _is_gpu(named["device"], torch):
                _told(acting)
                named = {**named, "device": "cpu"}
            return function(*arguments, **named)

    return CudaIsCpu()


def _autocast(acting: Acting, torch: Any) -> None:
    from torch.amp import autocast_mode

    def init(original: Any, mode: Any, device_type: Any = "cuda", *more: Any, **named: Any) -> None:
        if device_type == "cuda":
            _told(acting)
            device_type = "cpu"
            if not more and named.get("dtype") is None:
                named["dtype"] = torch.float16  # what autocast takes on a GPU
        original(mode, device_type, *more, **named)

    acting.replaced.around(autocast_mode.autocast, "__init__", init)


def _set_device(acting: Acting, torch: Any) -> None:
    def nothing(original: Any, *arguments: Any, **named: Any) -> None:
        _told(acting)

    for name in ("set_device", "synchronize"):
        acting.replaced.around(torch.cuda, name, nothing)
    acting.replaced.around(torch.cuda, "current_device", lambda original: 0)
