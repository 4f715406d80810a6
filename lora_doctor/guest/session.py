"""A session: the folder by which a parent and its guests talk. Data only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: Names the folder of the session to every process that is started in it.
VARIABLE = "LORA_DOCTOR_SESSION"
#: What `sitecustomize` lies in.
SITE = Path(__file__).absolute().parent / "site"
#: Exit code of a process that a guest has stopped.
STOPPED = 97

_FILE = "session.json"


@dataclass(frozen=True)
class Session:
    """``nonce``: what a guest repeats, so that an answer is one of this session. ``acts``:
    ``module:function`` of what a guest calls with the session. ``options``: what they go by."""

    folder: Path
    nonce: str
    acts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> Path:
        """One file for each process whose guest is in place."""
        return self.folder / "answers"

    @property
    def records(self) -> Path:
        """One file for each process, a record a line."""
        return self.folder / "records"

    @property
    def models(self) -> Path:
        """Small models that stand for large ones."""
        return self.folder / "models"

    @property
    def outputs(self) -> Path:
        """What the command writes, instead of where it would."""
        return self.folder / "outputs"

    def write(self) -> None:
        """Make the folders, and the file that guests read."""
        for folder in (self.answers, self.records, self.models, self.outputs):
            folder.mkdir(exist_ok=True)
        data = {**asdict(self), "folder": str(self.folder)}
        (self.folder / _FILE).write_text(json.dumps(data), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Session:
        """The session of a folder.

        Raises:
            OSError, ValueError: there is none.
        """
        data = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        return cls(Path(data["folder"]), data["nonce"], tuple(data["acts"]), data["options"])

    def environment(self, outer: Mapping[str, str]) -> dict[str, str]:
        """The environment of a process of this session."""
        path = os.pathsep.join(filter(None, (str(SITE), outer.get("PYTHONPATH", ""))))
        return {**outer, VARIABLE: str(self.folder), "PYTHONPATH": path}

    def reaches(self, environment: Mapping[str, str]) -> bool:
        """Whether a Python with this environment starts a guest of this session."""
        first = environment.get("PYTHONPATH", "").split(os.pathsep)
        return environment.get(VARIABLE) == str(self.folder) and str(SITE) in first
