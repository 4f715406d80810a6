"""``grouped``: findings under the file, or the set-up, that they are in; for many set-ups at once.

A healthy recipe prints nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_doctor.reports._records import UNDETERMINED, records, set_up
from lora_doctor.results.formats import one_after_another

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

NAME = "grouped"
join = one_after_another


def render(
    diagnosis: Diagnosis,
    *,
    color: bool = False,
    width: int = 80,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """Never coloured, never wrapped."""
    groups: dict[str, list[str]] = {}
    for record in records(diagnosis):
        # An open question says itself that it is one.
        code = "" if record.rule == UNDETERMINED else f"{record.rule} "
        text = f"  {code}{record.message} [{record.level}, {record.where}]"
        groups.setdefault(record.file or set_up(diagnosis), []).append(text)
    blocks = ["\n".join([f"{name}:", *lines]) for name, lines in groups.items()]
    text = "".join(f"{block}\n" for block in blocks)
    return text.encode(encoding, "backslashreplace").decode(encoding)
