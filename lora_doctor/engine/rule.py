"""A rule: one known failure mode, with its documentation, symptoms and examples.

To write one, copy a file of ``rules/`` and change it. Everything that a rule author needs is in
``lora_doctor.rule_api``.
"""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lora_doctor.results.depth import Depth
from lora_doctor.results.finding import Finding, Location, Measurement, Proof, Severity
from lora_doctor.results.fix import Fix
from lora_doctor.text import short_path

if TYPE_CHECKING:
    from lora_doctor.engine.case import Case


@dataclass(frozen=True)
class Symptom:
    """An error message that this failure shows, and where."""

    #: A regular expression, searched for in what a user pastes.
    pattern: str
    #: Which versions show it, in words, where not all of them do.
    versions: str = ""
    #: Another regular expression, for a message that other failures show as well: it is this one
    #: where the rest of the text has this too.
    context: str = ""
    #: The same the other way round: where the text has this, it is another failure.
    unless: str = ""
    #: For a message that says nothing without the place that raised it: what the file of the
    #: innermost frame before the message has in its path. A text without frames does not match.
    raised_in: str = ""
    #: For the same message pasted without its traceback: a text that has frames does not match.
    alone: bool = False
    #: For a warning that healthy runs show as well: it counts where it was pasted by itself, and
    #: not in a log, nor beside the steps of a training or a traceback.
    aside: bool = False
    #: For what other failures bring with them: such a rule is named behind all others.
    consequence: bool = False
    #: How often, among the failures that show this message, it is this one: decides between rules
    #: that know the same words. 0 is usual, 1 more often, -1 rarely.
    weight: int = 0


@dataclass(frozen=True)
class Example:
    """A recipe on a model, run by the test suite."""

    #: ``broken`` must be found and, where the rule has a fix that is not manual, must train after
    #: it. ``healthy`` must stay silent.
    kind: Literal["broken", "healthy"]
    #: ``arch:NAME``, or ``module:factory``.
    model: str
    #: Keys of the recipe with their values; what is left out is proposed.
    recipe: Mapping[str, Any] = field(default_factory=dict)
    #: Versions, such as ``{"transformers": ">=4.50"}``; elsewhere the example does not occur.
    requires: Mapping[str, str] = field(default_factory=dict)
    #: How far the example is run.
    depth: Depth = "tiny"
    #: What the example shows, where that is not plain.
    why: str = ""
    #: ``model`` names a factory that returns a module and options of :func:`lora_doctor.check`; the
    #: module is handed over in memory, as in a training script.
    loaded: bool = False
    #: Whether code of the model's repository, which is a folder of the test suite, may run.
    trust_remote_code: bool = False
    #: A script that is dry-run instead, for a rule about what a command does; ``model`` is empty.
    script: str = ""
    #: How many processes run it, started by ``torch.distributed.run``; 0: it starts them itself.
    processes: int = 1
    #: A folder with packages that stand before what is installed, for a rule about these: ``env
    #: --check`` asks it, in a process of its own; ``model`` is empty.
    installed: str = ""
    #: A file of training data that the recipe is checked with; empty without.
    data: str = ""
    #: A file of evaluation data.
    eval_data: str = ""
    #: Budgets that are set, as the project's configuration has them.
    budgets: Mapping[str, Any] = field(default_factory=dict)


#: Numerics, training set-ups and data, by the first digit of a code.
_TRAINING_TOPICS = ("LD4", "LD5", "LD9")


class Rule(ABC):
    """One failure mode. The docstring is its documentation, with the headings
    ``What happens``, ``Why``, ``Versions``, ``Fix`` and ``Links``."""

    code: ClassVar[str]
    name: ClassVar[str]
    summary: ClassVar[str]
    depth: ClassVar[Depth]
    symptoms: ClassVar[tuple[Symptom, ...]] = ()
    #: What users call this failure in words of their own, where they paste no message: searched
    #: for by ``explain`` alone, in a short text in which no message is known, whatever the case.
    descriptions: ClassVar[tuple[Symptom, ...]] = ()
    #: The same in whole sentences, in plain words and not as patterns: ``explain`` compares a short
    #: text with them, as with what the page says happens. For what users say otherwise than it.
    told_as: ClassVar[tuple[str, ...]] = ()
    examples: ClassVar[tuple[Example, ...]] = ()
    #: Whether the rule is asked last, for what no other rule has explained.
    is_fallback: ClassVar[bool] = False
    #: Whether the rule knows no cause, and finds by comparing runs what the failure goes away with:
    #: asked after every rule that knows one, and before the fallback.
    is_comparison: ClassVar[bool] = False
    #: About the files of a saved adapter: asked first, because an adapter that cannot be loaded
    #: leaves nothing to ask about its training.
    about_saved_adapter: ClassVar[bool] = False
    #: About a training run: not asked of a set-up that only merges or uses a saved adapter. Rules
    #: of ``_TRAINING_TOPICS`` are so without saying it; see :meth:`is_about_training`.
    about_training: ClassVar[bool] = False
    #: About what is installed, whichever model is trained: ``lora-doctor env --check`` asks these.
    about_environment: ClassVar[bool] = False
    #: Names of the budgets of which it says whether they are kept.
    budgets: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def check(self, case: Case) -> Iterator[Finding]:
        """Read the evidence of the case and yield findings. Does not load, print or catch."""

    @classmethod
    def is_about_training(cls) -> bool:
        """Whether it tells of training: a rule of those topics, but for what is read off a script
        or a framework's file, which has to run as well, or off a saved adapter; any other that
        says so; the fallback."""
        by_topic = cls.code.startswith(_TRAINING_TOPICS) and cls.depth != "static"
        by_topic = by_topic and not cls.about_saved_adapter
        return cls.about_training or cls.is_fallback or by_topic

    @classmethod
    def documentation(cls) -> str:
        """The docstring, unindented."""
        return inspect.getdoc(cls) or ""

    def finding(
        self,
        severity: Severity,
        message: str,
        *,
        location: Location,
        evidence: tuple[Measurement, ...],
        proof: Proof,
        fixes: tuple[Fix, ...] = (),
        explains: tuple[str, ...] = (),
    ) -> Finding:
        """A finding of this rule. A file below the working directory is named from there: a
        baseline is compared with what is found in another checkout."""
        if location.kind == "file" and os.path.isabs(location.path):
            location = replace(location, path=short_path(location.path))
        return Finding(
            rule=self.code,
            name=self.name,
            severity=severity,
            message=message,
            location=location,
            evidence=evidence,
            proof=proof,
            fixes=fixes,
            explains=explains,
        )
