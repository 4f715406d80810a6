"""Names that a program imports and that the installed release of their library does not have."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.installed.installed_names import importable, module_words
from lora_doctor.static.installed.signatures import installed_version
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import ImportedName

#: Libraries whose modules are plain Python, so that their sources say what they have.
_PACKAGES = (
    "transformers", "peft", "trl", "accelerate", "datasets", "sentence_transformers",
)  # fmt: skip
#: How alike the old and the new name of a function are at least.
_ALIKE = 0.85


@dataclass(frozen=True)
class GoneName:
    """A name, or a module (``name`` empty), that the installed release does not have."""

    #: The module that is imported from.
    module: str
    #: The name; empty where the module itself is missing.
    name: str
    #: The package of the module.
    package: str
    #: Its installed release.
    version: str
    #: Where it is imported.
    place: Place
    #: Where the installed packages have a thing of that name, or one of nearly that name; empty
    #: where they have none.
    now: str = ""
    #: Whether it is an attribute of an imported module (``peft.name(...)``) and no import.
    attribute: bool = False

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module

    @property
    def message(self) -> str:
        """What Python will say."""
        if self.attribute:
            return f"module {self.module!r} has no attribute {self.name!r}"
        if not self.name:
            return f"No module named {self.module!r}"
        return f"cannot import name {self.name!r} from {self.module!r}"

    @property
    def raised(self) -> str:
        """The exception."""
        if self.attribute:
            return "AttributeError"
        return "ImportError" if self.name else "ModuleNotFoundError"


def gone_names(setup: Setup) -> Iterator[GoneName]:
    """What is imported, or called on an imported module, where that surely runs; each once.
    Libraries of which the program pins another release are passed over."""
    pinned = pinned_otherwise(setup.program)
    seen = set()
    used = [(one, False) for one in setup.program.imports]
    for one, attribute in (*used, *((one, True) for one in _of_calls(setup))):
        package = one.module.partition(".")[0]
        if not one.certain or package not in _PACKAGES or package in pinned:
            continue
        version = installed_version(package.replace("_", "-"))
        if version is None or (one.module, one.name) in seen:
            continue
        seen.add((one.module, one.name))
        place = one.span.place
        if importable(one.module) == "gone":
            yield GoneName(one.module, "", package, version, place, _now(one))
        elif one.name and importable(one.module, one.name) == "gone":
            yield GoneName(one.module, one.name, package, version, place, _now(one), attribute)


def _of_calls(setup: Setup) -> Iterator[ImportedName]:
    """The names that calls take from a module: ``peft.prepare_model_for_int8_training(model)``. A
    name that an import gave was asked about there, where a ``try`` may be ready for its failure."""
    for call in setup.program.calls:
        package, _, rest = call.name.partition(".")
        whole = call.span.text.partition("(")[0].count(".") == call.name.count(".")
        if rest and whole and not call.guarded and package in _PACKAGES and call.receiver is None:
            yield ImportedName(package, rest.partition(".")[0], call.span, call.certain)


def _now(gone: ImportedName) -> str:
    """Where the installed packages have this name, or one that is nearly the same."""
    name, package = gone.name or gone.module.rpartition(".")[2], gone.module.partition(".")[0]
    for module in (package, "torch.optim") if gone.name else ():
        if module != gone.module and importable(module, name) == "there":
            return f"{module}.{name}"
    near = difflib.get_close_matches(name, module_words(gone.module), n=3, cutoff=_ALIKE)
    found = (one for one in near if importable(gone.module, one) == "there")
    return next((f"{gone.module}.{one}" for one in found), "")
