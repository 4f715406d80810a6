"""Where a gradient first stopped being finite: the module of the backward that made it so.

Looks at every gradient that passes between modules, which is slow: it is used on one backward more,
once a gradient that is not finite has been seen. Torch is imported inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_doctor.contract.locator import all_finite, range_of, range_text, tensors_in
from lora_doctor.text import clean_path


@dataclass(frozen=True)
class NonFiniteGradient:
    """The first gradient with NaN or infinity in one backward.

    ``path``: the module that handed it back, and whose own gradients were finite; with ``made``
    false no module did, and it is the first one that such a gradient reached (an operation between
    modules made it, or the loss). ``parameter``: the first trained parameter that got one, empty
    when none did. Ranges are ``(min, max)`` over finite values of the forward's inputs and outputs
    and of the gradient that reached the module; ``None`` when there was none.
    """

    path: str
    class_name: str
    dtype: str
    made: bool
    parameter: str
    input_range: tuple[float, float] | None
    output_range: tuple[float, float] | None
    gradient_range: tuple[float, float] | None

    def __str__(self) -> str:
        what = (
            "is the first to hand back a gradient that is not finite"
            if self.made
            else "is the first that a gradient reaches which is not finite"
        )
        first = f"; the first parameter with one is {self.parameter}" if self.parameter else ""
        return (
            f"{self.path or 'the model'} ({self.class_name}, {self.dtype}) {what}: inputs "
            f"{range_text(self.input_range)}, outputs {range_text(self.output_range)}, finite "
            f"gradients that reach it {range_text(self.gradient_range)}{first}"
        )


@dataclass
class _Seen:
    """What one module took and gave in the forward, and which gradients reached it."""

    class_name: str
    dtype: str
    inputs: tuple[float, float] | None
    outputs: tuple[float, float] | None
    gradients: tuple[float, float] | None = None
    reached_by_bad: bool = False


class BackwardLocator:
    """Hooks on every module and trained parameter while a ``with`` block runs one forward and
    backward; afterwards ``found`` is the first gradient that was not finite. An operation between
    modules is told by the module whose output it took."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._handles: list[Any] = []
        self._seen: dict[str, _Seen] = {}
        self._first: Any = None
        self._makers: list[str] = []
        self._reached: list[str] = []
        self._parameter = ""

    def __enter__(self) -> BackwardLocator:
        for path, module in self.model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(self._enters(path), with_kwargs=True),
                module.register_forward_hook(self._leaves(path), with_kwargs=True),
            ]
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(self._arrives_at(name)))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def found(self) -> NonFiniteGradient | None:
        # Containers hand back what their innermost module did.
        makers = [p for p in self._makers if p in self._seen and not self._seen[p].reached_by_bad]
        places = makers or [path for path in self._reached if path in self._seen]
        if not places:
            return None
        path = max(places, key=lambda place: place.count("."))
        seen = self._seen[path]
        return NonFiniteGradient(
            path=clean_path(path),
            class_name=seen.class_name,
            dtype=seen.dtype,
            made=bool(makers),
            parameter=clean_path(self._parameter),
            input_range=seen.inputs,
            output_range=seen.outputs,
            gradient_range=seen.gradients,
        )

    def _enters(self, path: str) -> Any:
        def own(value: Any) -> Any:
            # What several modules take gets the sum of their gradients: each takes its own view,
            # so that what comes back through it is this module's alone.
            if not hasattr(value, "register_hook") or not value.requires_grad:
                return value
            view = value.view_as(value)
            view.register_hook(self._passes(path, self._makers))
            return view

        def hook(_module: Any, inputs: Any, named: Any) -> Any:
            return tuple(map(own, inputs)), {name: own(value) for name, value in named.items()}

        return hook

    def _leaves(self, path: str) -> Any:
        def hook(module: Any, inputs: Any, named: Any, output: Any) -> None:
            floating = [t for t in tensors_in(output) if t.is_floating_point()]
            dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in floating})
            self._seen[path] = _Seen(
                type(module).__name__,
                ", ".join(dtypes),
                range_of((inputs, named)),
                range_of(output),
            )
            for tensor in floating:
                if tensor.requires_grad:
                    tensor.register_hook(self._reaches(path))

        return hook

    def _reaches(self, path: str) -> Any:
        passes = self._passes(path, self._reached)

        def hook(gradient: Any) -> None:
            seen = self._seen[path]
            span = range_of(gradient)
            if span is not None and self._first is None:
                old = seen.gradients or span
                seen.gradients = (min(old[0], span[0]), max(old[1], span[1]))
            seen.reached_by_bad = seen.reached_by_bad or not all_finite(gradient)
            passes(gradient)

        return hook

    def _passes(self, path: str, places: list[str]) -> Any:
        def hook(gradient: Any) -> None:
            if self._first is None and not all_finite(gradient):
                self._first = gradient  # all hooks on this tensor are handed the same one
            if gradient is self._first:
                places.append(path)

        return hook

    def _arrives_at(self, name: str) -> Any:
        def hook(gradient: Any) -> None:
            if all_finite(gradient):
                return
            self._parameter = self._parameter or name
            if self._first is None:
                self._first = gradient
                self._makers.append(name.rpartition(".")[0])

        return hook
