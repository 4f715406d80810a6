"""What becomes of weights in floating point where the config says that they are quantized."""

from __future__ import annotations

from dataclasses import dataclass

from lora_doctor.results.error_report import ErrorReport


@dataclass(frozen=True)
class PlainWeights:
    """A tiny model whose weights are in floating point, loaded and run with the checkpoint's
    ``quantization_config``. The same model, quantized by that config and saved, runs."""

    #: ``quant_method`` of the config.
    method: str
    #: What ``from_pretrained`` or the first forward raised; ``None`` where both went through.
    error: ErrorReport | None = None
    #: Which of the two raised: ``from_pretrained`` or ``forward``; empty where none did.
    raised_in: str = ""
    #: Weights that loading did not find in the file and left at random.
    missing: tuple[str, ...] = ()

    @property
    def works(self) -> bool:
        """Whether the model has all weights and runs."""
        return self.error is None and not self.missing
