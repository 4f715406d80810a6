"""What a run learns from: gradients, pairs, rewards and labels. Data only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepGradients:
    """The gradients that the optimizer found in the first steps of the run."""

    #: Optimizer steps that were looked at.
    steps: int
    #: Trainable adapter tensors that the optimizer holds.
    adapters: int
    #: Those of them that had a gradient in some step.
    with_gradient: int
    #: The largest finite number in any of their gradients, without its sign.
    largest: float
    #: Adapter tensors with a gradient that is not finite in some step.
    not_finite: int = 0
    #: Other trainable tensors that had a gradient other than 0 in some step.
    others_moved: int = 0
    #: Whether gradients of one step were still there when those of the next were added.
    kept: bool = False
    #: Whether a model had generated before: what it wrote may be what is trained on, as in GRPO.
    generated: bool = False
    #: File of the call of ``step``; empty where a library makes it.
    file: str = ""
    #: Its line, from 1; 0 where it is not known.
    line: int = 0


@dataclass(frozen=True)
class AdapterGradients:
    """The gradients of one of several adapters of a model, in the first steps of the run."""

    #: Its name.
    adapter: str
    #: Paths of its tensors that a backward pass has reached.
    tensors: tuple[str, ...]
    #: How many of them an optimizer holds.
    held: int
    #: How many of them took gradients while a backward pass ran: ``set_adapter`` switches the other
    #: adapters off, and their gradients are dropped.
    accumulated: int


@dataclass(frozen=True)
class GradientsWithoutStep:
    """A run that came to its end with gradients and without a step of an optimizer."""

    #: Adapter tensors that had a gradient at the end.
    tensors: int


@dataclass(frozen=True)
class PreferencePairs:
    """Chosen and rejected answers of a preference set."""

    #: Rows that were compared.
    rows: int
    #: Those of them whose two answers are the same in the set.
    alike: int
    #: Those of them whose two answers are the same as the collator hands them over.
    alike_in_batch: int


@dataclass(frozen=True)
class Rewards:
    """What reward functions gave the completions of one prompt."""

    #: Prompts with several completions, over all calls.
    prompts: int
    #: Those whose completions all got the same reward from every function.
    alike: int
    #: Those whose completions are all the same.
    same_completions: int
    #: The smallest reward of all.
    least: float
    #: The largest.
    most: float
    #: Names of the functions.
    functions: tuple[str, ...] = ()
    #: Those whose code never reads a completion.
    blind: tuple[str, ...] = ()
    #: File of the first function.
    file: str = ""
    #: Its line, from 1; 0 where it is not known.
    line: int = 0


@dataclass(frozen=True)
class OneLabel:
    """A training set whose rows all have the same class."""

    #: The column.
    column: str
    #: The class.
    label: str
    #: Rows of the set.
    rows: int
    #: Classes that the loss knows; ``None`` where that is open.
    classes: int | None = None


@dataclass(frozen=True)
class LongestRow:
    """What the longest row of the training set raises, while one of the usual length does not."""

    #: Number of the longest row, from 1 in the order of the set.
    row: int
    #: Its tokens.
    tokens: int
    #: Rows of the set.
    rows: int
    #: The exception.
    error: str


@dataclass(frozen=True)
class FilledLabels:
    """Rows with fewer labels than tokens, behind which the collator has put labels that do not
    count."""

    #: Rows that were compared.
    rows: int
    #: Those with fewer labels than tokens.
    short: int
    #: Labels of the first such row.
    labels: int
    #: Its tokens.
    tokens: int


@dataclass(frozen=True)
class TrainingSignal:
    """What the run has to learn from; each is ``None`` where it was not seen."""

    #: The gradients of the first steps.
    gradients: StepGradients | None = None
    #: Gradients that no step was made of, in the whole run.
    without_step: GradientsWithoutStep | None = None
    #: The answers of a preference set.
    pairs: PreferencePairs | None = None
    #: The rewards of what the model has written.
    rewards: Rewards | None = None
    #: A class that all rows have.
    one_label: OneLabel | None = None
    #: An exception of the longest row.
    longest: LongestRow | None = None
    #: Rows with fewer labels than tokens.
    filled_labels: FilledLabels | None = None
    #: Each adapter that gradients have reached, where the model has several.
    adapters: tuple[AdapterGradients, ...] = ()
