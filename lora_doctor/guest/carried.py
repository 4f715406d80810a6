"""A session that is carried in the environment itself, and in no folder.

For a run that may last for days: there is nothing that a cleaner of temporary files could take
away, nothing to remove afterwards, and nothing that another machine would have to see.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from lora_doctor.guest.import_hooks import ImportHooks
from lora_doctor.guest.replacing import Replacements
from lora_doctor.guest.session import SITE

#: Holds the whole session, for every process that is started in it.
VARIABLE = "LORA_DOCTOR_RUN"
#: Where ``env`` stands among the arguments of ``Popen``.
_ENV = 10


@dataclass(frozen=True)
class Carried:
    """``acts``: ``module:function`` of what a guest calls with this. ``options``: what they go by,
    plain data."""

    acts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The value of the variable."""
        return json.dumps({"acts": self.acts, "options": self.options}, sort_keys=True)

    @classmethod
    def read(cls, text: str) -> Carried:
        """The session of a variable.

        Raises:
            ValueError, KeyError, TypeError: it holds none.
        """
        data = json.loads(text)
        return cls(tuple(data["acts"]), data["options"])

    def environment(self, outer: Mapping[Any, Any]) -> dict[Any, Any]:
        """The environment of a process of this session; names and values that are bytes stay."""
        found = {key: value for key, value in outer.items() if os.fsdecode(key) != "PYTHONPATH"}
        path = _texts(outer).get("PYTHONPATH", "")
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SITE), path)))
        found.pop(os.fsencode(VARIABLE), None)
        return {**found, VARIABLE: self.text()}

    def reaches(self, environment: Mapping[str, str]) -> bool:
        """Whether a Python with this environment starts a guest of this session."""
        first = environment.get("PYTHONPATH", "").split(os.pathsep)
        return environment.get(VARIABLE) == self.text() and str(SITE) in first


def carry_on(carried: Carried) -> None:
    """Let the session reach what this process starts with an environment of its own making, too:
    the workers of ``torch.compile`` get a ``PYTHONPATH`` made of ``sys.path``."""
    hooks, replaced = ImportHooks(), Replacements()

    def started(original: Any, popen: Any, *arguments: Any, **named: Any) -> Any:
        given = arguments[_ENV] if len(arguments) > _ENV else named.get("env")
        outer = os.environ if given is None else given
        if isinstance(outer, Mapping) and not carried.reaches(_texts(outer)):
            if len(arguments) > _ENV:
                arguments = (*arguments[:_ENV], carried.environment(outer), *arguments[_ENV + 1 :])
            else:
                named["env"] = carried.environment(outer)
        return original(popen, *arguments, **named)

    def act(module: ModuleType) -> None:
        replaced.around(module.Popen, "__init__", started)

    hooks.after("subprocess", act)
    hooks.install()


def _texts(environment: Mapping[Any, Any]) -> dict[str, str]:
    return {os.fsdecode(key): os.fsdecode(value) for key, value in environment.items()}
