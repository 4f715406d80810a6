"""Labels that are shifted twice: a collator makes the next token the label of each token, and the
model's loss shifts them once more. Whether it does is asked of the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.packed import evaluating
from lora_doctor.supervision.rows import IGNORED

#: Labels below which nothing is concluded, and the share of them that are the next token, and at
#: most the token itself (in a text of one token over and over both are so).
_LEAST, _NEXT, _OWN = 8, 0.9, 0.5
#: By how much a loss may differ from the cross entropy that it is.
_SAME = 1e-3


def look(acting: Acting, model: Any, batch: Mapping[str, Any]) -> None:
    """Tell once what a batch with such labels shows; nothing where labels are the tokens."""
    if acting.seen("shifted_labels"):
        return
    counts = _counted(batch)
    if counts is None:
        return
    with acting.ours(), evaluating(model):
        try:
            losses = _losses(model, batch)
        except Exception as error:  # noqa: BLE001 - a forward of the user's own
            acting.journal.tell("shifted_labels", why=f"{type(error).__name__}: {error}"[:300])
            return
    loss, shifted, unshifted = losses
    if abs(loss - shifted) <= _SAME * abs(shifted) < abs(loss - unshifted):
        labels, following = counts
        acting.journal.tell(
            "shifted_labels",
            labels=labels,
            next_tokens=following,
            loss=loss,
            shifted=shifted,
            unshifted=unshifted,
        )


def _counted(batch: Mapping[str, Any]) -> tuple[int, int] | None:
    """Labels of a batch and those that are the token which follows; ``None`` where that is not what
    they are."""
    ids, labels = batch.get("input_ids"), batch.get("labels")
    if ids is None or labels is None or getattr(labels, "shape", None) != ids.shape:
        return None
    if ids.dim() != 2 or ids.is_floating_point():
        return None
    own, following, given = ids[:, :-1], ids[:, 1:], labels[:, :-1]
    on = given != IGNORED
    count = int(on.sum())
    same = int(((given == following) & on).sum())
    tokens = int(((given == own) & on).sum())
    if count < _LEAST or same < _NEXT * count or tokens > _OWN * count:
        return None
    return count, same


def _losses(model: Any, batch: Mapping[str, Any]) -> tuple[float, float, float]:
    """The loss that the model gives, and the cross entropy with its labels shifted and not."""
    import torch

    given = {name: value for name, value in batch.items() if name != "num_items_in_batch"}
    with torch.no_grad():
        output = model(**given)
        logits, labels = output.logits.float(), batch["labels"]

        def entropy(scores: Any, wanted: Any) -> float:
            flat = scores.reshape(-1, scores.shape[-1])
            return float(
                torch.nn.functional.cross_entropy(flat, wanted.reshape(-1), ignore_index=IGNORED)
            )

        return (
            float(output.loss),
            entropy(logits[:, :-1], labels[:, 1:]),
            entropy(logits, labels),
        )
