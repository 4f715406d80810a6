"""What a hub says a repository holds: its answer is checked before anything is believed."""

from __future__ import annotations

from dataclasses import dataclass

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import LISTING_FILES, check_items
from lora_doctor.static.hub.hub_cache import COMMIT
from lora_doctor.static.piece import parse_json, shown, whole_number

# An entry with its checksums has a dozen values.
_ITEMS_PER_FILE = 20


@dataclass(frozen=True)
class Listing:
    """The commit, whether the repository is gated, and its files with their sizes in bytes.

    A size is None where the hub does not say.
    """

    commit: str
    gated: bool
    sizes: dict[str, int | None]


def parse_listing(content: bytes) -> Listing:
    """The answer of `/api/models/…?blobs=true`; EvidenceError when it is none of a hub."""
    answer = parse_json(content, "its answer", items=LISTING_FILES * _ITEMS_PER_FILE)
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise EvidenceError("its answer names no commit")
    siblings = answer.get("siblings") or []
    if not isinstance(siblings, list):
        raise EvidenceError(f"its answer has {shown(siblings)} as the list of files")
    check_items(len(siblings), LISTING_FILES, "the repository", "files")
    sizes: dict[str, int | None] = {}
    for entry in siblings:
        name = entry.get("rfilename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name or "\0" in name:
            raise EvidenceError(f"its answer lists {shown(entry)} as a file")
        size = entry.get("size")
        if size is not None and whole_number(size) is None:
            raise EvidenceError(f"its answer gives {shown(name)} the size {shown(size)}")
        sizes[name] = size
    return Listing(commit, bool(answer.get("gated")), sizes)
