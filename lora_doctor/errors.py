"""Errors that lora-doctor raises on purpose.

    LoraDoctorError
    ├── InputError        what the user gave cannot be used: exit code 2
    └── EvidenceError     something could not be found out; a rule is skipped with this reason

Each message is one line that says what is wrong, where, and what to do.
"""

from __future__ import annotations


class LoraDoctorError(Exception):
    """Base of every error that lora-doctor raises on purpose."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class InputError(LoraDoctorError):
    """The input cannot be used; the message says what, where and what to do. Exit code 2."""


class EvidenceError(LoraDoctorError):
    """A piece of evidence cannot be had; the message is the reason that rules are skipped with."""
