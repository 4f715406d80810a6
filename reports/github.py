"""``github``: workflow commands, which GitHub shows beside the changed lines.

See "Workflow commands for GitHub Actions" in GitHub's documentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_doctor.reports._records import Record, records, set_up
from lora_doctor.results.formats import one_after_another

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

NAME = "github"
join = one_after_another
_COMMANDS = {"error": "error", "warning": "warning", "info": "notice"}


def render(
    diagnosis: Diagnosis,
    *,
    color: bool = False,
    width: int = 80,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """A command on a line for each finding; nothing where nothing was found."""
    text = "".join(f"{_command(record, set_up(diagnosis))}\n" for record in records(diagnosis))
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _command(record: Record, set_up: str) -> str:
    properties = {"title": f"lora-doctor ({record.rule})"}
    if record.file:
        properties["file"] = record.file
    if record.file and record.line:
        properties["line"] = str(record.line)
    listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    told = record.message if record.file else f"{set_up}: {record.message}"
    return f"::{_COMMANDS[record.level]} {listed}::{_data(told)}"


def _data(text: str) -> str:
    """Escaped as the runner reads it back."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
