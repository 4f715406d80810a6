"""How much of what others wrote is read in this process: every limit, in one place.

Nothing of a model repository, a hub or a pasted log can keep the tool busy or fill its memory.
Three kinds of limit do that:

- *bytes* and *items*, counted before a parser that cannot be interrupted is called (`json`, `ast`):
  they bound its time and its memory;
- *steps*, counted by our own loops (`step`) inside `bounded`: the same input gives the same answer
  on every machine;
- *seconds* of processor time beside the steps, for a machine that is slower than any that was
  thought of.

What a limit stops is a `LimitError`: an `EvidenceError`, so that a rule is skipped with the reason.
Where the text is the user's own input, the reader makes an `InputError` of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from lora_doctor.errors import LimitError

MIB = 1 << 20

# --- JSON -----------------------------------------------------------------------------------

#: The largest config.json known (with 21,000 labels) has 2 MB and 42,000 items.
JSON_BYTES = 32 * MIB
#: An item is a value; the smallest take two bytes of text and 64 of memory.
JSON_ITEMS = 500_000
#: The deepest config known nests 9 levels. Beyond Python's own limit `repr` and `copy` fail.
JSON_DEPTH = 64

#: The largest tokenizer.json known has 35 MB and 2.4 million items.
TOKENIZER_BYTES = 64 * MIB
TOKENIZER_ITEMS = 5_000_000
#: Without its vocabulary and merges; the most added tokens known are 6,400, with 7 keys each.
TOKENIZER_HEAD_ITEMS = JSON_ITEMS
#: One section that is handed to the tokenizers library; the largest known has 400 kB.
TOKENIZER_SECTION_BYTES = 4 * MIB
TOKENIZER_PARTS = 64

# --- weights --------------------------------------------------------------------------------

#: The format allows 100 MB, which is 23 s and 1.1 GB. The longest header known has 12 MB; the most
#: tensors of a whole checkpoint are 140,000.
HEADER_BYTES = 16 * MIB
CHECKPOINT_HEADER_BYTES = 64 * MIB
CHECKPOINT_TENSORS = 400_000
CHECKPOINT_FILES = 2_000

# --- folders --------------------------------------------------------------------------------

#: A model repository has dozens of files; a folder with more is something else around a config.
FOLDER_FILES = 5_000
FOLDER_ENTRIES = 20_000
FOLDER_DEPTH = 6

# --- Python ---------------------------------------------------------------------------------

#: The longest modelling file known has 300 kB and 90,000 tokens, a repository's whole code 2 MB.
PYTHON_BYTES = 2 * MIB
#: A token is at most one node of the syntax tree, which takes some 500 bytes of memory.
PYTHON_TOKENS = 250_000
REPOSITORY_CODE_BYTES = 16 * MIB
REPOSITORY_CODE_TOKENS = 1_000_000
REPOSITORY_CODE_FILES = 300
#: Names that one repository imports; a file of transformers has 50.
REPOSITORY_IMPORTS = 20_000

# --- recipes and pasted text ----------------------------------------------------------------

#: A hand-written recipe has a few kB; an adapter_config.json with a rank pattern for every expert
#: of a large mixture has a few MB.
RECIPE_BYTES = 16 * MIB
RECIPE_ITEMS = JSON_ITEMS
#: ruamel reads some 20,000 items a second.
YAML_CHARACTERS = 1 * MIB
YAML_ITEMS = 30_000
#: A log is searched from its end, where the exception stands.
LOG_CHARACTERS = 200_000
#: Standard input is read so far; an endless one is refused.
PASTED_BYTES = 64 * MIB

# --- rows of training data ------------------------------------------------------------------

#: Rows that are looked at, by default and at most; they are spread over the whole file.
DATA_ROWS = 256
MOST_DATA_ROWS = 10_000
#: A file of which single rows can be read: 50 million chats. Counting its lines takes a minute.
DATA_BYTES = 64 << 30
#: A file that has to be parsed as a whole (JSON that is no JSON lines).
DATA_JSON_BYTES = 512 * MIB
DATA_JSON_ITEMS = 20_000_000
#: One row: a book has 1 MB.
DATA_ROW_BYTES = 16 * MIB
#: Rows of an evaluation set that are compared with those of the training set.
EVALUATION_ROWS = 200_000

# --- the hub --------------------------------------------------------------------------------

#: Of the answer that lists a repository, and of the files in it; real ones have dozens.
LISTING_BYTES = 16 * MIB
LISTING_FILES = 50_000
#: Of all small files of one repository together.
FETCHED_BYTES = 64 * MIB
FETCHED_FILES = 100

#: Of the weights that the library downloads at depth `full`: so many times what the hub lists, for
#: files that are asked for again after a broken connection.
DOWNLOAD_TIMES = 2

# --- a run ----------------------------------------------------------------------------------

#: Seconds, where none are given: for all requests to a hub, for a task on the meta device, for a
#: run of the shrunken model.
HUB_SECONDS = 10.0
META_SECONDS = 120.0
TINY_SECONDS = 180.0

# --- installed packages ---------------------------------------------------------------------

#: The longest file of transformers has 300 kB, all its models together 45 MB.
INSTALLED_FILE_BYTES = 8 * MIB
INSTALLED_FILES = 20_000


@dataclass(frozen=True)
class Bound:
    """The work that one reader may do: `what` is read, in at most `steps` and `seconds`."""

    what: str
    steps: int
    seconds: float


#: All code of a repository. A file of 280 kB takes 140,000 steps and 0.5 s.
REPOSITORY_CODE = Bound("the code of the repository", 3_000_000, 20.0)
#: A training script. One of 240 kB takes 450,000 steps and 1 s.
SCRIPT = Bound("the script", 3_000_000, 20.0)
#: A pasted log against the symptoms of all rules: `CLOCK` steps for each symptom and piece of text.
LOG = Bound("the text", 100_000_000, 10.0)
#: A YAML recipe: a step is a character that the scanner has fetched.
YAML_RECIPE = Bound("the recipe", 2 * YAML_CHARACTERS, 10.0)


#: Steps between two looks at the clock, which cost as much as the steps do.
CLOCK = 1024


class _Budget:
    """What is left of a `Bound`."""

    __slots__ = ("bound", "end", "left", "next_look")

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.left = bound.steps
        self.next_look = bound.steps - CLOCK
        self.end = time.thread_time() + bound.seconds

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left > self.next_look:
            return
        self.next_look = self.left - CLOCK
        bound = self.bound
        if self.left < 0:
            raise LimitError(
                f"reading {bound.what} took more than the {bound.steps:,} steps that are allowed; "
                "the file is unlike any valid one"
            )
        if time.thread_time() > self.end:
            raise LimitError(
                f"reading {bound.what} took more than {bound.seconds:g} s of processor time; "
                "the file is unlike any valid one"
            )


_budget: ContextVar[_Budget | None] = ContextVar("lora_doctor_budget", default=None)


@contextmanager
def bounded(bound: Bound) -> Iterator[None]:
    """Let `step` count against `bound` in this block; inside another block that one's counts.

    Raises:
        LimitError: from `step`, when the steps or the seconds are used up.
    """
    if _budget.get() is not None:
        yield
        return
    token = _budget.set(_Budget(bound))
    try:
        yield
    finally:
        _budget.reset(token)


def step(count: int = 1) -> None:
    """Count work of a loop that somebody else's text decides the length of."""
    budget = _budget.get()
    if budget is not None:
        budget.spend(count)


def check_bytes(size: int, most: int, what: str, advice: str = "") -> None:
    """Raise LimitError when `what` has more than `most` bytes."""
    if size > most:
        raise LimitError(
            f"{what} has {size:,} bytes, more than the {most:,} that are read{_then(advice)}"
        )


def check_items(count: int, most: int, what: str, items: str = "values", advice: str = "") -> None:
    """Raise LimitError when `what` has more than `most` items, which are called `items`."""
    if count > most:
        raise LimitError(
            f"{what} has about {count:,} {items}, more than the {most:,} that are read"
            f"{_then(advice)}"
        )


def count_items(text: str | bytes) -> int:
    """At least as many as there are values in a text of JSON or YAML, without parsing it.

    Each value but the first stands behind a comma, a colon, a bracket or a line break of its own.
    Those inside texts count as well: a limit has to leave room for them.
    """
    if isinstance(text, bytes):
        return sum(map(text.count, (b",", b":", b"[", b"{")))
    return sum(map(text.count, (",", ":", "[", "{")))


def _then(advice: str) -> str:
    return f"; {advice}" if advice else ""
