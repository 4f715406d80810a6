"""Where the adapters sit: towers as pictures of cells, laid out here and drawn by the template.

A cell is a kind of module (all ``q_proj`` of one tower); cells that repeat with the layers stand in
one block. Sizes are in the units of the SVG's own coordinates; a tower is :data:`WIDTH` wide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_doctor.reports._text import many, parameters, shorten, visible

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.structure import ModuleGroup, Structure, Tower
    from lora_doctor.results.verification import AdapterGroup, Verification

WIDTH = 340
_COLUMNS = 3
_GAP, _PAD = 8, 12
_FRAME = 330  # what is left beside the stack behind a repeated block
_CELL_WIDTH = round((_FRAME - 2 * _PAD - (_COLUMNS - 1) * _GAP) / _COLUMNS, 1)
_CELL_HEIGHT, _CAPTION, _HEADING = 38, 18, 24
#: Letters of the cell's font that fit beside each other.
_LABEL_CHARS = 14
#: Kinds of module that a LoRA adapter can be put on.
_ADAPTABLE = frozenset({"linear", "conv1d", "conv", "embedding", "parameter"})

#: State of a cell, and how the legend explains it.
STATES: Mapping[str, str] = {
    "learns": "adapted, every adapter got a gradient when run",
    "partly": "adapted, but some adapters got no gradient",
    "idle": "adapted, but no adapter got a gradient",
    "adapted": "adapted, not run",
    "none": "no adapter",
}


@dataclass(frozen=True)
class Cell:
    """One kind of module. ``filled``: width of the adapted share; ``change``: ``+`` or ``-`` when
    the fixes bring or take adapters."""

    x: float
    y: float
    width: float
    height: float
    filled: float
    state: str
    label: str
    count: str
    change: str
    description: str


@dataclass(frozen=True)
class Text:
    x: float
    y: float
    text: str
    style: str


@dataclass(frozen=True)
class Frame:
    """The rounded outline of a block; ``repeated`` ones are drawn as a stack."""

    y: float
    height: float
    repeated: bool


@dataclass(frozen=True)
class TowerPicture:
    title: str
    kind: str
    why: str
    size: str
    summary: str
    height: float
    frames: tuple[Frame, ...]
    texts: tuple[Text, ...]
    cells: tuple[Cell, ...]
    hidden: str


@dataclass(frozen=True)
class GroupRow:
    """One row of the table that says the same in words."""

    pattern: str
    class_name: str
    shape: str
    adapted: str
    state: str
    change: str


@dataclass(frozen=True)
class Picture:
    towers: tuple[TowerPicture, ...]
    legend: tuple[tuple[str, str], ...]
    rows: tuple[GroupRow, ...]
    hidden_rows: int
    hidden_towers: tuple[str, ...]
    summary: str
    changes: frozenset[str]


class _Adapters:
    """What the verifications saw of each module group."""

    def __init__(self, before: Verification | None, after: Verification | None) -> None:
        self.before = _by_pattern(before)
        self.after = _by_pattern(after)
        self.compared = bool(self.before) and bool(self.after)

    def state(self, group: ModuleGroup) -> str:
        if not group.adapted:
            return "none"
        seen = self.before.get(group.pattern)
        if seen is None:
            return "adapted"
        if seen.with_gradient >= seen.count:
            return "learns"
        return "partly" if seen.with_gradient else "idle"

    def change(self, group: ModuleGroup) -> str:
        if not self.compared:
            return ""
        then = group.pattern in self.after
        if then == bool(group.adapted):
            return ""
        return "+" if then else "-"


def _by_pattern(run: Verification | None) -> dict[str, AdapterGroup]:
    return {group.pattern: group for group in run.adapters} if run else {}


def picture(
    diagnosis: Diagnosis, *, most_cells: int = 36, most_towers: int = 8, most_rows: int = 120
) -> Picture | None:
    """The picture of the checked recipe; None when the model was not built."""
    structure = diagnosis.structure
    if structure is None or not structure.groups:
        return None
    adapters = _Adapters(diagnosis.before, diagnosis.after)
    parts = _by_tower(structure)
    # Towers with adapters first to be kept, then the large ones; drawn in the model's order.
    kept = sorted(
        parts, key=lambda part: (-sum(group.adapted for group in part[1]), -part[0].parameters)
    )[:most_towers]
    drawn = tuple(
        _tower(tower, groups, adapters, most_cells)
        for tower, groups in parts
        if any(tower is other for other, _ in kept)
    )
    states = {cell.state for tower in drawn for cell in tower.cells}
    groups = [group for _, members in parts for group in members]
    groups.sort(key=lambda group: not (group.adapted or adapters.change(group)))
    rows = tuple(_row(group, adapters) for group in groups[:most_rows])
    return Picture(
        drawn,
        tuple((state, words) for state, words in STATES.items() if state in states),
        rows,
        len(groups) - len(rows),
        tuple(
            visible(tower.path or "(whole model)", 120)
            for tower, _ in parts
            if not any(tower is other for other, _ in kept)
        )[:50],
        _summary(groups),
        frozenset(cell.change for tower in drawn for cell in tower.cells if cell.change),
    )


def _by_tower(structure: Structure) -> list[tuple[Tower, list[ModuleGroup]]]:
    """Towers with the groups that can carry an adapter, in the model's order."""
    from lora_doctor.results.structure import Tower

    members: dict[str, list[ModuleGroup]] = {}
    for group in structure.groups:
        if group.kind in _ADAPTABLE or group.adapted:
            members.setdefault(group.tower, []).append(group)
    known = {tower.path: tower for tower in structure.towers}
    return [
        (known.get(path) or Tower(path, "other", "is in no tower"), groups)
        for path, groups in members.items()
    ]


def _tower(
    tower: Tower, groups: list[ModuleGroup], adapters: _Adapters, most_cells: int
) -> TowerPicture:
    shown = _most_telling(groups, adapters, most_cells)
    frames, texts, cells = [], [], []
    y = 2.0
    for block, sections in _blocks(shown, tower.path):
        top = y
        count = max(group.count for _, members in sections for group in members)
        repeated = "*" in block
        y += _PAD
        if block:
            words = shorten(visible(block), 34) + (f"  × {count:,}" if repeated else "")
            texts.append(Text(2 + _PAD, y + 11, words, "block"))
            y += _HEADING
        for caption, members in sections:
            if caption:
                texts.append(Text(2 + _PAD, y + 9, shorten(visible(caption), 46), "caption"))
                y += _CAPTION
            for index, group in enumerate(members):
                column = index % _COLUMNS
                if index and not column:
                    y += _CELL_HEIGHT + _GAP
                x = 2 + _PAD + column * (_CELL_WIDTH + _GAP)
                cells.append(_cell(group, adapters, x, y))
            y += _CELL_HEIGHT + _GAP
        y += _PAD - _GAP
        frames.append(Frame(top, y - top, repeated))
        y += 14 if repeated else 8
    hidden = len(groups) - len(shown)
    return TowerPicture(
        visible(tower.path or "whole model", 80), tower.kind, visible(tower.why, 200),
        parameters(tower.parameters) if tower.parameters else "", _summary(groups),
        max(y, 20.0), tuple(frames), tuple(texts), tuple(cells),
        f"and {many(hidden, 'more kind')} of module, in the table below" if hidden else "",
    )  # fmt: skip


def _most_telling(groups: list[ModuleGroup], adapters: _Adapters, most: int) -> list[ModuleGroup]:
    """The groups with adapters, then the largest; in the order of the model."""
    rank = sorted(
        range(len(groups)),
        key=lambda i: (
            not (groups[i].adapted or adapters.change(groups[i])), -groups[i].parameters
        ),
    )  # fmt: skip
    return [groups[index] for index in sorted(rank[:most])]


def _blocks(
    groups: Iterable[ModuleGroup], tower: str
) -> list[tuple[str, list[tuple[str, list[ModuleGroup]]]]]:
    """Blocks (what repeats together) of sections (what has the same parent), as they come."""
    blocks: dict[str, dict[str, list[ModuleGroup]]] = {}
    for group in groups:
        block, section, _ = _split(group.pattern, tower)
        blocks.setdefault(block, {}).setdefault(section, []).append(group)
    return [(block, list(sections.items())) for block, sections in blocks.items()]


def _split(pattern: str, tower: str) -> tuple[str, str, str]:
    """A pattern as block (up to the last number that something follows), parent and leaf."""
    rest = pattern.removeprefix(f"{tower}.") if tower else pattern
    parts = rest.split(".")
    stars = [index for index, part in enumerate(parts[:-1]) if part == "*"]
    cut = stars[-1] + 1 if stars else 0
    inner = parts[cut:]
    leaf_parts = 2 if inner[-1] == "*" and len(inner) > 1 else 1
    return ".".join(parts[:cut]), ".".join(inner[:-leaf_parts]), ".".join(inner[-leaf_parts:])


def _cell(group: ModuleGroup, adapters: _Adapters, x: float, y: float) -> Cell:
    _, _, leaf = _split(group.pattern, group.tower)
    state, change = adapters.state(group), adapters.change(group)
    share = group.adapted / group.count if group.count else 0.0
    words = {"+": "; adapted after the fixes", "-": "; no adapter after the fixes"}.get(change, "")
    count = f"{group.adapted} of {group.count} " if group.adapted else ""
    description = f"{visible(group.pattern, 160)}: {count}{STATES[state]}{words}"
    return Cell(
        x, y, _CELL_WIDTH, _CELL_HEIGHT, round(_CELL_WIDTH * min(share, 1.0), 1), state,
        shorten(visible(leaf, 80), _LABEL_CHARS), f"{group.adapted} of {group.count}", change,
        description,
    )  # fmt: skip


def _row(group: ModuleGroup, adapters: _Adapters) -> GroupRow:
    change = {"+": "gets adapters", "-": "loses its adapters"}.get(adapters.change(group), "")
    return GroupRow(
        visible(group.pattern, 160), visible(group.class_name, 80),
        " × ".join(str(size) for size in group.shape),
        f"{group.adapted} of {group.count}", STATES[adapters.state(group)], change,
    )  # fmt: skip


def _summary(groups: list[ModuleGroup]) -> str:
    adapted, count = sum(g.adapted for g in groups), sum(g.count for g in groups)
    return f"{adapted:,} of {many(count, 'module')} adapted"
