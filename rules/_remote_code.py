"""Code of the model's repository: what was seen of loading it, and fixes beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lora_doctor.rule_api import Case, EvidenceError, Fix, ProofKind, missing_name

if TYPE_CHECKING:
    from lora_doctor.rule_api import RemoteCode, StaticEvidence
    from lora_doctor.static.remote_code.code_fit import MissingPackage


def basis(seen: bool, certain: bool = True) -> ProofKind:
    """What a finding rests on. ``seen``: loading it was tried and failed for this; ``certain``:
    the source leaves no doubt."""
    if seen:
        return "executed"
    return "measured" if certain else "inferred"


class View:
    """What findings about such code have in common."""

    def __init__(self, case: Case, static: StaticEvidence, native: bool) -> None:
        self.case = case
        self.static = static
        self.native = native
        self.version = case.environment.version("transformers") or "(not installed)"
        trusted = case.source.trust_remote_code and case.reaches("meta")
        self.reason = case.why_not("structure") if trusted else ""
        cause = case.cause_of("structure") if trusted else None
        #: What loading raised, where that was tried; else empty.
        self.raised = str(cause) if cause is not None else ""
        imports = cause is not None and cause.type in ("ImportError", "ModuleNotFoundError")
        #: The package that loading failed for, by the message of what was raised.
        self.lacks = missing_name(cause.message) if cause is not None and imports else ""

        self.refused = trusted and _refusal(case) is not None
        if self.refused:
            self.reason = self.raised = str(_refusal(case))

    def saw(self, *traces: str) -> bool:
        """Whether loading was tried and what was raised holds one of these."""
        return any(trace in self.raised for trace in traces)

    def other_fixes(self, *, pinned: bool = True) -> list[Fix]:
        fixes = []
        if self.native:
            fixes.append(
                Fix(
                    "Remove --trust-remote-code (trust_remote_code=True): transformers "
                    f"{self.version} has its own class for {self.static.model_type}.",
                    "manual",
                )
            )
        written = self.static.config.get("transformers_version")
        if pinned and isinstance(written, str) and written != self.version:
            fixes.append(
                Fix(
                    f"pip install transformers=={written}: config.json says that the "
                    "checkpoint was saved with this release.",
                    "manual",
                )
            )
        elif pinned:
            fixes.append(
                Fix(
                    "Use a revision of the repository that was made for this transformers, or "
                    "install the transformers that its model card names.",
                    "manual",
                )
            )
        return fixes


def _refusal(case: Case) -> str | None:
    """What loading a small model of the class raised, where that was tried."""
    if not case.reaches("tiny") or not case.has("structure") or not case.has("verification"):
        return None
    failure = case.verification.failure
    if failure is None or failure.check != "builds":
        return None
    return f"{failure.type}: {failure.message}"


def package_fixes(missing: Sequence[MissingPackage]) -> Iterator[Fix]:
    own = [item for item in missing if item.own_file]
    others = [item.name for item in missing if not item.own_file]
    if others:
        yield Fix(
            f"pip install {' '.join(others)} (or the package that provides it, if it has "
            "another name).",
            "manual",
        )
    for item in own:
        yield Fix(
            f"{item.own_file} is a file of the repository: in a copy of it, write "
            f"`from .{item.name} import …` at {item.at}.",
            "manual",
        )


def require_read(code: RemoteCode) -> None:
    """Raises EvidenceError where a file that loading runs could not be read."""
    for target in code.auto_map:
        name = f"{target.module.replace('.', '/')}.py"
        if target.repository is None and name in code.unread:
            raise EvidenceError(f"{name}: {code.unread[name]}", remedy="file")
