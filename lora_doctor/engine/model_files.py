"""The files of a model source as evidence, or why it has none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_doctor.engine.evidence_store import EvidenceStore
from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.results.diagnosis import Gathered
from lora_doctor.static.installed.environment import known_architectures
from lora_doctor.static.model_files import (
    WEIGHTS_FILE,
    StaticEvidence,
    gather_static,
    unknown_architecture,
)
from lora_doctor.static.model_source import ModelSource

if TYPE_CHECKING:
    from lora_doctor.static.hub.snapshot import HubSnapshot


def read_files(source: ModelSource, store: EvidenceStore) -> StaticEvidence:
    """Configs, tokenizer files and safetensors headers; ``store`` notes where they came from.

    Raises:
        EvidenceError: a source of this kind has no files.
    """
    folder, snapshot = Path(source.folder or ""), source.snapshot
    if snapshot is None:
        return store.timed(
            "static", f"files in {folder}", lambda: gather_static(folder, source=str(source))
        )
    origin = snapshot.note or f"{snapshot.endpoint}, small files of {snapshot.source}"
    store.gathered.append(Gathered("hub", origin, round(snapshot.seconds, 4)))
    return store.timed(
        "static",
        f"small files of {snapshot.source}",
        lambda: gather_static(
            folder,
            source=snapshot.source,
            listing=snapshot.listing,
            weights=snapshot.weights,
            unanswered=_unanswered(snapshot),
        ),
    )


def _unanswered(snapshot: HubSnapshot) -> dict[str, str]:
    """Files that the hub has and did not give, each with the reason."""
    if snapshot.from_cache:
        return {WEIGHTS_FILE: snapshot.note or "the hub was not asked"}
    return {file.name: file.reason or "" for file in snapshot.files if file.unanswered}


def stored_bytes(source: ModelSource) -> int:
    """Bytes of the model's safetensors files; 0 where it has none, or their sizes are not known."""
    if source.snapshot is not None:
        files = source.snapshot.files
        return sum(file.size or 0 for file in files if file.name.endswith(".safetensors"))
    try:
        return sum(path.stat().st_size for path in Path(source.folder or "").glob("*.safetensors"))
    except OSError:  # it goes away meanwhile; loading tells
        return 0


def listed_bytes(source: ModelSource) -> int | None:
    """Bytes of all files of a hub id, as the hub lists them; ``None`` where it was not asked."""
    snapshot = source.snapshot
    if snapshot is None or snapshot.from_cache:
        return None
    return sum(file.size or 0 for file in snapshot.files)


def require_files(source: ModelSource) -> None:
    """Raises:
    InputError: the installed transformers has no architecture of this name.
    EvidenceError: a source of this kind has no files.
    """
    if source.kind == "arch":
        known = known_architectures()
        if known and source.name not in known:
            raise InputError(
                f"MODEL arch:{source.name}: {unknown_architecture(source.name, known)}"
            )
        raise EvidenceError(f"{source} is a default config; it has no files")
    if source.kind == "script":
        raise EvidenceError("MODEL is a training script and has no model files")
    if source.out_of_reach:
        raise EvidenceError(source.out_of_reach, remedy="hub")
    if source.folder is None:
        raise EvidenceError(f"{source} has no files: it is made by code")


def needs_remote_code(static: StaticEvidence, source: ModelSource) -> bool:
    """Whether the model's classes are code of its repository that nobody has allowed to run."""
    if not static.auto_map or source.trust_remote_code:
        return False
    known = known_architectures()
    return not known or static.model_type not in known
