"""The live run: a real training is judged before its first step, and watched."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lora_doctor
from lora_doctor.errors import InputError, TrainingStopped
from lora_doctor.live.ranks import Ranks, Words
from lora_doctor.live.written_rows import writes_its_rows

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

TOKENS, ROWS = 12, 2


def make_model() -> Any:
    """Two small layers with adapters and dropout, the same each time."""
    import peft
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=90, pad_token_id=0,
    )  # fmt: skip
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], lora_dropout=0.1
    )
    return peft.get_peft_model(AutoModelForCausalLM.from_config(config), lora)


def rows(count: int = 24) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    made = [torch.randint(1, 90, (TOKENS,), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "labels": ids.clone()} for ids in made]


def batches() -> Iterator[dict[str, Any]]:
    given = rows()
    for start in range(0, len(given), ROWS):
        chosen = given[start : start + ROWS]
        yield {name: torch.stack([row[name] for row in chosen]) for name in chosen[0]}


def layer(model: Any, number: int) -> Any:
    return model.base_model.model.model.layers[number]


def train(
    model: Any,
    trained: Any = None,
    before: Callable[[int], None] = lambda step: None,
    **options: Any,
) -> Any:
    """A loop of somebody's own: twelve steps. ``before``: what happens before each of them."""
    adapters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapters if trained is None else trained, lr=1e-3)
    watch = lora_doctor.watch(model, optimizer, **options)
    model.train()
    for step, batch in enumerate(batches(), 1):
        before(step)
        loss = model(**batch).loss
        loss.backward()
        watch.step(loss)
        optimizer.step()
        optimizer.zero_grad()
    return watch


def weights(model: Any) -> list[Any]:
    return [p.detach().clone() for p in model.parameters()]


def hooks(model: Any) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def trainer(model: Any, folder: Path, callbacks: list[Any]) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder), max_steps=8, per_device_train_batch_size=ROWS, report_to=[],
        save_strategy="no", disable_tqdm=True, learning_rate=1e-3, logging_steps=100,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=rows(), callbacks=callbacks)


def test_a_healthy_training_is_told_so_and_is_not_changed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Same weights to the last bit, same random numbers afterwards, no hook left."""
    plain, watched = make_model(), make_model()
    trainer(plain, tmp_path, []).train()
    drawn = torch.rand(3)
    callback = lora_doctor.callback()
    trainer(watched, tmp_path, [callback]).train()
    assert torch.equal(torch.rand(3), drawn)
    assert all(map(torch.equal, weights(plain), weights(watched)))
    assert hooks(watched) == hooks(plain) == 0
    said = [one for one in capfd.readouterr().err.splitlines() if one.startswith("lora-doctor")]
    assert re.fullmatch(r"lora-doctor: live run: before step 1: nothing found \(.* s\)", said[0]), (
        said
    )
    assert "steps 1 to 4: every adapter parameter has a gradient and moves" in said[1]
    before = callback.watch.diagnosis.before
    assert before.outcome == "passed" and before.depth == "full"
    assert before.batches[0].inputs["input_ids"] == (ROWS, TOKENS), "the first batch of the run"


def test_an_optimizer_without_the_adapters_stops_the_job(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Before the first step, and the message says rule, what, where and what to do."""
    model = make_model()
    head = model.get_output_embeddings().weight.requires_grad_(True)
    before = weights(model)
    with pytest.raises(TrainingStopped, match=r"before step 1: LD503 not-in-the-optimizer") as told:
        train(model, [head], contract=False)
    assert told.value.findings[0].rule == "LD503" and "What to do: " in str(told.value)
    assert "error LD503" in capfd.readouterr().err
    assert all(map(torch.equal, before, weights(model)))
    assert hooks(model) == 0


def test_adapters_that_get_no_gradient_stop_the_job() -> None:
    """Cut off in the live model by code that no copy of it was asked about."""
    model = make_model()
    cut = layer(model, 0).register_forward_hook(
        lambda module, given, output: (
            output.detach() if torch.is_tensor(output) else (output[0].detach(), *output[1:])
        )
    )
    with pytest.raises(TrainingStopped, match=r"after step 4: .*gradient") as told:
        train(model, contract=False)
    assert "layers.0.self_attn" in str(told.value) or any(
        "layers.0.self_attn" in str(item.value)
        for finding in told.value.findings
        for item in finding.evidence
    )
    cut.remove()


def test_the_module_that_makes_nan_is_named() -> None:
    """In a step long after the watched ones, before the optimizer has taken it in."""
    model = make_model()

    def break_it(step: int) -> None:
        if step == 8:
            with torch.no_grad():
                layer(model, 1).mlp.up_proj.weight[0, 0] = float("inf")

    with pytest.raises(TrainingStopped, match=r"layers\.1\.mlp\.up_proj") as told:
        train(model, before=break_it, contract=False)
    assert "in step 8" in str(told.value)
    adapters = [p for n, p in model.named_parameters() if "lora_" in n]
    assert all(bool(torch.isfinite(p).all()) for p in adapters)
    assert hooks(model) == 0


@pytest.mark.parametrize("step", [2, 9])
def test_a_gradient_that_is_not_finite_is_found_behind_a_finite_loss(step: int) -> None:
    model = make_model()

    def break_it(now: int) -> None:
        if now == step:
            weight = next(
                p for n, p in model.named_parameters() if "1.self_attn.v_proj.lora_B" in n
            )
            weight.register_hook(lambda gradient: gradient * float("nan"))

    with pytest.raises(TrainingStopped, match=r"gradient.*v_proj.lora_B") as told:
        train(model, before=break_it, contract=False)
    assert f"in step {step}" in str(told.value)
    found = [one.rule for one in told.value.findings]
    assert found == ["LD001"], "no setting is at fault: no other run has failed with it"


def test_autocast_of_the_loop_is_that_of_the_second_look() -> None:
    """What overflows in half precision only is not found without it."""
    model = make_model()
    weight = layer(model, 1).mlp.up_proj.weight
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    watch = lora_doctor.watch(model.train(), optimizer, contract=False)
    with pytest.raises(TrainingStopped, match=r"layers\.1\.mlp\.up_proj") as told:
        for step, batch in enumerate(batches(), 1):
            if step == 6:
                weight.data.mul_(1e8)
            with torch.autocast("cpu", dtype=torch.float16):
                loss = model(**batch).loss
            loss.backward()
            watch.step(loss)
            optimizer.step()
            optimizer.zero_grad()
    assert "float16" in str(told.value) and watch.diagnosis is not None
    assert watch.diagnosis.recipe.get("fp16") is True


def test_hooks_are_not_compiled_with_the_model(capfd: pytest.CaptureFixture[str]) -> None:
    """Dynamo would trace what the watch does, the training contract included."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def forward(self, x: Any) -> Any:
            return {"loss": self.layer(x).sum() ** 2}

    model, graphs = Model(), []
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = lora_doctor.watch(compiled, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Dynamo does not know how to trace")
        for _ in range(3):
            loss = compiled(torch.ones(2, 3))["loss"]
            loss.backward()
            watch.step(loss)
            optimizer.step()
            optimizer.zero_grad()
    watch.close()
    assert len(graphs) == 1, "the forward, and nothing of ours"
    assert "no adapters of PEFT" in capfd.readouterr().err


def test_processes_that_train_apart_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes in a group, and nothing that averages their gradients: what they have told
    each other after the watched steps differs."""
    told = SimpleNamespace(sums=lambda: {"0": 10.0, "1": 10.1})
    monkeypatch.setattr(Ranks, "told", lambda model, step: told)
    with pytest.raises(TrainingStopped, match=r"after step 4: LD541 .*2 processes train"):
        train(make_model(), contract=False)
    same = SimpleNamespace(sums=lambda: {"0": 10.0, "1": 10.0})
    monkeypatch.setattr(Ranks, "told", lambda model, step: same)
    train(make_model(), contract=False)


def test_no_process_waits_for_what_another_one_tells() -> None:
    store = torch.distributed.HashStore()
    ranks = Ranks(Words(store, ["a/0", "a/1"]))
    store.set("a/0", "names 2.5")
    assert ranks.sums() is None
    store.set("a/1", "names 3.5")
    assert ranks.sums() == {"0": 2.5, "1": 3.5}
    store.set("a/1", "other-names 3.5")
    assert ranks.sums() == {}, "each has a part of the model"


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process only."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def sharded(model: Any) -> Any:
    """By FSDP 2, each layer for itself."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    for part in (layer(model, 0), layer(model, 1), model):
        fsdp.fully_shard(part, mesh=mesh)
    return model


@pytest.mark.usefixtures("alone")
def test_adapters_in_shards_are_watched(capfd: pytest.CaptureFixture[str]) -> None:
    """Gradients and moves are read in the part that a process has, and put together; a gradient
    that is not finite is found in the part."""
    train(sharded(make_model()))
    assert "every adapter parameter has a gradient and moves" in capfd.readouterr().err

    bypassed = make_model()
    part = layer(bypassed, 1).self_attn.q_proj
    part.forward = part.base_layer.forward
    with pytest.raises(TrainingStopped, match=r"after step 4: .* 2 got none .*1\.self_attn"):
        train(sharded(bypassed))

    model = sharded(make_model())

    def infinite(module: Any, inputs: Any, output: Any) -> None:
        output.register_hook(lambda grad: grad * float("inf"))

    def spoilt(step: int) -> None:
        if step == 7:
            layer(model, 1).self_attn.v_proj.lora_B["default"].register_forward_hook(infinite)

    with pytest.raises(TrainingStopped, match=r"gradient of .*v_proj.* not finite .*step 7"):
        train(model, before=spoilt)


def test_what_no_process_has_seen_in_its_part_is_lacking() -> None:
    """A process may hold nothing of a small parameter, or rows of which no batch has a token."""
    from lora_doctor.contract.watched import WatchedSteps
    from lora_doctor.model.contract_batches import make_batches

    def steps() -> Any:
        model = make_model()
        layer(model, 0).self_attn.q_proj.lora_A["default"].weight.requires_grad_(False)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
        given = next(batches())
        seen = WatchedSteps(
            model, make_batches(model, [given], None, [])[0], dtype="float32", device="cpu"
        )
        for parameter in seen.parameters:
            parameter.tensor.requires_grad_(True)
        for _ in range(2):
            model(**given).loss.backward()
            seen.before_step()
            optimizer.step()
            seen.after_step()
        return seen

    for elsewhere, outcome in (
        ({}, "failed"),  # nobody has moved it
        ({"still": [0, 1]}, "failed"),
        ({"still": [1]}, "passed"),
        ({"names": [2, 1]}, None),
    ):
        seen = steps()
        own = json.loads(seen.told())
        assert own["still"] == [0]
        found = seen.judge_together("two", [json.dumps(own), json.dumps({**own, **elsewhere})])
        assert (found and found.outcome) == outcome, elsewhere


def test_rows_that_the_model_writes_are_known_by_their_collator() -> None:
    """GRPO's hands them on, with vLLM or without: what forward gets is what the model has written,
    and an answer without an end is not the user's."""
    from transformers import default_data_collator

    prompts = [{"prompt": "Number 7 is"}]
    for collate, rows, written in (
        (lambda rows: rows, prompts, True),
        (default_data_collator, [{"input_ids": [1, 2]}], False),
        (default_data_collator, prompts, False),
        (lambda rows: rows, iter(prompts), False),
        (None, prompts, False),
    ):
        trainer = SimpleNamespace(data_collator=collate, train_dataset=rows)
        assert writes_its_rows(trainer) is written


def test_with_never_it_only_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    model = make_model()
    head = model.get_output_embeddings().weight.requires_grad_(True)
    watch = train(model, [head], on="never", contract=False)
    assert watch.diagnosis is not None
    assert capfd.readouterr().err.count("error LD503") == 1, "each finding once"


def test_a_model_without_adapters_is_watched_for_its_numbers(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from transformers import AutoModelForCausalLM

    config = make_model().config
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)

    def break_it(step: int) -> None:
        if step == 3:
            with torch.no_grad():
                model.model.layers[0].mlp.down_proj.weight[:] = float("inf")

    with pytest.raises(TrainingStopped, match=r"the loss is nan in step 3.*layers\.0\.mlp\.down"):
        train(model, before=break_it)
    assert "no adapters of PEFT" in capfd.readouterr().err


def test_what_cannot_be_is_refused() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="expected one of error, warning, never"):
        lora_doctor.callback("always")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="LD999"):
        lora_doctor.watch(model, optimizer, select=["LD999"])
    with pytest.raises(InputError, match="optimizer: is an optimizer of torch, not str"):
        lora_doctor.watch(model, "adamw")
    with pytest.raises(TypeError, match="unexpected keyword argument 'onn'"):
        lora_doctor.watch(model, optimizer, onn="error")  # type: ignore[call-arg]
