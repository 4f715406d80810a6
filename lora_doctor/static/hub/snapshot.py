"""What was fetched of a hub repository, and what was not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_doctor.static.piece import Piece
from lora_doctor.static.weights import Weights


@dataclass(frozen=True)
class HubFile:
    """One file of the repository; `reason` is None when it was fetched, else why it was not;
    `unanswered` where it is that the hub did not answer."""

    name: str
    size: int | None
    reason: str | None = None
    unanswered: bool = False


@dataclass(frozen=True)
class HubSnapshot:
    """The small files of a hub model, in the hub's cache at `folder`.

    `revision` is what was asked for, `commit` the sha that it meant. `from_cache` with its `note`
    says that the hub was not asked or did not answer; `files` and `weights` are then empty and
    None: what is in the folder is what there is.
    """

    model_id: str
    revision: str | None
    commit: str
    endpoint: str
    folder: Path
    files: tuple[HubFile, ...]
    weights: Piece[Weights] | None
    gated: bool
    from_cache: bool
    note: str | None
    seconds: float

    @property
    def source(self) -> str:
        """The model with its commit, as the report names it."""
        return f"{self.model_id}@{self.commit[:12]}"

    @property
    def listing(self) -> tuple[str, ...] | None:
        """Names of all files of the repository, None when only the cache was looked at."""
        return None if self.from_cache else tuple(file.name for file in self.files)
