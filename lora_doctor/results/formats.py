"""The report formats that there are, each a module with ``NAME`` and ``render``.

Our own lie in ``reports/``; an installed package adds one through an entry point of the group
``lora_doctor.reports`` that names a module.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, cast

from lora_doctor.discovery import find_modules, is_added_to, module_names
from lora_doctor.errors import InputError
from lora_doctor.results.secrets import hidden_in

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

ENTRY_POINTS = "lora_doctor.reports"
#: The package of our own formats.
_OWN = "lora_doctor.reports"
#: The format for people at a terminal.
DEFAULT = "full"


class Format(Protocol):
    """What a module in ``reports/`` offers."""

    #: What ``--output-format`` calls it.
    NAME: str

    def render(
        self, diagnosis: Diagnosis, *, color: bool, width: int, verbose: bool, encoding: str
    ) -> str:
        """The report as text that ends in a newline, or nothing at all.

        ``width`` in columns; ``color``: ANSI escapes are welcome; ``encoding``: of the place where
        the text will go, characters that it lacks are replaced.
        """

    # And, where one file can hold the results of several set-ups,
    # ``join(texts: Mapping[str, str]) -> str``: what ``render`` gave for each, by its name.


def one_after_another(texts: Mapping[str, str]) -> str:
    """``join`` of a format whose results stand for themselves, one below the other."""
    return "".join(texts.values())


def find_formats() -> dict[str, Format]:
    """Every format by its name, the default first. Cheap: rich and jinja2 are not imported.

    Raises:
        InputError: a module lacks ``NAME`` or ``render``, two have one name, or the module of an
            installed package cannot be imported.
    """
    modules = find_modules(_OWN, ENTRY_POINTS)
    formats: dict[str, Format] = {}
    for module in modules:
        if not isinstance(getattr(module, "NAME", None), str) or not hasattr(module, "render"):
            raise InputError(
                f"report format {module.__name__}: has no NAME or no render; "
                "copy reports/concise.py, and begin the name of a helper with _"
            )
        found = cast(Format, module)
        if formats.setdefault(found.NAME, found) is not found:
            other = cast("object", formats[found.NAME])
            raise InputError(
                f"report format {found.NAME!r}: is in {getattr(other, '__name__', other)} and "
                f"{module.__name__}; rename one of them"
            )
    return {name: formats[name] for name in sorted(formats, key=lambda n: (n != DEFAULT, n))}


def find_format(name: str) -> Format | None:
    """The format of this name; ``None`` where there is none. The others are not imported where the
    name is that of a file of ours and nobody adds formats.

    Raises:
        InputError: as :func:`find_formats`.
    """
    if not is_added_to(ENTRY_POINTS) and name in module_names(_OWN):
        module = importlib.import_module(f"{_OWN}.{name}")
        if getattr(module, "NAME", None) == name and hasattr(module, "render"):
            return cast(Format, module)
    return find_formats().get(name)


def render(
    diagnosis: Diagnosis,
    format: str = DEFAULT,
    *,
    color: bool = False,
    width: int = 80,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """The diagnosis in one format, without the secrets that it may quote.

    ``color`` is withdrawn when the environment sets ``NO_COLOR``. The result can be encoded in
    ``encoding`` without error.

    Raises:
        ValueError: there is no such format.
    """
    found = find_format(format)
    if found is None:
        raise ValueError(f"format {format!r}: expected one of {', '.join(find_formats())}")
    return found.render(
        hidden_in(diagnosis),
        color=color and not os.environ.get("NO_COLOR"),
        width=width,
        verbose=verbose,
        encoding=encoding,
    )


def can_join(format: str) -> bool:
    """Whether one file of this format holds the results of several set-ups."""
    return hasattr(find_format(format), "join")


def streams_results(format: str) -> bool:
    """Whether each result of this format can be printed as soon as it is there."""
    return getattr(find_format(format), "join", None) is one_after_another


def render_joint(
    diagnoses: Mapping[str, Diagnosis],
    format: str,
    *,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """The diagnoses of several set-ups, by their names, as one text of a format that
    :func:`can_join`; without colour, as :func:`render` gives each."""
    join: Callable[[Mapping[str, str]], str] = getattr(find_format(format), "join")  # noqa: B009
    return join(
        {
            name: render(diagnosis, format, verbose=verbose, encoding=encoding)
            for name, diagnosis in diagnoses.items()
        }
    )
