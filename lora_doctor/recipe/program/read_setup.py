"""From the calls of a program to a recipe: each key with its value and where that is written."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.recipe.impossible import Impossible
from lora_doctor.recipe.keys import (
    ADAPTER_KEYS,
    ALIASES,
    BY_NAME,
    DATA_KEYS,
    FOUND_OUT_KEYS,
    LOADING_KEYS,
    PLANNING_KEYS,
    QUANTIZATION_KEYS,
    TRAINING_KEYS,
    WRAPPING_KEYS,
    check_value,
    known_keys,
)
from lora_doctor.recipe.program.input_gradients import makes_inputs_need_gradients
from lora_doctor.recipe.program.objects import (
    Roles,
    Settings,
    class_of,
    find_roles,
    is_none,
    is_saved_adapter,
    is_wrap,
    settings_of,
    text_of,
    top,
)
from lora_doctor.recipe.program.pins import other_releases
from lora_doctor.recipe.program.saved_adapter import base_of_config, named_adapter
from lora_doctor.recipe.program.setup import Setting, Setup, is_program
from lora_doctor.recipe.program.switches import checkpointing, mixed_precision
from lora_doctor.recipe.program.wrapping import around_the_model
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.recipe.written import Written
from lora_doctor.static.adapter_files import CONFIG
from lora_doctor.static.installed.peft_types import peft_type_of
from lora_doctor.static.named_file import named_file
from lora_doctor.static.piece import read_json_object
from lora_doctor.static.place import Place
from lora_doctor.static.program.program import Program, program_bytes, read_program
from lora_doctor.static.program.started import Start
from lora_doctor.static.program.values import (
    Call,
    Items,
    Known,
    NotPlainError,
    ReferenceName,
    Unknown,
    Value,
    leaves,
    plain,
)
from lora_doctor.text import short_path

#: Keys of the training loop that change how a model trains, and not only how fast or how long.
_DECISIVE = (
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "fp16", "bf16",
    *ADAPTER_KEYS, *LOADING_KEYS,
)  # fmt: skip


_OF_ARGUMENTS = (*TRAINING_KEYS, *DATA_KEYS, *PLANNING_KEYS)


#: Whose constants are called what they are: ``torch.bfloat16``, ``peft.TaskType.CAUSAL_LM``.
_NAMED = ("torch", "peft", "transformers", "trl")
#: Unsloth's loaders quantize unless they are told not to (2026.11).
_UNSLOTH_DEFAULTS = {"load_in_4bit": True}


def read_setup(
    path: Path,
    data: bytes | None = None,
    arguments: tuple[str, ...] = (),
    start: Start | None = None,
    beside: Mapping[Path, bytes] | None = None,
) -> Setup:
    """The set-up in a script or notebook; ``data``: its content instead of what the file has, and
    ``beside``: that of files which it imports.
    ``start``: the command in a shell file that starts it with these ``arguments``.

    Raises:
        InputError: it cannot be read, or a value is none that its key can have (with the line).
    """
    if data is None:
        _read.cache_clear()  # what it imports may be another by now, too
        data = program_bytes(path)
    return _read(path, data, arguments, start, tuple((beside or {}).items()))


@functools.lru_cache(maxsize=16)
def _read(
    path: Path,
    data: bytes,
    arguments: tuple[str, ...],
    start: Start | None,
    beside: tuple[tuple[Path, bytes], ...],
) -> Setup:
    program = read_program(path, data, arguments=arguments, start=start, beside=dict(beside))
    return _Reader(program).read()


@dataclass
class _Reader:
    program: Program
    settings: dict[str, Setting] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    impossible: dict[str, Impossible] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    parts: dict[str, Call] = field(default_factory=dict)
    #: Whether the adapter is made by the config of a saved one.
    of_file: bool = False
    other_quantization: str = ""

    def read(self) -> Setup:
        roles = find_roles(self.program)
        self._adapter(roles)
        self._loading(roles)
        self._training(roles)
        self._switched_on(roles)
        named, gap = named_adapter(self.program, roles)
        if gap is not None:
            self.asked.append(("adapter", str(gap)))
        model, place = self._model(roles)
        loader = roles.loader
        revision = loader.value("revision") if loader is not None else None
        trusted = loader.value("trust_remote_code") if loader is not None else None
        recipe = Recipe(
            self.values,
            dict.fromkeys(self.values, "file"),
            complete="adapter" in self.parts or self.of_file,
            file=self.program.path,
            names=self._names(),
            places=self._places(),
            written=self._written(),
            impossible=tuple(self.impossible.values()),
        )
        return Setup(
            self.program, roles, recipe, self.settings, self.parts, model, place,
            revision.value if isinstance(revision, Known) else None,
            isinstance(trusted, Known) and trusted.value is True,
            tuple(self.asked),
            named,
            self.other_quantization,
            self.of_file,
        )  # fmt: skip

    # --- parts ---------------------------------------------------------------------------------

    def _adapter(self, roles: Roles) -> None:
        config = roles.adapter
        if roles.wrapper is not None and is_saved_adapter(roles.wrapper):
            return
        if isinstance(config, Unknown):
            self.asked.append(("peft_config", str(config)))
            return
        found = settings_of(config)
        if found is None or found.call is None:
            return
        name = found.call.method
        if is_wrap(found.call):
            self._set("peft_type", Setting(Known("LORA"), None, found.call))
        elif top(found.call.name) == "peft" and name == "from_pretrained":
            self._config_of_file(found.call, found.attributes)
            return
        elif top(found.call.name) == "peft":
            kind = peft_type_of(name)
            if kind is None:
                return
            self._set("peft_type", Setting(Known(kind), None, found.call))
        else:
            self.asked.append(("peft_config", f"`{found.call.span.text.split('(')[0]}(...)`, "
                               f"{found.call.place.inside}"))  # fmt: skip
            return
        self.parts["adapter"] = found.call
        known = known_keys()
        keys = [key for key in found.names() if key in known or self._other_type]
        self._take(found, [key for key in keys if key not in _OF_ARGUMENTS])
        self._open(found)
        if roles.wrapper is not None and is_wrap(roles.wrapper):
            self.parts["wrapping"] = roles.wrapper
            wrapping = Settings(roles.wrapper.keywords, {}, roles.wrapper)
            self._take(wrapping, WRAPPING_KEYS)

    def _config_of_file(self, call: Call, changed: Mapping[str, Value]) -> None:
        """A new adapter by the config of a saved one, with the attributes that the program sets on
        it. Nothing of it has a place in the program: an edit is made by hand."""
        name = text_of(call.value("pretrained_model_name_or_path", 0))
        folders = (Path(), self.program.path.parent)
        file = named_file(f"{name}/{CONFIG}", folders) if name is not None else None
        if file is None:
            self.asked.append(("peft_config", f"`{call.span.text}`, {call.place.inside}"))
            return
        self.of_file = True
        for key, value in read_json_object(file).items():
            if key in known_keys() and value is not None:
                name = ALIASES.get(key, key)
                checked = check_value(name, value, short_path(str(file)))
                self._set(name, Setting(Known(checked), None, None))
        for key, own in changed.items():
            if key in known_keys():
                self._set(ALIASES.get(key, key), Setting(own, None, call))

    @property
    def _other_type(self) -> bool:
        return str(self.values.get("peft_type", "LORA")) != "LORA"

    def _loading(self, roles: Roles) -> None:
        loader = roles.loader
        if loader is None:
            self._loading_by_trainer(roles)
            return
        self.parts["loading"] = loader
        found = Settings(loader.keywords, {}, loader, loader.open)
        unsloth = top(loader.name) == "unsloth"
        name = class_of(loader).replace("AutoLigerKernel", "AutoModel")  # a thin layer around it
        name = "AutoModelForCausalLM" if unsloth else name
        if not is_saved_adapter(loader):
            self._set("model_class", Setting(Known(name), None, loader))
        self._take(found, (*LOADING_KEYS, "torch_dtype"))
        if unsloth:
            for key, value in _UNSLOTH_DEFAULTS.items():
                if key not in loader.keywords:
                    self._set(key, Setting(Known(value), None, loader))
        self._quantization(found.value("quantization_config"))
        self._open(found)

    def _loading_by_trainer(self, roles: Roles) -> None:
        """The trainer loads the model itself, by ``model_init_kwargs`` of its arguments."""
        arguments = settings_of(roles.training)
        given = settings_of(arguments.value("model_init_kwargs")) if arguments else None
        if given is not None:
            self._take(given, (*LOADING_KEYS, "torch_dtype"))
            self._quantization(given.value("quantization_config"))

    def _quantization(self, value: Value | None) -> None:
        if is_none(value):
            return
        found = settings_of(value)
        if found is None or found.call is None or found.call.method != "BitsAndBytesConfig":
            if isinstance(value, Unknown):
                self.asked.append(("load_in_4bit", str(value)))
            elif found is not None and found.call is not None:
                self._other_quantization(found, found.call)
            return
        self.parts["quantization"] = found.call
        self._take(found, QUANTIZATION_KEYS)
        self._open(found)

    def _other_quantization(self, found: Settings, call: Call) -> None:
        """One that is not bitsandbytes': of a checkpoint's own it may say that it is to be loaded
        in floating point (`Mxfp4Config(dequantize=True)`)."""
        dequantize = found.value("dequantize")
        if isinstance(dequantize, Known) and dequantize.value is True:
            self._set("dequantize", Setting(dequantize, call.argument("dequantize"), call))
            return
        self.other_quantization = f"`{call.method}`, {call.place.inside}"
        self.asked.append(("load_in_4bit", f"{self.other_quantization}: only bitsandbytes is read"))

    def _training(self, roles: Roles) -> None:
        found = settings_of(roles.training)
        if found is None:
            if isinstance(roles.training, Unknown):
                self.asked.append(("args", str(roles.training)))
            return
        if found.call is not None:
            for part in ("training", "data", "planning"):
                self.parts[part] = found.call
        names = [name for name in found.names() if ALIASES.get(name, name) in _OF_ARGUMENTS]
        self._take(found, names)
        if found.open is not None:
            self.asked.append(("args", str(found.open)))

    def _switched_on(self, roles: Roles) -> None:
        """What calls turn on that are no arguments of a trainer."""
        half = mixed_precision(self.program, roles)
        if half is not None:
            self._set(half[0], Setting(Known(True), None, half[1]))
        if not self.values.get("gradient_checkpointing"):
            call = checkpointing(self.program, roles, self.values)
            if call is not None:
                self._set("gradient_checkpointing", Setting(Known(True), None, call))
        if self.values.get("gradient_checkpointing"):
            call = makes_inputs_need_gradients(self.program, roles)
            if call is not None:
                self._set("enable_input_require_grads", Setting(Known(True), None, call))

    def _model(self, roles: Roles) -> tuple[str | None, Place | None]:
        argument = roles.named
        if roles.loader is not None:
            named = ("pretrained_model_name_or_path", "model_name", "model_id")
            found = [roles.loader.argument(name) for name in named]
            argument = next(filter(None, found), None) or roles.loader.argument("", 0)
        if argument is None:
            return None, None
        value, name = argument.value, text_of(argument.value)
        if isinstance(value, Known) and name is not None:
            return name, (value.span or argument.span).place
        of_config = base_of_config(self.program, value)
        if of_config is not None:
            return of_config, argument.span.place
        gap = value if isinstance(value, Unknown) else None
        text = str(gap) if gap else f"`{argument.span.text}`, {argument.span.place.inside}"
        self.asked.append(("model", text))
        return None, argument.span.place

    # --- keys ----------------------------------------------------------------------------------

    def _take(self, found: Settings, names: Any) -> None:
        for name in names:
            value = found.value(name)
            if value is None:
                continue
            attribute = name in found.attributes
            argument = None if attribute else found.arguments.get(name)
            self._set(ALIASES.get(name, name), Setting(value, argument, found.call))

    def _open(self, found: Settings) -> None:
        if found.open is not None:
            self.asked.append(("**", str(found.open)))

    def _set(self, key: str, setting: Setting) -> None:
        place = _place(setting)
        try:
            value = _spelled(key, _said(setting.value))
        except NotPlainError as error:
            if key in _DECISIVE or (self._other_type and key not in BY_NAME):
                self.asked.append((key, _question(key, setting, error.unknown)))
            return
        if value is None or (key == "max_steps" and value == -1):
            return
        self.settings[key] = setting
        try:
            self.values[key] = check_value(key, value, str(place) if place else "")
        except InputError as error:
            if key not in FOUND_OUT_KEYS:
                raise
            self.values.pop(key, None)
            self.impossible[key] = Impossible(key, value, str(error), place)

    def _names(self) -> dict[str, str]:
        found = {
            key: setting.argument.name
            for key, setting in self.settings.items()
            if setting.argument is not None
        }
        return {key: name for key, name in found.items() if name != key}

    def _places(self) -> dict[str, Place]:
        places = {key: _place(setting) for key, setting in self.settings.items()}
        return {key: place for key, place in places.items() if place is not None}

    def _written(self) -> Written:
        return Written(
            parts={part: call.place for part, call in self.parts.items()},
            asked=tuple(text for _, text in self.asked),
            assumed=tuple(dict.fromkeys(str(one) for one in self.program.assumed)),
            first_rounds=tuple(
                f"read for the first of {rounds} rounds of the loop over {loop}"
                for loop, rounds in self.program.first_rounds
            ),
            other_releases=other_releases(self.program),
            around=around_the_model(self.program.calls),
            data=self.program.data,
            arguments=self.program.arguments,
            start=self.program.start,
            beside=self.program.beside,
        )


def _place(setting: Setting) -> Place | None:
    """Where the value stands: the literal, else the argument, else the call."""
    span = setting.value.span
    if span is None and isinstance(setting.value, Items) and setting.value.joined is not None:
        span = setting.value.joined[0].span
    if span is None and setting.argument is not None:
        span = setting.argument.span
    if span is None and setting.call is not None:
        span = setting.call.span
    return span.place if span is not None else None


def _said(value: Value) -> Any:
    """The plain value. The name of a constant of torch, PEFT or transformers says what it is; that
    of another library's, or of a file that was not found, says nothing.

    Raises:
        NotPlainError: it is not known.
    """
    found = plain(value)
    names = [leaf for leaf in leaves(found) if isinstance(leaf, ReferenceName)]
    if any(top(name) not in _NAMED for name in names):
        raise NotPlainError(value)
    return found


def _spelled(key: str, value: Any) -> Any:
    """The recipe's value for the program's: ``torch.bfloat16``, ``TaskType.CAUSAL_LM``."""
    if isinstance(value, ReferenceName):
        return str(value).rpartition(".")[2]
    if isinstance(value, tuple):
        return list(value)
    if key == "task_type" and isinstance(value, str):
        return value.rpartition(".")[2]
    return value


def _question(key: str, setting: Setting, unknown: Unknown | None) -> str:
    """What is not known, by its name and line, and how it can be said."""
    if unknown is not None and unknown.advice:
        return str(unknown)
    known = BY_NAME.get(key)
    option = known.spelling if known is not None and known.option is not None else ""
    span = setting.argument.span if setting.argument is not None else setting.value.span
    where = unknown
    if where is None and span is not None:
        code = " ".join(span.text.split())
        where = Unknown(code if len(code) <= 60 else f"{code[:57]}...", span.place)
    text = str(where) if where is not None else key
    return f"{text} ({key}): give {option}" if option else f"{text} ({key})"


def setup_of(recipe: Recipe) -> Setup | None:
    """The set-up that a recipe was read from; ``None`` where that was no program."""
    if recipe.file is None or recipe.written is None or recipe.written.data is None:
        return None
    if not is_program(recipe.file):
        return None
    written = recipe.written
    return read_setup(recipe.file, written.data, written.arguments, written.start, written.beside)


def read_program_recipe(
    path: Path, arguments: tuple[str, ...] = (), start: Start | None = None
) -> Recipe:
    """The recipe in a script or notebook, as :func:`read_setup`.

    Raises:
        InputError: as :func:`read_setup`, or it sets up no adapter, or part of it is not known.
    """
    setup = read_setup(path, None, arguments, start)
    if not setup.has_recipe:
        raise InputError(f"{path}: no adapter is set up there (LoraConfig, get_peft_model, ...)")
    return setup.recipe
