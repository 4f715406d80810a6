"""Whether samples that were packed into one line see each other: asked of the model itself.

The tokens of the first sample are put in another order; where the logits of the next sample change,
the attention (or the state of a recurrent layer) reaches across the border.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting

#: Lines of a batch that are looked through for a border.
_LINES = 64


def look(acting: Acting, model: Any, batch: Mapping[str, Any]) -> None:
    """Tell once what a packed batch shows; nothing where no line has a border in it."""
    if acting.seen("packed"):
        return
    border = _border(batch)
    if border is None:
        return
    line, start, samples = border
    given = {name: value for name, value in batch.items() if name != "labels"}
    without = {**given, "use_cache": False} if _takes_cache(model) else None
    if without is not None and getattr(model, "is_gradient_checkpointing", False):
        given = without  # as transformers does in training, and not where it evaluates
    with acting.ours(), evaluating(model):
        try:
            change, size = _change(model, given, line, start)
            bare, _ = _change(model, without or given, line, start)
        except Exception as error:  # noqa: BLE001 - a forward of the user's own
            acting.journal.tell("packed", why=f"{type(error).__name__}: {error}"[:300])
            return
    acting.journal.tell(
        "packed",
        samples=samples,
        tokens=int(batch["input_ids"].shape[-1]),
        change=change,
        size=size,
        without_cache=bare,
        arguments=sorted(name for name in batch if name not in ("input_ids", "labels")),
    )


def _border(batch: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """A line, where its second sample begins, and how many samples it has: positions that begin
    anew where real tokens stand."""
    ids, positions = batch.get("input_ids"), batch.get("position_ids")
    if ids is None or positions is None or getattr(positions, "shape", None) != ids.shape:
        return None
    for line in range(min(int(ids.shape[0]), _LINES)):
        where = positions[line].tolist()
        starts = [n for n in range(1, len(where)) if where[n] == 0 and where[n - 1] > 0]
        # Padding has the position 0 too, over and over: a sample is followed by a position 1.
        starts = [n for n in starts if n + 1 < len(where) and where[n + 1] == 1]
        if starts and len(set(ids[line, : starts[0]].tolist())) > 1:
            return line, starts[0], len(starts) + 1
    return None


def _takes_cache(model: Any) -> bool:
    """Whether forward of the model itself can be told to keep no cache, beside which transformers
    up to 4.57 does not look for borders."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "use_cache" in inspect.signature(base.forward).parameters


def _change(model: Any, given: Mapping[str, Any], line: int, start: int) -> tuple[float, float]:
    """The largest change of a logit behind the border, and the largest logit there."""
    import torch

    other = given["input_ids"].clone()
    other[line, :start] = other[line, :start].flip(0)
    if torch.equal(other, given["input_ids"]):
        other[line, :start] = other[line, :start].roll(1)
    with torch.no_grad():
        first = _logits(model(**given))[line, start:].float()
        second = _logits(model(**{**given, "input_ids": other}))[line, start:].float()
    return float((first - second).abs().max()), float(first.abs().max())


def _logits(output: Any) -> Any:
    logits = getattr(output, "logits", None)
    return output[0] if logits is None else logits


@contextlib.contextmanager
def evaluating(model: Any) -> Any:
    """Without dropout; each module gets its mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
