"""DeepSpeed in a dry run without a GPU; `nox -s dry_run_deepspeed` runs it with two processes."""

from __future__ import annotations

import pytest

from lora_doctor.dry_run.acts.adam_in_torch import EXTENSIONS
from tests.test_dry_run_processes import of, record, started


def test_deepspeed_by_hand_tells_its_own_stage() -> None:
    """`deepspeed.initialize` in a loop: no launcher and no Trainer says what was asked for."""
    engine = record("wrapped", 10, by="DeepSpeed", rank=0, classes={"Model": 1}, zero_stage=3)
    found = of(started(10, 0), started(11, 1), engine)
    assert (found.ran_type, found.zero_stage) == ("DeepSpeed", 3)


@pytest.mark.parametrize("decoupled", [True, False])
def test_an_adam_that_is_not_compiled_takes_the_same_steps(decoupled: bool) -> None:
    """In the place of DeepSpeed's extensions, in any of their two forms."""
    torch = pytest.importorskip("torch")
    of_torch = torch.optim.AdamW if decoupled else torch.optim.Adam
    one = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    other, third = one.detach().clone(), one.detach().clone()
    means = [torch.zeros(5) for _ in range(4)]
    optimizer = of_torch([one], lr=0.01, weight_decay=0.1)
    alone, together = EXTENSIONS["cpu_adam"], EXTENSIONS["fused_adam"]
    alone.create_adam(7, 0.01, 0.9, 0.999, 1e-8, 0.1, decoupled, False)
    for step in range(1, 5):
        gradient = torch.linspace(1, 2, 5) * (-1) ** step
        one.grad = gradient.clone()
        optimizer.step()
        alone.adam_update(
            7, step, 0.01, 0.9, 0.999, 1e-8, 0.1, True, other, gradient, means[0], means[1]
        )
        together.multi_tensor_adam(
            1, None, [[gradient], [third], [means[2]], [means[3]]],
            0.01, 0.9, 0.999, 1e-8, step, int(decoupled), 1, 0.1,
        )  # fmt: skip
    torch.testing.assert_close(other, one.detach())
    torch.testing.assert_close(third, one.detach())
