"""Which library model a layer is a part of, and how that library would have built the layer.

A norm of a pretrained model was trained with its epsilon. One that a user put beside it was not,
and neither was one whose epsilon was changed after loading.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora_doctor.nn.pristine import pristine

#: Where the classes of published models live: transformers' own, and code of model repositories.
_LIBRARIES = ("transformers.", "transformers_modules.")


class LibraryDefaults:
    """The library models in ``model``, by path. Built on demand on the meta device, once each."""

    def __init__(self, model: Any) -> None:
        from transformers import PreTrainedModel

        self._models = {
            path: module
            for path, module in model.named_modules()
            if isinstance(module, PreTrainedModel)
            and type(module).__module__.startswith(_LIBRARIES)
        }
        self._built: dict[str, Any] = {}

    def of(self, path: str) -> str | None:
        """The path of the nearest library model around ``path``; ``None`` when there is none."""
        around = [own for own in self._models if not own or path.startswith(f"{own}.")]
        return max(around, key=len, default=None)

    def expected(self, path: str, attribute: str, value: float) -> float | None:
        """The number with which the library builds ``attribute`` of the layer at ``path``.

        The config is asked first: a value that it names is the library's. ``None`` when there is no
        library, or it cannot say.
        """
        owner = self.of(path)
        if owner is None:
            return None
        if value in set(_config_epsilons(self._models[owner].config)):
            return value
        if owner not in self._built:
            self._built[owner] = pristine(self._models[owner])
        inner = path.removeprefix(f"{owner}.") if owner else path
        built = self._built[owner]
        layer = None if built is None else dict(built.named_modules()).get(inner)
        number = getattr(layer, attribute, None)
        return float(number) if isinstance(number, float) else None


def _config_epsilons(config: Any) -> Iterator[float]:
    stack = [config.to_dict()]
    while stack:
        for key, value in stack.pop().items():
            if isinstance(value, dict):
                stack.append(value)
            elif isinstance(value, float) and "eps" in str(key):
                yield value
