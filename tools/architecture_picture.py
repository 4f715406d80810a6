"""Write the picture in `docs/architecture.md`: `python -m tools.architecture_picture`.

The rooms are the layers of the import-linter contract in `pyproject.toml`, in its order, each with
the first sentence of its docstring. The arrows are those of the code (imports inside functions and
under `TYPE_CHECKING` included), without those that follow from others: where A uses B and B uses C,
the arrow from A to C is not drawn. A test fails when the picture is stale.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = re.compile(r"(```mermaid\n)(.*?)(```\n)", re.DOTALL)


def layers() -> list[str]:
    """The rooms from top to bottom, as the layers contract has them."""
    from importlinter.api import read_configuration

    contracts = read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    found = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [str(name) for name in found[0]]


def arrows(rooms: list[str]) -> list[tuple[str, str]]:
    """Which room imports which, from top to bottom, without what follows from other arrows."""
    import grimp

    graph = grimp.build_graph("lora_doctor")
    for room in rooms:
        graph.squash_module(f"lora_doctor.{room}")
    direct = {
        room: {
            other.rpartition(".")[2]
            for other in graph.find_modules_directly_imported_by(f"lora_doctor.{room}")
        }
        & (set(rooms) - {room})
        for room in rooms
    }
    reached: dict[str, set[str]] = {}
    for room in reversed(rooms):  # the contract holds: what a room imports stands below it
        below = direct[room]
        reached[room] = below.union(*(reached[other] for other in below))
    return [
        (room, other)
        for room in rooms
        for other in sorted(direct[room], key=rooms.index)
        if not any(other in reached[between] for between in direct[room] - {other})
    ]


def purpose(room: str) -> str:
    """The first sentence of a room's docstring."""
    folder = ROOT / "lora_doctor" / room
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(re.split(r"(?<=\.)\s|\n\n", text, maxsplit=1)[0].split()).rstrip(".:")


def picture() -> str:
    """The rooms and arrows as a Mermaid flowchart."""
    rooms = layers()
    lines = ["flowchart TD"]
    for room in rooms:
        label = purpose(room).replace("`", "").replace('"', "'")
        lines.append(f'    {room}["<b>{room}</b><br/>{label}"]')
    lines += [f"    {room} --> {other}" for room, other in arrows(rooms)]
    return "\n".join(lines) + "\n"


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    drawn = picture()
    PAGE.write_text(PICTURE.sub(lambda m: m[1] + drawn + m[3], text), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
