"""One image through the processor of the model's folder.

Runs in a forked child; torch, transformers and PIL are imported inside functions. Nothing is
trained: the class stands on the meta device and is asked how many features the image has there.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.model.error_reports import library_error
from lora_doctor.model.loading import Loader
from lora_doctor.prescription.patches import install_patches
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.processed_image import ProcessedImage
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.text import single_line
from lora_doctor.tiny_model.config_roles import tree

#: Pixels of an edge of the image.
_EDGE = 224


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A :class:`ProcessedImage` as JSON.

    Args:
        source, recipe, patches: as every task has them.

    Raises:
        EvidenceError: the processor cannot be loaded here, or is none of images and text.
    """
    install_patches(patches)
    processor = _processor(source)
    loader = Loader(source, Recipe.from_json(recipe))
    asked = _Asked(processor, loader)
    name = type(processor).__name__
    made = asked.processed({})
    error = made if isinstance(made, Exception) else None
    places = 0 if error is not None else asked.places(made)
    features = 0 if error is not None else asked.features(made)
    lacks: dict[str, Any] = {}
    if error is not None or (features and places != features):
        lacks = asked.first_right(_repairs(processor, loader.config), counted=error is None)
    report = library_error(error) if error is not None else None
    return asdict(ProcessedImage(name, report, places, features, lacks))


def _processor(source: Mapping[str, Any]) -> Any:
    if source.get("folder") is None:
        raise EvidenceError("the model has no folder with a processor")
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(
            source["folder"],
            trust_remote_code=bool(source["trust_remote_code"]),
            local_files_only=True,
        )
    except Exception as error:
        raise EvidenceError(
            f"the processor cannot be loaded: {type(error).__name__}: "
            f"{single_line(str(error), 300)}",
            remedy="package" if isinstance(error, ImportError) else None,
        ) from error
    parts = ("image_processor", "tokenizer", "image_token")
    if not all(getattr(processor, part, None) is not None for part in parts):
        raise EvidenceError("the folder has no processor of images and text")
    return processor


def _repairs(processor: Any, config: Any) -> Iterator[dict[str, Any]]:
    """Values for arguments of the processor's class that have none here: those that the model's
    config has under the same name, then one token more for a number that is left at zero."""
    parameters = inspect.signature(type(processor).__init__).parameters
    empty = [name for name in parameters if getattr(processor, name, 0) is None]
    known = {name: value for name in empty if (value := _of_config(config, name)) is not None}
    if known:
        yield known
    for name, parameter in parameters.items():
        is_left = type(parameter.default) is int and parameter.default == 0
        if is_left and getattr(processor, name, None) == 0:
            yield {**known, name: 1}


def _of_config(config: Any, name: str) -> Any:
    """What the config of the model, or of the part that sees, has under this name; ``None`` where
    it has several values, or none."""
    found = {
        value
        for node in tree(config).walk()
        if not node.path or "vision" in node.path
        for key, value in node.values.items()
        if key == name and isinstance(value, (int, str))
    }
    return found.pop() if len(found) == 1 else None


class _Asked:
    """A processor that is asked with other values, and the class that takes what it makes."""

    def __init__(self, processor: Any, loader: Loader) -> None:
        from PIL import Image

        self._processor = processor
        self._loader = loader
        self._model: Any = None
        self._image = Image.new("RGB", (_EDGE, _EDGE), (120, 90, 60))

    def processed(self, values: Mapping[str, Any]) -> Any:
        """What the processor makes with these values; the exception where it raises one."""
        processor = copy.copy(self._processor)
        for name, value in values.items():
            setattr(processor, name, value)
        text = f"{processor.image_token} {processor.tokenizer.eos_token or ''}".strip()
        try:
            return processor(images=self._image, text=text, return_tensors="pt")
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return error

    def first_right(self, repairs: Iterator[dict[str, Any]], *, counted: bool) -> dict[str, Any]:
        """The first values with which there are as many places as features; where it is not
        ``counted``, those with which the processor goes through will do. Empty without any."""
        through: dict[str, Any] = {}
        for values in repairs:
            made = self.processed(values)
            if isinstance(made, Exception):
                continue
            features = self.features(made)
            if features and features == self.places(made):
                return values
            through = through or values
        return {} if counted else through

    def places(self, made: Any) -> int:
        """How often the token of an image occurs."""
        tokenizer, token = self._processor.tokenizer, self._processor.image_token
        return int((made["input_ids"] == tokenizer.convert_tokens_to_ids(token)).sum())

    def features(self, made: Any) -> int:
        """How many vectors as wide as an embedding the class makes of the image; 0 where it does
        not say."""
        import torch

        try:
            if self._model is None:
                self._model = self._loader.build("meta").eval()
            width = self._model.get_input_embeddings().embedding_dim
            see = self._model.get_image_features
            taken = inspect.signature(see).parameters
            inputs = {
                name: value.to("meta")
                for name, value in made.items()
                if name in taken and isinstance(value, torch.Tensor) and name != "input_ids"
            }
            with torch.no_grad():
                seen = see(**inputs, **self._settings(taken))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return 0  # a class without this method, or one that needs numbers to count
        return _vectors(getattr(seen, "pooler_output", seen), width)

    def _settings(self, taken: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that some releases do not fill from the config themselves."""
        config = self._loader.config
        return {
            name: getattr(config, name)
            for name in taken
            if name.startswith("vision_") and getattr(config, name, None) is not None
        }


def _vectors(seen: Any, width: int) -> int:
    import torch

    if isinstance(seen, torch.Tensor):
        return seen.numel() // width if seen.shape[-1] == width else 0
    if isinstance(seen, (list, tuple)) and seen:
        each = [_vectors(one, width) for one in seen]
        return sum(each) if all(each) else 0
    return 0
