"""A loss in bfloat16 has three digits; whether it falls must be seen all the same."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lora_doctor.contract.measure import measured_loss  # noqa: E402
from lora_doctor.tiny_model.batch.result import Batch  # noqa: E402


class Head(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Makes its loss of logits as they are, like many decoders of transformers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(8, 500)

    def forward(self, hidden: Any, labels: Any) -> Any:
        logits = self.linear(hidden)
        return {"loss": torch.nn.CrossEntropyLoss()(logits, labels), "logits": logits}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_small_step_down_is_seen_in_half_precision(dtype: str) -> None:
    """The loss that the model itself returns is the same number before and after the step."""
    model = Head().to(getattr(torch, dtype))
    hidden = torch.randn(6, 8, dtype=getattr(torch, dtype))
    batch = Batch({"hidden": hidden, "labels": torch.arange(6)}, ["text"], "labels", [])
    before, told = measured_loss(model, batch), float(model(**batch.inputs)["loss"].detach())
    with torch.no_grad():
        model.linear.bias[:6] += 0.003
    after = measured_loss(model, batch)
    assert float(model(**batch.inputs)["loss"].detach()) == told
    assert before - 0.005 < after < before - 0.001
    assert before == pytest.approx(told, abs=0.03)
