"""The results of several set-ups in one file, or on standard output, where their format can hold
them: what GitHub, GitLab and others read is one file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_doctor.cli import streams
from lora_doctor.errors import InputError

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis


@dataclass(frozen=True)
class JointOutputs:
    """What is written once all set-ups are checked. ``files``: format and file. ``printed``: the
    format of standard output, empty where each set-up prints its own result."""

    files: tuple[tuple[str, str], ...] = ()
    printed: str = ""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> JointOutputs:
        """Those of the command's options.

        Raises:
            InputError: standard output is to hold the results of a format that holds one, or a file
                could not be written later.
        """
        from lora_doctor.files import check_writable
        from lora_doctor.results.formats import can_join, streams_results

        format, file = options["output_format"], options["output_file"]
        files = [pair for pair in options.get("outputs") or () if can_join(pair[0])]
        printed = ""
        if file is not None:
            files += [(format, file)] if can_join(format) else []
        elif not can_join(format):
            raise InputError(
                f"--output-format {format}: holds one result, and the project has several set-ups; "
                f"give --output {format}=FILE, which writes a file for each"
            )
        elif not streams_results(format):
            printed = format
        for _, path in files:
            check_writable(path)
        return cls(tuple(files), printed)

    def left_to(self, set_up: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of one set-up, without what is written at the end; the other files get its
        name before their suffix: ``a.html``, ``a.sft.html``."""
        found = dict(given)
        if found.get("outputs"):
            apart = (pair for pair in found["outputs"] if tuple(pair) not in self.files)
            found["outputs"] = [(name, _own(file, set_up)) for name, file in apart]
        if self.printed or (found.get("output_format"), found.get("output_file")) in self.files:
            found["output_file"] = os.devnull
        elif found.get("output_file"):
            found["output_file"] = _own(found["output_file"], set_up)
        return found

    def write(self, found: Mapping[str, Diagnosis], *, verbose: bool) -> None:
        """Write the results of the set-ups, by their names."""
        from lora_doctor.files import write_text
        from lora_doctor.results.formats import render_joint

        for format, file in self.files:
            write_text(file, render_joint(found, format, verbose=verbose))
        if self.printed:
            encoding = streams.results().encoding or "utf-8"
            text = render_joint(found, self.printed, verbose=verbose, encoding=encoding)
            streams.write(text, end="")


#: Where every set-up writes its own result.
NONE = JointOutputs()


def baseline_of(file: str, set_up: str) -> str:
    """The set-up's own result beside ``file``, where an earlier run of all set-ups wrote one."""
    own = _own(file, set_up)
    return own if Path(own).is_file() else file


def folder_of(folder: str, set_up: str) -> str:
    """The set-up's own folder in ``folder``."""
    return str(Path(folder) / _as_name(set_up))


def _own(file: str, set_up: str) -> str:
    path = Path(file)
    return str(path.with_name(f"{path.stem}.{_as_name(set_up)}{path.suffix}"))


def _as_name(set_up: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in set_up)
