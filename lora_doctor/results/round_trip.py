"""What the round trip through files showed, beside the logits: data only, no verdict.

Filled by ``round_trip`` while the training contract saves, loads and merges; read by rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TiedPart:
    """A layer that the recipe trains and whose weight is also another module's.

    ``how``: it carries an ``adapter``, or is copied by ``modules_to_save``. ``shares_with``: path
    of the other module.
    """

    path: str
    shares_with: str
    how: Literal["adapter", "modules_to_save"]


@dataclass(frozen=True)
class AutoLoading:
    """What PEFT's own auto class makes of the saved folder, really called.

    ``auto_class``: such as ``AutoPeftModelForCausalLM``, the one for this ``task_type``.
    ``loaded``: class of the base model that it loaded, empty with ``error``.
    """

    auto_class: str
    model_class: str
    loaded: str = ""
    error: str = ""


@dataclass(frozen=True)
class Vocabulary:
    """Input embeddings that have another number of rows than those of the checkpoint that the
    model came from. ``saved``: whether the adapter folder holds them. ``outcome``: what loading
    the folder onto that checkpoint does, in words."""

    rows: int
    checkpoint_rows: int
    checkpoint: str
    module: str
    saved: bool
    outcome: str


@dataclass(frozen=True)
class Saving:
    """The round trip of one run.

    ``wrapped``: path of the ``PeftModel`` that was saved, empty when it is the whole model.
    ``lost``: whole modules (patterns of paths) that were trained and that the loaded model has as
    they were before; ``lost_parameters`` numbers. ``lost_elsewhere``: numbers in trained weights
    that were lost too, but stand next to adapters. ``frozen``: modules that were trainable beside
    frozen ones before the adapters were put on, and neither are trained nor saved since.
    ``merged_reload``: relative difference of the logits after the merged model was saved and
    loaded; ``None`` when it was not tried, with the reason in ``merged_error`` where one is known.
    ``new_heads``: modules that the checkpoint has no weights for and that PEFT does not save.
    ``statistics``: modules whose running statistics (batch norm) the loaded model has otherwise.
    """

    wrapped: str = ""
    lost: tuple[str, ...] = ()
    lost_parameters: int = 0
    lost_elsewhere: int = 0
    frozen: tuple[str, ...] = ()
    frozen_parameters: int = 0
    new_heads: tuple[str, ...] = ()
    new_head_parameters: int = 0
    statistics: tuple[str, ...] = ()
    tied: tuple[TiedPart, ...] = ()
    merged_reload: float | None = None
    merged_error: str = ""
    auto: AutoLoading | None = None
    vocabulary: Vocabulary | None = None
