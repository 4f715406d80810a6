"""The name under which a program has something of a library, and the import of what it lacks."""

from __future__ import annotations

import libcst as cst

from lora_doctor.recipe.program.splices import Splice
from lora_doctor.static.program.program import Program
from lora_doctor.static.program.units import Span, Unit


def name_of(program: Program, unit: Unit, module: str, name: str) -> tuple[str, list[Splice]]:
    """How ``unit`` writes ``module.name`` (``name`` itself a module where ``module`` is empty), and
    the import that has to be added for it. Imports of a notebook's earlier cells count."""
    upto = program.units.index(unit) + 1 if unit in program.units else 0
    known = None
    for one in program.units[:upto] or [unit]:
        for line in one.module.body:
            known = _imported_as(line, module, name) or known
    if known is not None:
        return known, []
    written = f"from {module} import {name}" if module else f"import {name}"
    return name, [_new_import(unit, written)]


def _imported_as(line: cst.CSTNode, module: str, name: str) -> str | None:
    if not isinstance(line, cst.SimpleStatementLine):
        return None
    for part in line.body:
        found = None
        if isinstance(part, cst.Import):
            found = _of_import(part, module, name)
        elif isinstance(part, cst.ImportFrom) and module:
            found = _of_import_from(part, module, name)
        if found is not None:
            return found
    return None


def _of_import(part: cst.Import, module: str, name: str) -> str | None:
    for item in part.names:
        dotted = cst.Module([]).code_for_node(item.name)
        if dotted == (module or name):
            alias = _alias(item) or dotted
            return f"{alias}.{name}" if module else alias
    return None


def _of_import_from(part: cst.ImportFrom, module: str, name: str) -> str | None:
    if part.module is None or part.relative:
        return None
    if cst.Module([]).code_for_node(part.module) != module:
        return None
    if isinstance(part.names, cst.ImportStar):
        return name
    same = (one for one in part.names if isinstance(one.name, cst.Name) and one.name.value == name)
    return next((_alias(one) or name for one in same), None)


def _alias(item: cst.ImportAlias) -> str | None:
    if item.asname is not None and isinstance(item.asname.name, cst.Name):
        return item.asname.name.value
    return None


def _new_import(unit: Unit, written: str) -> Splice:
    """The import on a line of its own: behind the last import at the top of the unit, else before
    its first statement (a docstring and ``__future__`` stay first)."""
    place: int | None = None
    first: int | None = None
    for line in unit.module.body:
        span = unit.span(line)
        if isinstance(line, cst.SimpleStatementLine) and _stays_first(line):
            place = unit.line_bounds(span.end)[1]
            continue
        first = unit.line_bounds(span.start)[0] if first is None else first
        if not (isinstance(line, cst.SimpleStatementLine) and _is_import(line)):
            break
        place = unit.line_bounds(span.end)[1]
    if place is None:
        place = first if first is not None else 0
    lead = ""
    if place == len(unit.text) and unit.text and not unit.text.endswith(("\n", "\r")):
        lead = unit.newline
    end = "" if lead else unit.newline
    return Span(unit, place, place), f"{lead}{written}{end}"


def _stays_first(line: cst.SimpleStatementLine) -> bool:
    only = line.body[0]
    if isinstance(only, cst.Expr):
        return isinstance(only.value, (cst.SimpleString, cst.ConcatenatedString))
    if not isinstance(only, cst.ImportFrom) or not isinstance(only.module, cst.Name):
        return False
    return only.module.value == "__future__"


def _is_import(line: cst.SimpleStatementLine) -> bool:
    return all(isinstance(part, (cst.Import, cst.ImportFrom)) for part in line.body)
