"""What the user's optimizer holds: told object by object, with nothing of the user's touched."""

from __future__ import annotations

from typing import Any

import pytest

import lora_doctor
from lora_doctor.errors import InputError
from lora_doctor.evidence.optimizer import read_optimizer
from tests.models import (
    llama_with_detector,
    optimizer_before_adapters,
    optimizer_with_warm_up,
    phase_groups,
)

#: In no group, at learning rate 0, held twice.
OPTIMIZER_RULES = ("LD503", "LD510", "LD511")


def fates(model: Any, optimizer: Any, **options: Any) -> dict[str, int]:
    """How many adapter tensors have which fate."""
    counts: dict[str, int] = {}
    for item in read_optimizer(model, optimizer, **options).tensors:
        if item.adapter:
            counts[item.fate] = counts.get(item.fate, 0) + 1
    return counts


def plain(value: Any) -> Any:
    """Without identities: tensors as bytes, objects as what they hold."""
    if isinstance(value, dict):
        return [(str(key), plain(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "numpy"):
        return value.numpy().tobytes()
    return value if isinstance(value, (int, float, str, bool, type(None))) else type(value)


def test_a_step_moves_exactly_what_is_called_updated() -> None:
    """The claim, executed: a real step on the optimizer of each example."""
    import torch

    model, options = optimizer_before_adapters()
    assert fates(model, options["optimizer"]) == {"in no group": 8}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.arange(4, 20).reshape(2, 8)
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        options["optimizer"].step()
    adapters = [name for name in before if "lora_" in name]
    assert all(model.get_parameter(name).grad is not None for name in adapters)
    assert all(torch.equal(before[name], model.get_parameter(name)) for name in adapters)


def test_learning_rate_zero_counts_when_no_phase_has_another() -> None:
    model = llama_with_detector()
    resting = phase_groups(model, 0.0)
    assert fates(model, resting) == {"learning rate 0": 8}
    assert fates(model, [resting, phase_groups(model, 1e-5)]) == {"updated": 8}
    assert fates(model, {"first": resting, "second": resting}) == {"learning rate 0": 8}
    assert fates(model, [phase_groups(model, 0.0, always=False)]) == {"in no group": 8}


def test_a_scheduler_is_run_for_the_whole_run() -> None:
    """A warm-up ends; a factor of 0 that never does is a learning rate of 0."""
    import torch

    model, options = optimizer_with_warm_up()
    assert fates(model, **options) == {"updated": 8}
    optimizer = torch.optim.AdamW(phase_groups(model, 1e-5))
    never = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    assert fates(model, optimizer, scheduler=never, planned_steps=50) == {"learning rate 0": 8}
    late = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step >= 40))
    assert fates(model, optimizer, scheduler=late, planned_steps=50) == {"updated": 8}
    assert fates(model, optimizer, scheduler=late, planned_steps=20) == {"learning rate 0": 8}


@pytest.mark.parametrize("steps", [0, 3])
def test_optimizer_and_scheduler_stay_bit_for_bit(steps: int) -> None:
    """With and without moments in the optimizer's state, and the groups' own tensors as well."""
    import torch

    model = llama_with_detector()
    optimizer = torch.optim.AdamW(phase_groups(model, 1e-5))
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=5),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
        ],
        milestones=[5],
    )
    ids = torch.arange(4, 20).reshape(2, 8)
    for _ in range(steps):
        model(input_ids=ids, labels=ids)["loss"].backward()
        optimizer.step()
        scheduler.step()
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    attributes = sorted(vars(optimizer)), sorted(vars(scheduler))

    def image() -> list[Any]:
        weights = [p.detach() for p in model.parameters()]
        return plain([optimizer.state_dict(), scheduler.state_dict(), weights])

    before = image()
    lora_doctor.check(
        model, optimizer=optimizer, scheduler=scheduler, planned_steps=30, select=OPTIMIZER_RULES
    )
    assert image() == before
    assert held == [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert attributes == (sorted(vars(optimizer)), sorted(vars(scheduler)))


def test_stale_shared_and_repeated_tensors_are_told_apart() -> None:
    """A copy of a parameter over the same memory gets no gradient; twice in a phase counts."""
    import torch

    model = llama_with_detector()
    own = [p for p in model.parameters() if p.requires_grad]
    twin = torch.nn.Parameter(own[0].detach())
    state = read_optimizer(model, [{"params": [twin, *own[1:], own[1]], "lr": 1e-3}])
    assert (state.foreign, len(state.foreign_shared)) == (1, 1)
    assert [item.name for item in state.lost(adapter=True)] == list(state.foreign_shared)
    assert sum(item.times > 1 for item in state.tensors) == 1
    stranger = read_optimizer(model, torch.optim.SGD(llama_with_detector().parameters(), lr=1.0))
    assert stranger.foreign == stranger.held and not stranger.foreign_shared


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": 3}, "optimizer is a torch optimizer"),
        ({"optimizer": "adamw"}, "optimizer is a torch optimizer"),
        ({"optimizer": []}, "empty list"),
        ({"optimizer": {"first": 3}}, "optimizer, first: is"),
        ({"optimizer": [{"params": iter(()), "lr": 1.0}]}, "give a list of tensors"),
        ({"optimizer": [{"params": []}]}, "a group has no lr"),
        ({"scheduler": object()}, "give optimizer too"),
        ({"optimizer": [{"params": [], "lr": 1.0}], "planned_steps": 0}, "number of optimizer"),
        ({"optimizer": [{"params": [], "lr": 1.0}], "scheduler": 1}, "goes with one optimizer"),
    ],
)
def test_what_is_no_optimizer_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        lora_doctor.check(llama_with_detector(), **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_optimizer_goes_with_a_model_in_memory() -> None:
    with pytest.raises(InputError, match="give that model, not arch:llama"):
        lora_doctor.check("arch:llama", optimizer=[{"params": [], "lr": 1.0}])


def test_a_scheduler_needs_the_length_of_the_run() -> None:
    model, options = optimizer_with_warm_up()
    with pytest.raises(InputError, match="planned_steps"):
        lora_doctor.check(model, optimizer=options["optimizer"], scheduler=options["scheduler"])


def test_before_get_peft_model_nothing_can_be_held() -> None:
    """The model as it was loaded, and a recipe: the adapters come after the optimizer."""
    import torch

    from tests.models import headless_llama

    model = headless_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    found = lora_doctor.check(
        model, {"target_modules": ["q_proj"], "r": 4}, optimizer=optimizer, depth="meta"
    )
    messages = [item.message for item in found.findings if item.rule == "LD503"]
    assert len(messages) == 1 and "before get_peft_model" in messages[0]
    assert {"LD510", "LD511"} <= set(found.passed), "one cause, one finding"


def test_two_reasons_why_no_adapter_moves_are_two_findings_and_both_errors() -> None:
    """Each accounts for half of the adapters; together nothing of them learns."""
    model = llama_with_detector()
    adapters = [(name, p) for name, p in model.named_parameters() if "lora_" in name]
    resting = [p for name, p in adapters if "lora_A" in name]
    found = lora_doctor.check(
        model, optimizer=[{"params": resting, "lr": 0.0}], depth="meta", select=OPTIMIZER_RULES
    ).findings
    assert [(item.rule, item.severity) for item in found] == [
        ("LD503", "error"),
        ("LD510", "error"),
    ]
    group, rate = (item.message for item in found)
    assert group.startswith(
        "4 of 8 trainable adapter tensors will never be updated: 4 in no parameter group"
    )
    assert "2 other trainable tensors will not be either" in group
    assert rate.startswith("4 of 8") and "only at learning rate 0" in rate and "other" not in rate
    trained = [p for name, p in adapters if "lora_B" in name]
    groups = [{"params": resting, "lr": 0.0}, {"params": trained, "lr": 1e-4}]
    (rate_alone,) = lora_doctor.check(
        model, optimizer=groups, depth="meta", select=("LD510",)
    ).findings
    assert rate_alone.severity == "warning"


def test_without_an_optimizer_its_rules_are_skipped() -> None:
    """Not asked is not passed."""
    found = lora_doctor.check(llama_with_detector(), depth="meta")
    assert not set(OPTIMIZER_RULES) & set(found.passed)
    reasons = {item.rule: item.reason for item in found.skipped}
    assert all("optimizer=" in reasons[code] for code in OPTIMIZER_RULES)
