"""A note: something a run has to say that is no finding, with its meaning beside its wording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What a note is about; the kinds are described at :attr:`Note.kind`.
NoteKind = Literal[
    "step",
    "choice",
    "not-adapted",
    "not-fed",
    "not-proven",
    "does-not-run",
    "batch-left-out",
    "objection",
    "input-left-out",
    "features-cast",
    "not-observed",
    "not-asked",
    "cut",
    "baseline",
    "ignore",
    "cached",
    "warned",
]


@dataclass(frozen=True)
class Note:
    """A sentence for people; whoever decides something by a note reads its ``kind``."""

    #: ``step``: something was done on the way. ``choice``: something was decided that nobody asked
    #: for. ``not-adapted``: layers that the proposed recipe leaves without adapters, or that the
    #: tiny model is too small to have. ``not-fed``: an input that the model takes and that no batch
    #: has. ``not-proven``: a part of the recipe was not run. ``does-not-run``: the same, because
    #: the model without adapters does not run that way on this machine. ``batch-left-out``: a batch
    #: that the model without adapters does not take. ``objection``: what a forward raised while a
    #: batch was being made. ``input-left-out``: why a batch lacks an input. ``features-cast``:
    #: features that the model takes in its own dtype only, in which no processor returns them.
    #: ``not-observed``: what could not be asked or seen. ``not-asked``: which rules this command
    #: leaves out. ``cut``: something is left out of this
    #: report. ``warned``: what a library warned of. ``baseline``: what a baseline holds and is not
    #: found any more. ``ignore``: an ignore of the user's that accepts nothing, and why.
    #: ``cached``: the answer was found stored.
    kind: NoteKind
    #: The sentence.
    text: str
    #: Why it is so, where the sentence ends in that: the reason, or the exception's own words.
    reason: str = ""

    @property
    def is_unproven(self) -> bool:
        """Whether a part of the recipe was not run."""
        return self.kind in ("not-proven", "does-not-run")

    @property
    def is_gap(self) -> bool:
        """Whether a verdict does not cover everything: it has to be read beside `healthy`."""
        return self.is_unproven or self.kind in ("not-adapted", "not-fed")

    @property
    def is_always_shown(self) -> bool:
        """Whether it has to be read even beside `healthy`: a gap, an ignore without effect, or what
        was not asked."""
        return self.is_gap or self.kind in ("baseline", "ignore", "cached", "not-asked")

    def __str__(self) -> str:
        return self.text
