"""What loading makes of the names in a checkpoint: data only, no verdict.

Filled by ``evidence.loading``, read by the rule about weights that the checkpoint lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_doctor.results.error_report import ErrorReport


@dataclass(frozen=True)
class MissingWeight:
    """Parameters of the class that the checkpoint has no tensor for, alike ones together."""

    #: Their name, with every number as ``*``.
    pattern: str
    #: How many they are.
    count: int
    #: How many parameters of the class have this pattern.
    of: int
    #: Numbers in them.
    parameters: int
    #: Whether the class draws them anew at every loading; else they begin with the same values.
    drawn: bool
    #: Their names, where the checkpoint has others of this pattern.
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class OtherSize:
    """A weight that has one shape in the checkpoint and another in the class by its config."""

    #: Its name in the model.
    name: str
    #: Shape in the checkpoint, in elements.
    in_file: tuple[int, ...]
    #: Shape in the model, in elements.
    in_model: tuple[int, ...]


@dataclass(frozen=True)
class Unsaved:
    """Weights that are drawn anew at every loading and that an adapter folder does not hold."""

    #: Paths of the largest modules that they make up: what ``modules_to_save`` can name.
    modules: tuple[str, ...] = ()
    #: Names of the parameters that stand beside others in their module, with every number as ``*``.
    others: tuple[str, ...] = ()
    #: Numbers in all of them.
    parameters: int = 0
    #: Parameters of the model without adapters.
    of: int = 0

    @property
    def share(self) -> float:
        """The part of the model that they are, 0 to 1."""
        return self.parameters / max(1, self.of)


@dataclass(frozen=True)
class Loading:
    """The names of a checkpoint given to ``from_pretrained`` of the class, on the meta device."""

    #: Class that was loaded.
    model_class: str
    #: Tensors in the checkpoint.
    tensors: int
    #: What the class has and the checkpoint lacks.
    missing: tuple[MissingWeight, ...] = ()
    #: Tensors of the checkpoint that the class has no place for.
    unplaced: int = 0
    #: The first of them.
    unplaced_examples: tuple[str, ...] = ()
    #: Weights that ``from_pretrained`` refuses because of their shape; none is known of a quantized
    #: checkpoint.
    other_sizes: tuple[OtherSize, ...] = ()
    #: Of ``missing``, what the recipe's adapter folder will not hold.
    unsaved: Unsaved = Unsaved()
    #: What PEFT raised with this recipe, so that ``unsaved`` is not known.
    error: ErrorReport | None = None
    #: Where no file of weights tells the names: the class that the checkpoint was saved from, by
    #: its config. What that class lacks is missing; of anything else nothing is known.
    saved_class: str = ""
