"""How a key of the recipe is given on a command line, and written on one again."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lora_doctor.errors import InputError


def _as_given(value: Any, option: str) -> Any:
    return value


@dataclass(frozen=True)
class Option:
    """The option of a recipe key; its spelling is that of the key where ``spelling`` is empty."""

    help: str
    #: What stands for the value in ``--help``, such as ``NAMES``; a pair of flags has none.
    metavar: str = ""
    #: What the command line makes of the word; ``bool`` is a pair of flags, ``--x`` and ``--no-x``.
    type: type[str | int | float | bool] = str
    #: ``--class`` for ``model_class``.
    spelling: str = ""
    #: Other spellings that are understood and never written.
    aliases: tuple[str, ...] = ()
    #: From a value of ``type`` and the option's spelling to the recipe's value; raises InputError.
    read: Callable[[Any, str], Any] = _as_given
    #: Which commands have it: ``recipe``: all that take a recipe. ``memory``: those that make the
    #: memory plan. ``data``: those that look at training data.
    group: Literal["recipe", "memory", "data"] = "recipe"
    #: May be given several times, which is the same as once with commas.
    several: bool = False

    @staticmethod
    def negation(spelling: str) -> str:
        """``--no-use-dora`` for ``--use-dora``."""
        return spelling.replace("--", "--no-", 1)

    def words(self, spelling: str, value: Any) -> list[str]:
        """The words of a command line that give this value (of ``type``) again."""
        if self.type is bool:
            return [spelling if value else self.negation(spelling)]
        whole = isinstance(value, float) and value.is_integer()
        return [spelling, str(int(value) if whole else value)]


def whole_where_possible(value: float, option: str) -> float | int:
    """16 for 16.0: alpha is written as a whole number wherever it is one."""
    return int(value) if value.is_integer() else value


def capitals(text: str, option: str) -> str:
    """CAUSAL_LM for causal_lm: PEFT takes capitals only."""
    return text.upper()


def parse_names(text: str, option: str) -> list[str]:
    """Names separated by commas.

    Raises:
        InputError: there is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"{option}: no name given; leave it out for none")
    return names


def parse_target_modules(text: str, option: str = "--target-modules") -> str | list[str]:
    """Names separated by commas, a regular expression, or all-linear.

    Raises:
        InputError: the text is empty or a regular expression that does not compile.
    """
    if text == "all-linear":
        return text
    if re.search(r"[\\*+?()\[\]|^$]", text):
        try:
            re.compile(text)
        except re.error as error:
            raise InputError(f"{option}: {text!r} is not a regular expression: {error}") from None
        return text
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"{option}: no name given; write q_proj,v_proj or all-linear")
    return names
