"""What the round trip through files showed, beside the logits: data only, no verdict.

Filled by ``round_trip`` while the training contract saves, loads and merges; read by rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.loading import Unsaved


@dataclass(frozen=True)
class TiedPart:
    """A layer that the recipe trains and whose weight is also another module's."""

    #: Path of the layer.
    path: str
    #: Path of the other module.
    shares_with: str
    #: ``adapter``: it carries one. ``modules_to_save``: it is copied by it.
    how: Literal["adapter", "modules_to_save"]


@dataclass(frozen=True)
class AutoLoading:
    """What PEFT's own auto class makes of the saved folder, really called."""

    #: PEFT's class for this ``task_type``, such as ``AutoPeftModelForCausalLM``.
    auto_class: str
    #: Class that was trained.
    model_class: str
    #: Class of the base model that it loaded; empty with ``error``.
    loaded: str = ""
    #: What it raised; else empty.
    error: str = ""


@dataclass(frozen=True)
class Vocabulary:
    """Input embeddings that have another number of rows than those of the checkpoint that the model
    came from."""

    #: Rows now.
    rows: int
    #: Rows of the checkpoint.
    checkpoint_rows: int
    #: Folder of the checkpoint.
    checkpoint: str
    #: Path of the embeddings.
    module: str
    #: Whether the adapter folder holds them.
    saved: bool
    #: What loading the folder onto that checkpoint does, in words.
    outcome: str


@dataclass(frozen=True)
class QuantizedMerge:
    """What merging makes of adapters on quantized layers, each layer copied and merged alone."""

    #: What PEFT raises; ``None`` where it merges.
    error: ErrorReport | None = None
    #: The largest relative difference of a layer's output; ``None`` where it was not measured.
    difference: float | None = None
    #: The layer's path.
    layer: str = ""


@dataclass(frozen=True)
class Saving:
    """What the round trip through files showed, of one run."""

    #: Path of the ``PeftModel`` that was saved; empty when it is the whole model.
    wrapped: str = ""
    #: Whole modules (patterns of paths) that were trained and that the loaded model has as they
    #: were before.
    lost: tuple[str, ...] = ()
    #: Parameters of ``lost``.
    lost_parameters: int = 0
    #: Parameters of trained weights that were lost too, but stand next to adapters.
    lost_elsewhere: int = 0
    #: Modules that were trainable beside frozen ones before the adapters were put on, and are
    #: neither trained nor saved since.
    frozen: tuple[str, ...] = ()
    #: Parameters of ``frozen``.
    frozen_parameters: int = 0
    #: Weights that the checkpoint lacks and that the adapter folder does not hold. The base that it
    #: was loaded onto had others in their place, as loading makes them.
    random: Unsaved = field(default_factory=Unsaved)
    #: Modules whose running statistics (batch norm) the loaded model has otherwise.
    statistics: tuple[str, ...] = ()
    #: Layers under the recipe that share their weight.
    tied: tuple[TiedPart, ...] = ()
    #: Relative difference of the logits after the merged model was saved and loaded; ``None`` when
    #: it was not tried.
    merged_reload: float | None = None
    #: Why ``merged_reload`` could not be had, where a reason is known.
    merged_error: str = ""
    #: What merging into quantized weights does; ``None`` where the layers are not quantized.
    quantized_merge: QuantizedMerge | None = None
    #: What PEFT's auto class makes of the folder; ``None`` where it loads the class that was
    #: trained or was not called.
    auto: AutoLoading | None = None
    #: Resized embeddings; ``None`` where they have the rows of the checkpoint.
    vocabulary: Vocabulary | None = None
