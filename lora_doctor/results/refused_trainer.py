"""What the class of a trainer says to the model, the adapter and the arguments of a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class AskedTrainer:
    """A trainer that was made on a tiny model, with rows of each kind that it takes."""

    #: Its package and release.
    release: str
    #: How many kinds of rows it was made with.
    kinds: int
    #: Class of the exception, the same for each kind of rows; empty where one kind is accepted.
    kind: str = ""
    #: Its message.
    message: str = ""
    #: Where it is raised: a file from the package on, with the line.
    raised_at: str = ""
    #: Whether it is raised for the rows of the program alone, with the model's own tokenizer.
    of_rows: bool = False
    #: Dtypes of the weights that it trains, each with its number of parameters, after the trainer
    #: was made: some trainers cast them. Empty where it was not made as the program has it.
    trained: Mapping[str, int] = field(default_factory=dict)
