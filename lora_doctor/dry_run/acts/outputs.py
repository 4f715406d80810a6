"""Where the usual calls write: into the session's folder, and read back from there."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting

#: Modules that have a class with a ``save_pretrained`` of its own, in every release.
_SAVING = (
    "transformers.modeling_utils",
    "transformers.configuration_utils",
    "transformers.tokenization_utils_base",
    "transformers.processing_utils",
    "transformers.generation.configuration_utils",
    "transformers.feature_extraction_utils",
    "transformers.pipelines.base",
    "peft.config",
)
#: The same in some releases only: these classes have moved, or are newer.
_SAVING_IN_SOME_RELEASES = (
    "transformers.image_processing_base",
    "transformers.image_processing_utils",
    "transformers.video_processing_utils",
    "transformers.tokenization_mistral_common",
)


def prepare(acting: Acting) -> None:
    """Redirect what transformers, PEFT, accelerate, torch and safetensors save."""
    places = Redirected(acting)

    for name in _SAVING:
        acting.after(name, lambda module: _saving_classes(acting, places, module))
    for name in _SAVING_IN_SOME_RELEASES:
        acting.after(name, lambda module: _saving_classes(acting, places, module, must=False))
    acting.after(
        "transformers.trainer",
        lambda m: acting.replaced.around(m.Trainer, "save_model", places.writing_second),
    )
    acting.after("peft.peft_model", lambda m: _peft(acting, places, m))
    acting.after("peft.config", lambda m: _peft_configs(acting, places, m))
    acting.after("peft.auto", lambda m: _peft_auto(acting, places, m))
    acting.after("accelerate.accelerator", lambda m: _accelerate(acting, places, m))
    acting.after("torch.serialization", lambda m: _torch(acting, places, m))
    acting.after("safetensors.torch", lambda m: _safetensors(acting, places, m))
    acting.after("transformers.utils.hub", lambda m: _reading(acting, places, m))
    for name in ("sentence_transformers.base.model", "sentence_transformers.SentenceTransformer"):
        acting.after(name, lambda m: _embedders(acting, places, m))
    acting.after("datasets.arrow_dataset", lambda m: _data_sets(acting, places, m.Dataset))
    acting.after("datasets.dataset_dict", lambda m: _data_sets(acting, places, m.DatasetDict))


class Redirected:
    """Paths of the user's to paths in the session."""

    def __init__(self, acting: Acting) -> None:
        self._acting = acting

    @property
    def _root(self) -> str:
        return str(self._acting.session.outputs)

    @property
    def _own(self) -> tuple[str, ...]:
        return (str(self._acting.session.folder), "/dev/")

    def to_write(self, path: Any) -> Any:
        """Where this path is written instead; what is no path stays."""
        if not isinstance(path, (str, os.PathLike)) or self._acting.in_contract:
            return path
        full = os.path.abspath(os.fspath(path))
        if not isinstance(full, str) or full.startswith(self._own):
            return path
        new = self._root + os.path.splitdrive(full)[1]
        os.makedirs(os.path.dirname(new), exist_ok=True)
        self._acting.journal.tell("redirected", path=full)
        return new

    def to_read(self, path: Any) -> Any:
        """Where this path is read: what was written in this run, else the user's own."""
        if not isinstance(path, (str, os.PathLike)) or self._acting.in_contract:
            return path
        try:
            full = os.path.abspath(os.fspath(path))
        except ValueError:
            return path
        if not isinstance(full, str) or full.startswith(self._own):
            return path
        new = self._root + os.path.splitdrive(full)[1]
        return new if os.path.exists(new) else path

    def of_user(self, path: str) -> str:
        """The user's own path of one that is written elsewhere."""
        return path[len(self._root) :] if path.startswith(self._root + os.sep) else path

    def is_of_this_run(self, path: Any) -> bool:
        """Whether this was written in this run: what is in it is small already."""
        full = os.path.abspath(str(self.to_read(path)))
        return full.startswith(str(self._acting.session.folder))

    def writing_second(self, original: Any, owner: Any, *arguments: Any, **named: Any) -> Any:
        """A method whose first argument beside the object is where to write."""
        first, rest = arguments[:1], arguments[1:]
        for name in ("save_directory", "output_dir", "dataset_path", "dataset_dict_path"):
            if name in named:
                named[name] = self.to_write(named[name])
        return original(owner, *map(self.to_write, first), *rest, **named)

    def reading_second(self, original: Any, owner: Any, *arguments: Any, **named: Any) -> Any:
        """A method whose first argument beside the object or class is what to read."""
        for name in ("pretrained_model_name_or_path", "model_id"):
            if name in named:
                named[name] = self.to_read(named[name])
        return original(*map(self.to_read, arguments[:1]), *arguments[1:], **named)

    def reading_first(self, original: Any, *arguments: Any, **named: Any) -> Any:
        """A function whose first argument is what to read."""
        return original(*map(self.to_read, arguments[:1]), *arguments[1:], **named)


def _saving_classes(
    acting: Acting, places: Redirected, module: ModuleType, *, must: bool = True
) -> None:
    """Redirect every ``save_pretrained`` that a class of this module defines.

    Raises:
        AttributeError: there is none, where there has to be one.
    """
    classes = (
        one for one in vars(module).values()
        if isinstance(one, type) and one.__module__ == module.__name__
    )  # fmt: skip
    saving = [one for one in dict.fromkeys(classes) if "save_pretrained" in vars(one)]
    if must and not saving:
        raise AttributeError("no class with a save_pretrained")
    for owner in saving:
        acting.replaced.around(owner, "save_pretrained", places.writing_second)


def _peft(acting: Acting, places: Redirected, module: ModuleType) -> None:
    acting.replaced.around(module.PeftModel, "save_pretrained", places.writing_second)


def _peft_configs(acting: Acting, places: Redirected, module: ModuleType) -> None:
    for name in ("from_pretrained", "_get_peft_type"):
        if name in vars(module.PeftConfigMixin):
            acting.replaced.around(module.PeftConfigMixin, name, places.reading_second)


def _peft_auto(acting: Acting, places: Redirected, module: ModuleType) -> None:
    acting.replaced.around(module._BaseAutoPeftModel, "from_pretrained", places.reading_second)


def _accelerate(acting: Acting, places: Redirected, module: ModuleType) -> None:
    def loading(original: Any, owner: Any, *arguments: Any, **named: Any) -> Any:
        if "input_dir" in named:
            named["input_dir"] = places.to_read(named["input_dir"])
        return original(owner, *map(places.to_read, arguments[:1]), *arguments[1:], **named)

    acting.replaced.around(module.Accelerator, "save_state", places.writing_second)
    acting.replaced.around(module.Accelerator, "load_state", loading)

    def saving_model(original: Any, owner: Any, model: Any, *arguments: Any, **named: Any) -> Any:
        if "save_directory" in named:
            named["save_directory"] = places.to_write(named["save_directory"])
        first = map(places.to_write, arguments[:1])
        return original(owner, model, *first, *arguments[1:], **named)

    acting.replaced.around(module.Accelerator, "save_model", saving_model)


def _torch(acting: Acting, places: Redirected, module: ModuleType) -> None:
    def saving(original: Any, value: Any, *arguments: Any, **named: Any) -> Any:
        if "f" in named:
            named["f"] = places.to_write(named["f"])
        return original(value, *map(places.to_write, arguments[:1]), *arguments[1:], **named)

    acting.replaced.around(module, "save", saving)
    acting.replaced.around(module, "load", places.reading_first)


def _safetensors(acting: Acting, places: Redirected, module: ModuleType) -> None:
    def saving(original: Any, tensors: Any, *arguments: Any, **named: Any) -> Any:
        if "filename" in named:
            named["filename"] = places.to_write(named["filename"])
        return original(tensors, *map(places.to_write, arguments[:1]), *arguments[1:], **named)

    def loading(original: Any, *arguments: Any, **named: Any) -> Any:
        if "filename" in named:
            named["filename"] = places.to_read(named["filename"])
        return places.reading_first(original, *arguments, **named)

    acting.replaced.around(module, "save_file", saving)
    acting.replaced.around(module, "load_file", loading)


def _embedders(acting: Acting, places: Redirected, module: ModuleType) -> None:
    """sentence-transformers writes the files of its own by itself; since 6.0 in a base class."""

    def saving(original: Any, model: Any, *arguments: Any, **named: Any) -> Any:
        if "path" in named:
            named["path"] = places.to_write(named["path"])
        return original(model, *map(places.to_write, arguments[:1]), *arguments[1:], **named)

    def loading(original: Any, model: Any, *arguments: Any, **named: Any) -> None:
        if "model_name_or_path" in named:
            named["model_name_or_path"] = places.to_read(named["model_name_or_path"])
        original(model, *map(places.to_read, arguments[:1]), *arguments[1:], **named)

    owners = [one for one in vars(module).values() if isinstance(one, type)]
    for owner in owners:
        if owner.__module__ == module.__name__ and "save" in vars(owner):
            acting.replaced.around(owner, "save", saving)
            if "__init__" in vars(owner):
                acting.replaced.around(owner, "__init__", loading)


def _data_sets(acting: Acting, places: Redirected, owner: Any) -> None:
    """Sets that are kept for the next run (axolotl's ``last_run_prepared``): this run has few of
    their rows."""

    def loading(original: Any, *arguments: Any, **named: Any) -> Any:
        for name in ("dataset_path", "dataset_dict_path"):
            if name in named:
                named[name] = places.to_read(named[name])
        return places.reading_first(original, *arguments, **named)

    acting.replaced.around(owner, "save_to_disk", places.writing_second)
    acting.replaced.around(owner, "load_from_disk", loading)


def _reading(acting: Acting, places: Redirected, module: ModuleType) -> None:
    """Configs, tokenizers and processors come through ``cached_file``."""
    acting.replaced.around(module, "cached_file", places.reading_first)
    if "cached_files" in vars(module):
        acting.replaced.around(module, "cached_files", places.reading_first)
