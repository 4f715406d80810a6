"""What becomes of the adapter when several processes save it: the file is compared with what the
adapter has before it is cut into shards."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts import processes, sharding
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.guest.call_sites import caller

#: Files that PEFT writes an adapter's weights to.
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_ADAPTERS = "lora_"
#: What wrappers put in front of names, or into them.
_OF_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.", "_orig_mod.")
_MOST_NAMES = 20


def prepare(acting: Acting) -> None:
    """Around the calls that save adapters; after their outputs were redirected."""
    watch = _Watch(acting)
    acting.after("transformers.trainer", lambda m: _around(acting, watch, m.Trainer, "save_model"))
    acting.after("peft.peft_model", lambda m: _around(acting, watch, m.PeftModel,
                                                      "save_pretrained"))  # fmt: skip
    acting.after("torch.serialization", lambda m: _tensors(acting, watch, m, "save"))
    acting.after("safetensors.torch", lambda m: _tensors(acting, watch, m, "save_file"))


def _around(acting: Acting, watch: _Watch, owner: Any, name: str) -> None:
    by = f"{owner.__name__}.{name}"
    signature = inspect.signature(vars(owner)[name])

    def saving(original: Any, saver: Any, *arguments: Any, **named: Any) -> Any:
        if not watch.applies():
            return original(saver, *arguments, **named)
        try:
            given = signature.bind(saver, *arguments, **named).arguments
        except TypeError:  # the call itself says it better
            return original(saver, *arguments, **named)
        folder = given.get("save_directory") or given.get("output_dir")
        folder = folder or getattr(getattr(saver, "args", None), "output_dir", None)
        quiet = bool(given.get("_internal_call")) or given.get("is_main_process") is False
        return watch.folder(by, folder, quiet, lambda: original(saver, *arguments, **named))

    acting.replaced.around(owner, name, saving)


def _tensors(acting: Acting, watch: _Watch, module: ModuleType, name: str) -> None:
    def saving(original: Any, value: Any, *arguments: Any, **named: Any) -> Any:
        result = original(value, *arguments, **named)
        path = named.get("f", named.get("filename", arguments[0] if arguments else None))
        if isinstance(path, (str, os.PathLike)) and watch.applies() and not acting.in_trainer:
            watch.tensors(f"{module.__name__.partition('.')[0]}.{name}", str(path), value)
        return result

    acting.replaced.around(module, name, saving)


class _Watch:
    """``depth``: calls that save and are running: the outermost one is told."""

    def __init__(self, acting: Acting) -> None:
        self._acting = acting
        self._depth = 0
        self._expected: dict[str, tuple[int, ...]] | None = None
        #: Name of the adapter that is trained.
        self._name = "default"

    def applies(self) -> bool:
        """Whether this is a call of the user's in one of several processes."""
        return not self._depth and not self._acting.in_contract and processes.size() > 1

    def folder(self, by: str, folder: Any, quiet: bool, call: Any) -> Any:
        """Call, and look at what is in the folder then. ``quiet``: nothing has to be."""
        place = caller()
        self._depth += 1
        error = ""
        try:
            return call()
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"[:300]
            raise
        finally:
            self._depth -= 1
            if folder is not None and not quiet and processes.rank() == 0:
                with self._acting.ours():
                    self._expected_shapes()  # and the name of the adapter
                    found = read_adapter(self._path(folder), self._name)
                    self._tell(by, str(folder), found, error, place)

    def tensors(self, by: str, path: str, value: Any) -> None:
        """Look at what was written to a file by the user's own call."""
        place = caller()
        with self._acting.ours():
            found = {name: shape for name, shape in _shapes(value) if _ADAPTERS in name}
            if found or (isinstance(value, Mapping) and not value):
                self._tell(by, path, found, "", place)

    def _path(self, folder: Any) -> Path:
        """Where the folder really is, once what writes to it has been redirected."""
        full = os.path.abspath(os.fspath(folder))
        if full.startswith(str(self._acting.session.folder)):
            return Path(full)
        return Path(str(self._acting.session.outputs) + os.path.splitdrive(full)[1])

    def _tell(
        self,
        by: str,
        path: str,
        found: Mapping[str, tuple[int, ...]] | None,
        error: str,
        place: Any,
    ) -> None:
        expected = self._expected_shapes()
        if not expected:
            return
        there = {plain_name(name, self._name): shape for name, shape in (found or {}).items()}
        held = {name: there[name] for name in expected if name in there}
        other = [name for name, shape in held.items() if shape != expected[name]]
        empty = [name for name in other if 0 in held[name]]
        self._acting.journal.tell(
            "saved_adapter",
            path=self._shown(path),
            by=by,
            written=found is not None,
            expected=len(expected),
            whole=len(held) - len(other),
            empty=empty[:_MOST_NAMES],
            partial=[name for name in other if name not in empty][:_MOST_NAMES],
            error=error,
            place=None if place is None else vars(place),
        )

    def _shown(self, path: str) -> str:
        """The path as the user has it."""
        root = str(self._acting.session.outputs)
        return path.removeprefix(root) if path.startswith(root) else os.path.abspath(path)

    def _expected_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of what the adapter has; empty where that is not known."""
        if self._expected is None:
            model = sharding.unsharded(self._acting).trained or self._acting.trained_model()
            self._name = "default" if model is None else _trained_adapter(model)
            self._expected = {} if model is None else _of_adapter(model, self._name)
        return self._expected


def _trained_adapter(model: Any) -> str:
    """The name of the first adapter that is trained: a second one may be there as a reference."""
    names: list[str] = list(getattr(model, "peft_config", {})) or ["default"]
    trained = [f"{name}." for name, one in model.named_parameters() if one.requires_grad]
    return next((one for one in names if any(f".{one}." in name for name in trained)), names[0])


def _of_adapter(model: Any, adapter: str) -> dict[str, tuple[int, ...]]:
    """What PEFT would save of a whole model: names to shapes."""
    import peft

    if adapter not in getattr(model, "peft_config", {}):
        return {}
    state = peft.get_peft_model_state_dict(model, adapter_name=adapter,
                                           save_embedding_layers=False)  # fmt: skip
    return {plain_name(name, adapter): tuple(value.shape) for name, value in state.items()}


def plain_name(name: str, adapter: str = "default") -> str:
    """A name without what wrappers put into it, the adapter's own name and where it is rooted."""
    for part in _OF_WRAPPERS:
        name = name.removeprefix(part) if part == "module." else name.replace(part, "")
    name = name.replace(f".{adapter}.", ".").replace("modules_to_save.", "")
    return name.removeprefix("base_model.model.")


def read_adapter(folder: Path, adapter: str = "default") -> dict[str, tuple[int, ...]] | None:
    """Names and shapes in the file of an adapter; ``None`` without one. PEFT gives each adapter
    with a name of its own a folder of that name."""
    if adapter != "default":
        folder = folder / adapter
    for path in (folder / name for name in _FILES):
        if not path.is_file():
            continue
        if path.suffix == ".bin":
            import torch

            return dict(_shapes(torch.load(path, map_location="cpu", weights_only=True)))
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return None


def _shapes(value: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors in a mapping, and in mappings in it; of a tensor that is
    spread over processes, of the part that is here."""
    if not isinstance(value, Mapping):
        return
    for name, item in value.items():
        if hasattr(item, "to_local"):
            yield str(name), tuple(item.to_local().shape)
        elif hasattr(item, "shape") and hasattr(item, "dtype"):
            yield str(name), tuple(item.shape)
        elif isinstance(item, Mapping):
            yield from _shapes(item)
