"""What the parts that follow a program are handed: the place that has been reached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lora_doctor.static.program.units import Unit
from lora_doctor.static.program.values import (
    Argument,
    AttributeRead,
    Function,
    ModuleValue,
    Scope,
    Thing,
    Unknown,
    Value,
)

if TYPE_CHECKING:
    import libcst as cst

    from lora_doctor.static.program.started import Start


class Context(Protocol):
    """A program that is being followed."""

    #: The file, or the cell, and the names that are known in it.
    unit: Unit
    scope: Scope
    #: The folder of the program, and the words of its command line.
    folder: Path
    script_arguments: tuple[str, ...]
    #: The command in a shell file that starts it.
    start: Start | None
    #: Questions about the GPU, answered as for one with bfloat16.
    assumed: list[Unknown]
    #: Files beside the program that it imports; ``None`` while one is being followed.
    modules: dict[Path, ModuleValue | None]
    #: Attributes of libraries' objects that are read.
    attribute_reads: list[AttributeRead]
    #: The ``try`` blocks around that are ready for a name that is not there.
    guarded: int
    #: The content of those files; what is given for one is read in the place of what it has.
    beside: dict[Path, bytes]
    imported: list[Unit]
    #: Conditions around that are not known, and loops of which one round stands for all.
    unsure: int
    repeated: int

    def follow(self, unit: Unit) -> None:
        """Follow a file, or a cell after those before it."""

    def block(self, body: Sequence[cst.CSTNode]) -> bool:
        """Follow statements; whether they are left before their end."""

    def suite(self, suite: cst.BaseSuite) -> bool:
        """Follow the body of a statement; whether it is left before its end."""

    def value(self, node: cst.BaseExpression) -> Value:
        """The value of an expression."""

    def unknown(self, node: cst.CSTNode, advice: str = "") -> Unknown:
        """The expression as something that the text does not say."""

    def note_read(
        self, owner: Thing, name: str, node: cst.CSTNode, kind: str = "attribute"
    ) -> None:
        """Record what is read off an object: see :class:`AttributeRead`."""

    def bind(self, target: cst.CSTNode, value: Value) -> None:
        """Give the names of a target their values."""

    def doubted(self, value: Value, node: cst.CSTNode) -> bool:
        """Whether a change of a value that is made here may be made never, or several times."""

    def look_up(self, name: str) -> Value | None:
        """What a name stands for here."""

    def attribute(self, owner: Value, name: str) -> Value | None:
        """An attribute of a value."""

    def call(self, node: cst.Call) -> Value:
        """Record a call, and what it returns."""

    def run(
        self,
        function: Function,
        positional: Sequence[Argument],
        keywords: dict[str, Argument],
    ) -> Value:
        """Follow a function of the user's with these arguments; what it returns."""
