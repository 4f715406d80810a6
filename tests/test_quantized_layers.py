"""Why a quantized model does not run is found by running it: who touched a quantized layer last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
bitsandbytes = pytest.importorskip("bitsandbytes")

import lora_doctor  # noqa: E402
from lora_doctor.evidence.quantized_layers import uses  # noqa: E402
from lora_doctor.sandbox.worker import Worker  # noqa: E402


class Block(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Two linear layers; `ask` is what its own code does with the second."""

    def __init__(self, ask: str) -> None:
        super().__init__()
        self.ask = ask
        self.up = torch.nn.Linear(8, 8)
        self.down = torch.nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        x = self.up(x)
        if self.ask == "reads":
            return torch.nn.functional.linear(x, self.down.weight)
        if self.ask == "unrelated":
            raise ValueError("nothing to do with it")
        if self.ask == "unpacks":  # what the class of the layer gave out before it was replaced
            x, _, _ = self.down(x)
            return x
        return self.down(x)


class Router(torch.nn.Linear):  # type: ignore[misc, name-defined]
    def forward(self, x: Any) -> Any:
        return super().forward(x), x, x


class FakeMatcher:
    """Says what the installed replacement would: names are matched as ends of paths."""

    default = ("head",)
    linears = frozenset({"up", "down", "head"})

    def quantized(self, skip: list[str] | None) -> set[str]:
        names = self.default if skip is None else skip
        return {path for path in self.linears if not path.endswith(tuple(names))}


def explain(ask: str, given: list[str] | None = None) -> tuple[Any, ...]:
    matcher = FakeMatcher()

    def load(skip: list[str] | None) -> Any:
        block = Block(ask)
        if ask == "unpacks":
            block.down = Router(8, 8)
        for path in matcher.quantized(skip) & {"up", "down"}:
            layer = bitsandbytes.nn.Linear8bitLt(8, 8, has_fp16_weights=False)
            layer.load_state_dict(block.get_submodule(path).state_dict())
            setattr(block, path, layer.to("cpu"))
        return block

    def run(model: Any) -> Iterator[None]:
        model.train()
        model(torch.randn(2, 3, 8))
        yield

    return uses(load, run, matcher, given, frozenset({"down"} if ask == "unpacks" else ()))


def test_the_layer_whose_weight_is_read_is_left_out_and_the_model_then_runs() -> None:
    """Only that layer: the other one stays quantized."""
    (one,) = explain("reads")
    assert one.use == "weight" and one.patterns == ("down",)
    assert one.names == ("down",) and one.skip == ("head", "down") and one.quantized == 1
    assert "test_quantized_layers.py" in one.where


def test_what_the_user_skips_already_stays_in_the_list() -> None:
    (one,) = explain("reads", ["up"])
    assert one.skip == ("head", "up", "down") and one.quantized == 0


def test_a_layer_that_lost_its_own_forward_is_told_from_one_whose_weight_is_read() -> None:
    """Llama 4's router gives out two things (here three), and the layer in its place one."""
    (one,) = explain("unpacks")
    assert one.use == "class" and one.names == ("down",)


@pytest.mark.parametrize("ask", ["unrelated", "calls"])
def test_nothing_is_told_of_a_model_that_runs_or_fails_for_another_reason(ask: str) -> None:
    """Leaving layers out until it happens to run would be a guess."""
    assert explain(ask) == ()


def test_a_model_that_does_not_run_in_half_precision_does_not_train_in_it() -> None:
    """The columns of the census are about this machine; it is no open question there."""
    from lora_doctor.census.cells import cell
    from lora_doctor.results.note import Note
    from lora_doctor.results.verification import Verification

    why = "the base model does not run without adapters: text: RuntimeError: expected Float"
    notes = (Note("does-not-run", f"run in float32, bfloat16 is not proven: {why}", why),)
    ran = Verification("passed", "tiny", "cpu", "float32", (), notes=notes)
    assert cell(ran) == {"status": "no", "reason": why}
    full = "OSError: full"
    not_saved = (Note("not-proven", f"run in float32, bfloat16 is not proven: {full}", full),)
    ran = Verification("passed", "tiny", "cpu", "float32", (), notes=not_saved)
    assert cell(ran)["status"] == "unknown"


@pytest.mark.slow
def test_real_weights_that_do_not_run_quantized_are_explained_too(tmp_path: Path) -> None:
    """At depth full nobody loads seven billion weights five times: the tiny model tells."""
    transformers = pytest.importorskip("transformers", minversion="4.53")
    torch.manual_seed(0)
    config = transformers.LongT5Config(
        d_model=64, d_ff=128, d_kv=16, num_heads=4, num_layers=2, num_decoder_layers=2,
        vocab_size=300, decoder_start_token_id=0,
    )  # fmt: skip
    transformers.LongT5ForConditionalGeneration(config).save_pretrained(tmp_path)
    recipe = {"load_in_4bit": True, "target_modules": ["q", "v"]}
    with Worker(threads=1) as worker:
        broken = lora_doctor.check(tmp_path, recipe, depth="full", device="cpu", worker=worker)
        (finding,) = broken.findings
        assert finding.rule == "LD304" and "wo" in finding.message, finding
        skip = next(edit for edit in finding.fixes[0].edits)
        fixed = {**recipe, skip.key: skip.value}
        healthy = lora_doctor.check(tmp_path, fixed, depth="full", device="cpu", worker=worker)
    assert healthy.verdict == "healthy", healthy.before
