"""How much memory a block of code took at its peak, in bytes."""

from __future__ import annotations

import sys
from typing import Any


class MemoryMeter:
    """Of the device: what was allocated on CUDA; else how far resident memory grew.

    ``sample_only``: the process may have had a higher peak before the block, so its own record of
    the peak means nothing and only the ends are looked at.
    """

    def __init__(self, device: str, *, sample_only: bool = False) -> None:
        self.cuda = device.startswith("cuda")
        self.sample_only = sample_only
        self.peak: int | None = None
        self._before = 0

    def __enter__(self) -> MemoryMeter:
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        self._before = _resident()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.cuda:
            import torch

            self.peak = int(torch.cuda.max_memory_allocated())
            return
        highest = _resident() if self.sample_only else max(_resident(), _highest_resident())
        # Memory that was there already was used: how much of it is not known.
        self.peak = max(0, highest - self._before) or None


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _highest_resident() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
