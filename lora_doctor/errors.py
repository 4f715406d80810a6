"""Errors that lora-doctor raises on purpose.

Every one is importable from ``lora_doctor`` itself:

    LoraDoctorError
    ├── InputError        what the user gave cannot be used: exit code 2
    │   └── HalfDoneError writing failed, and what had been replaced could not be put back
    ├── EvidenceError     something could not be found out; a rule is skipped with this reason
    │   ├── LimitError     a limit of ours stopped a reader
    │   ├── NotPythonError a file that should be Python is not
    │   ├── ConfigError    transformers refuses the model's config.json
    │   ├── ModelClassError  an auto class does not have the model: an InputError likewise
    │   └── FactoryError   a factory raised: an InputError, unless a rule knows why
    ├── PatchError        a patch of a prescription does not fit the installed libraries
    └── TrainingStopped   a live run found what the job was to be stopped for

Each message is one line that says what is wrong, where, and what to do. An option that a function
of the API does not have is a ``TypeError``, as everywhere in Python. Exceptions that are defined
elsewhere in this package are signals between two of its modules and leave none of its functions;
any other exception is a defect, and worth a report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

#: The longest message; a longer one loses its middle.
MESSAGE_CHARS = 2_000
_MESSAGE_END = 500


class LoraDoctorError(Exception):
    """Base of every error that lora-doctor raises on purpose."""

    def __str__(self) -> str:
        line = " ".join(super().__str__().split())
        if len(line) <= MESSAGE_CHARS:
            return line
        # A name out of somebody's file may be as long as the file; what to do stands at the end.
        return f"{line[: MESSAGE_CHARS - _MESSAGE_END]} … {line[-_MESSAGE_END + 3 :]}"


class InputError(LoraDoctorError):
    """The input cannot be used; the message says what, where and what to do. Exit code 2."""


class HalfDoneError(InputError):
    """Writing failed, and what had been replaced could not be put back."""


@dataclass(frozen=True)
class Cause:
    """The exception of a library, or of the model's code, behind an error of ours."""

    #: The exception's class; with its module unless that is ``builtins``.
    type: str
    #: Its message on one line.
    message: str

    @classmethod
    def of(cls, error: BaseException) -> Cause:
        kind = type(error)
        name = kind.__qualname__
        if kind.__module__ != "builtins":
            name = f"{kind.__module__}.{name}"
        try:
            text = " ".join(str(error).split())
        except Exception as broken:  # noqa: BLE001 - exceptions of remote code may not be printable
            text = f"(no text: its __str__ raised {type(broken).__name__})"
        return cls(name, text)

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


@dataclass(frozen=True)
class LimitReached:
    """A limit of lora-doctor that ended a run: it says nothing about the recipe."""

    #: ``memory``: resident memory of the child process. ``time``: how long it may run.
    kind: Literal["memory", "time"]
    #: The limit: bytes for ``memory``, seconds for ``time``.
    limit: float
    #: What had been reached when the run was ended, in the same unit.
    reached: float
    #: The option of the command line that raises the limit.
    option: str
    #: Who set the limit, such as ``--memory-limit`` or ``the default``.
    set_by: str
    #: What was going on, in a few words; empty when nothing had been reported yet.
    stage: str = ""
    #: Python's stack when the run was ended, the innermost frame first; empty when not known.
    stack: str = ""


#: What a user can change so that a rule can be asked. ``package``: install one. ``file``: make a
#: file of the model readable. ``hub``: ask again when the hub answers. ``trust``: allow the code of
#: the model's repository to run. ``limit``: raise a limit of lora-doctor.
Remedy = Literal["package", "file", "hub", "trust", "limit"]
#: What another kind of run has, and this one has not. ``weights``: the real weights. ``texts``: the
#: texts that batches were made of.
Lack = Literal["weights", "texts"]


class EvidenceError(LoraDoctorError):
    """A piece of evidence cannot be had; the message is the reason that rules are skipped with.

    ``remedy``: what the user can change about it; ``None`` where the evidence has nothing to say
    here, which ``--strict`` passes. ``limit``: the limit of lora-doctor that struck. ``lacks``:
    what another kind of run has.
    """

    def __init__(
        self,
        message: str,
        cause: Cause | None = None,
        *,
        remedy: Remedy | None = None,
        limit: LimitReached | None = None,
        lacks: Lack | None = None,
    ) -> None:
        super().__init__(message)
        self._cause = cause
        self.lacks = lacks
        self.remedy: Remedy | None = "limit" if limit is not None else remedy
        self.limit = limit

    @property
    def cause(self) -> Cause | None:
        """What was raised that led to this, here or in a child process; ``None`` when nothing."""
        if self._cause is None and self.__cause__ is not None:
            return Cause.of(self.__cause__)
        return self._cause


class LimitError(EvidenceError):
    """A limit of ours stopped a reader: what it would have found is undetermined."""


class NotPythonError(EvidenceError):
    """The text is not Python, or no syntax tree of it can be made; the message says what it is."""


class ConfigError(EvidenceError):
    """The installed transformers refuses the model's config.json; the cause is what it raised."""


class ModelClassError(EvidenceError):
    """The auto class that is asked for does not load this kind of model; the message of its cause
    is the auto classes that do. Where no rule says so it ends as an :class:`InputError`."""


class FactoryError(EvidenceError):
    """The factory that the user named as MODEL raised; the cause is what it raised. Where no rule
    knows the message it ends as an :class:`InputError`."""


class PatchError(LoraDoctorError):
    """A patch does not fit what is installed; nothing has been changed."""


class TrainingStopped(LoraDoctorError):
    """A live run (``lora_doctor.callback``, ``lora_doctor.watch``) stops the job with a finding.

    ``findings``: all that were found then, each a :class:`Finding`.
    """

    def __init__(self, message: str, findings: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.findings = findings
