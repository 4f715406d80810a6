"""The numbers of a saved adapter, looked at without torch: which are not finite, which all zero."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.static.adapter_files import WEIGHTS, AdapterFiles

#: Width in bytes of a number, and the bits of its exponent: all set, it is infinite or no number.
_EXPONENTS = {
    "F32": (4, 0x7F80_0000), "BF16": (2, 0x7F80), "F16": (2, 0x7C00),
    "F64": (8, 0x7FF0_0000_0000_0000),
}  # fmt: skip


@dataclass(frozen=True)
class AdapterValues:
    """What the numbers of an adapter file are."""

    #: Names of tensors with a number that is not finite.
    not_finite: tuple[str, ...]
    #: Names of tensors of zeros only.
    zero: tuple[str, ...]
    #: Tensors that were looked at; others have a dtype that is not read.
    looked_at: int


def read_values(adapter: AdapterFiles) -> AdapterValues:
    """Look at every number of the adapter's weights.

    Raises:
        EvidenceError: numpy is not installed, or the file cannot be read.
    """
    try:
        import numpy
    except ImportError:
        raise EvidenceError(
            "looking at the numbers of an adapter needs numpy", remedy="package"
        ) from None
    path = adapter.folder / WEIGHTS
    not_finite, zero, looked_at = [], [], 0
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            entries: dict[str, Any] = json.loads(file.read(length))
            for name, tensor in adapter.weights.tensors.items():
                if tensor.dtype not in _EXPONENTS or not tensor.elements:
                    continue
                width, exponent = _EXPONENTS[tensor.dtype]
                file.seek(8 + length + entries[name]["data_offsets"][0])
                bits = numpy.frombuffer(file.read(tensor.elements * width), dtype=f"<u{width}")
                looked_at += 1
                if ((bits & exponent) == exponent).any():
                    not_finite.append(name)
                # Twice the bits are without the sign: -0.0 is zero too.
                elif not (bits << 1).any():
                    zero.append(name)
    except OSError as error:
        raise EvidenceError(
            f"{Path(path).name} cannot be read: {error.strerror}", remedy="file"
        ) from None
    return AdapterValues(tuple(not_finite), tuple(zero), looked_at)
