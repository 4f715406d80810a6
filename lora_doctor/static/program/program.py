"""A training program, read: its units, its calls in their order, what could not be known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lora_doctor.errors import EvidenceError, InputError, NotPythonError
from lora_doctor.limits import PYTHON_BYTES, SCRIPT, bounded
from lora_doctor.static.piece import read_bytes
from lora_doctor.static.place import Place
from lora_doctor.static.program.notebook import CodeCell, code_cells, is_notebook, with_cells
from lora_doctor.static.program.started import Start
from lora_doctor.static.program.units import Span, Unit, magic_lines
from lora_doctor.static.program.values import AttributeRead, Call, ImportedName, Known, Unknown

if TYPE_CHECKING:
    from lora_doctor.static.program.follow import Follower

_BOM = "\ufeff"
#: A notebook holds its pictures.
NOTEBOOK_BYTES = 32 * PYTHON_BYTES
_INSTALL = re.compile(r"(?:uv\s+)?(?:python3?\s+-m\s+)?pip3?\s+install\s+(?P<words>.*)")
_REQUIREMENT = re.compile(
    r"""["']?(?P<name>[A-Za-z][\w.-]*)(?:\[[^\]]*\])?\s*(?P<pin>[<>=!~][^"'\s;#]*)["']?"""
)


@dataclass(frozen=True)
class Pin:
    """A release that the program installs or asks for."""

    #: As it is written.
    package: str
    #: Such as ``==4.44.2``; empty where any release will do.
    specifier: str
    #: Where it stands.
    place: Place


@dataclass(frozen=True, eq=False)
class Program:
    """What was read of a script or notebook."""

    path: Path
    data: bytes
    units: tuple[Unit, ...]
    cells: tuple[CodeCell, ...]
    calls: tuple[Call, ...]
    #: Questions about the GPU, answered as for one with bfloat16.
    assumed: tuple[Unknown, ...]
    pins: tuple[Pin, ...]
    #: The loops that load or train, of which the first round was read; each with its number of
    #: rounds.
    first_rounds: tuple[tuple[Unknown, int], ...] = ()
    #: What it imports from libraries, in the order in which it does.
    imports: tuple[ImportedName, ...] = ()
    #: Words of its command line that were given.
    arguments: tuple[str, ...] = ()
    #: The command in a shell file that starts it.
    start: Start | None = None
    #: How often each name is read in the units of the program itself.
    reads: Mapping[str, int] | None = None
    #: Attributes of libraries' objects that it reads, in their order.
    attribute_reads: tuple[AttributeRead, ...] = ()
    #: The same with those of the files that it imports, where it does.
    all_reads: Mapping[str, int] | None = None
    #: The files beside it that it imports, and the content of each as it was read.
    imported: tuple[Unit, ...] = ()
    beside: Mapping[Path, bytes] = field(default_factory=dict)

    def with_changes(
        self, changes: Sequence[tuple[Span, str]]
    ) -> tuple[bytes, Mapping[Path, bytes]]:
        """The file, and those that it imports, with these pieces of text replaced; all else byte
        for byte.

        Raises:
            InputError: two changes overlap, or one is in a file that is only read.
        """
        texts = {id(unit): unit.text for unit in (*self.units, *self.imported)}
        ordered = sorted(changes, key=lambda one: (one[0].start, one[0].end), reverse=True)
        last: dict[int, int] = {}
        for span, new in ordered:
            unit = span.unit
            if id(unit) not in texts:
                raise InputError(f"{unit.name}: is read by the program and not edited")
            if span.end > last.get(id(unit), len(unit.text)):
                raise InputError(f"{self.path}: two changes meet at {span.place}; edit it by hand")
            last[id(unit)] = span.start
            text = texts[id(unit)]
            texts[id(unit)] = text[: span.start] + new + text[span.end :]
        beside = dict(self.beside)
        for unit in self.imported:
            path = Path(unit.file)
            if texts[id(unit)] != unit.text:
                bom = _BOM if beside[path].startswith(_BOM.encode()) else ""
                beside[path] = f"{bom}{texts[id(unit)]}".encode()
        return self._encoded(texts), beside

    def _encoded(self, texts: Mapping[int, str]) -> bytes:
        bom = self.data.startswith(_BOM.encode())
        if not self.cells:
            text = texts[id(self.units[0])]
        else:
            by_number = {unit.cell: unit for unit in self.units}
            changed = {
                cell: texts[id(by_number[cell.number])]
                for cell in self.cells
                if cell.number in by_number
                and texts[id(by_number[cell.number])] != by_number[cell.number].text
            }
            text = with_cells(self.data.decode("utf-8-sig"), changed)
        return ((_BOM if bom else "") + text).encode("utf-8")


def program_bytes(path: Path) -> bytes:
    """The content of a script or notebook.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return read_bytes(path, NOTEBOOK_BYTES if path.suffix == ".ipynb" else PYTHON_BYTES)
    except EvidenceError as error:
        raise InputError(f"MODEL {str(path)!r}: {error}") from None


def read_program(
    path: Path,
    data: bytes,
    *,
    arguments: Sequence[str] = (),
    start: Start | None = None,
    beside: dict[Path, bytes] | None = None,
) -> Program:
    """Read a script or a notebook with this content. ``arguments``: words of its command line.
    ``start``: the command in a shell file that it is started by. ``beside``: content of files that
    it imports, in the place of what they have.

    Raises:
        InputError: it is neither.
    """
    from lora_doctor.static.program.follow import Follower

    where = f"MODEL {str(path)!r}"
    try:
        text = data.decode("utf-8-sig")
        with bounded(SCRIPT):
            follower = Follower(path.parent, arguments, start, beside)
            return _read(path, data, text, follower)
    except UnicodeDecodeError:
        raise InputError(f"{where}: is not UTF-8 text") from None
    except NotPythonError as error:
        raise InputError(f"{where}: is {error}") from None
    except EvidenceError as error:
        raise InputError(f"{where}: {error}") from None
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply to be read") from None


def _read(path: Path, data: bytes, text: str, follower: Follower) -> Program:
    cells: tuple[CodeCell, ...] = ()
    if path.suffix == ".ipynb" or is_notebook(text):
        cells = tuple(code_cells(text, path.name))
        units = [Unit(str(path), cell.text, cell.number) for cell in cells]
    else:
        units = [Unit(str(path), text)]
    follower.scope.names["__file__"] = Known(str(path))
    for unit in units:
        if unit.python.strip() or not cells:
            follower.follow(unit)
    follower.follow_uncalled()
    return Program(
        path=path,
        data=data,
        units=tuple(units),
        cells=cells,
        calls=tuple(follower.calls),
        assumed=tuple(follower.assumed),
        imports=tuple(follower.imports),
        first_rounds=tuple(follower.first_rounds),
        pins=tuple(pin for unit in units for pin in _pins(unit)),
        attribute_reads=tuple(follower.attribute_reads),
        arguments=follower.script_arguments,
        start=follower.start,
        reads=follower.reads([one for one in follower.units if one.editable]),
        all_reads=follower.reads(follower.units) if follower.imported else None,
        imported=tuple(follower.imported),
        beside=follower.beside,
    )


def _pins(unit: Unit) -> list[Pin]:
    """The releases that ``pip install`` lines of a cell name."""
    found = []
    for number, line in magic_lines(unit.text) if unit.cell is not None else ():
        install = _INSTALL.match(line)
        for match in _REQUIREMENT.finditer(install["words"]) if install else ():
            place = Place(f"{unit.file}:cell {unit.cell}", number)
            found.append(Pin(match["name"].lower().replace("_", "-"), match["pin"], place))
    return found
