"""What the quantization that a checkpoint comes with means for training: data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.from_json import from_json


@dataclass(frozen=True)
class ReplacedLayers:
    """Layers of one kind that the quantizer puts in the place of the model's own."""

    #: Their class.
    class_name: str
    #: Module in which it is defined.
    python_module: str
    #: Names of the parameters that such a layer has.
    parameters: tuple[str, ...]
    #: How many there are.
    count: int
    #: Paths of some of them.
    examples: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointQuantization:
    """What the installed transformers and PEFT say about ``quantization_config`` of a checkpoint's
    ``config.json``: its own quantizer was asked, and PEFT where its layers can be built here."""

    #: ``quant_method``, such as ``mxfp4``; empty where the config names none.
    method: str
    #: Whether this transformers has a quantizer for it. What it has none for is loaded as if it
    #: were not quantized.
    known: bool
    #: Class of the quantization config; empty where it could not be made.
    config_class: str = ""
    #: Whether the quantizer says that such layers can be trained; ``None``: it could not be asked.
    trainable: bool | None = None
    #: How the library says so, where it does.
    trainable_words: str = ""
    #: When this release can turn the weights into floating point: while it loads them
    #: (``dequantize`` of the quantization config), after it has (``model.dequantize()``), or never.
    dequantizes: Literal["loading", "afterwards", "never"] = "never"
    #: The quantization config that does it while loading, such as ``Mxfp4Config(dequantize=True)``.
    dequantizing: str = ""
    #: Whether the recipe asks for that, and the quantizer can.
    dequantized: bool = False
    #: What transformers says when it turns them into floating point by itself, with the packages
    #: that are installed here, also on a GPU; else empty.
    falls_back: str = ""
    #: The same, on this machine.
    falls_back_here: str = ""
    #: What the quantizer raises on this machine.
    error_here: ErrorReport | None = None
    #: What it raises on a machine with a GPU and the packages that are installed here.
    error_with_gpu: ErrorReport | None = None
    #: Whether ``error_with_gpu`` or ``layer_error`` is about a package that is not installed.
    package_missing: bool = False
    #: The layers, where the quantizer puts them in before the weights are loaded.
    layers: tuple[ReplacedLayers, ...] = ()
    #: What a forward of such a layer asks for that is not installed.
    layer_error: ErrorReport | None = None
    #: Whether this release has no place for the packed weights: they are not loaded, and the linear
    #: layers come out random, with a report of missing weights in the log.
    weights_dropped: bool = False
    #: What PEFT raises when the recipe's adapters are put on these layers.
    injection_error: ErrorReport | None = None
    #: What PEFT raises when they are merged into these layers, on any device.
    merging_error: ErrorReport | None = None
    #: What transformers raises because the recipe asks for another quantization on top.
    request_error: ErrorReport | None = None
    #: What it says when it passes over the recipe's request.
    request_ignored: str = ""
    #: What could not be asked, and why.
    unasked: str = ""

    @property
    def stays(self) -> bool:
        """Whether the weights stay as they are stored, where the model is trained on a GPU."""
        return not self.dequantized and not self.falls_back

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CheckpointQuantization:
        return from_json(cls, data)
