"""Rules that compare two runs of the contract, or what is loaded with what is saved: which
sentence, which evidence, which fix.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace as Stub
from typing import Any

import pytest

from lora_doctor.errors import EvidenceError
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.finding import Finding, Measurement
from lora_doctor.results.loading import Loading, Unsaved
from lora_doctor.results.plain_weights import PlainWeights
from lora_doctor.results.verification import Check
from lora_doctor.static.place import Place
from tests.rule_asking import RULES, ask, evidence, fixes, one

# --- by comparison --------------------------------------------------------------------------------


def compared(
    gathered: Callable[..., None], code: str, failed: tuple[str, ...], better: bool = True
) -> None:
    """The contract failed at these checks, and passes them with the rule's edits, or does not."""
    gathered(code, failed_in_training=failed, holds=better, tried=None,
             said=lambda seen, name: f"{name}: no")  # fmt: skip


def failed_run(message: str = "no", traceback: str = "", where: str = "") -> Stub:
    failure = Stub(message=message, traceback=traceback, where=where)
    return Stub(depth="tiny", failure=failure)


def adapter(method: str, **values: Any) -> Recipe:
    return Recipe({"peft_type": method, "task_type": "CAUSAL_LM", **values})


@pytest.mark.parametrize(
    ("failed", "severity", "outcome"),
    [
        (("loss-falls",), "warning", "The loss does not fall"),
        (("gradients", "loss-falls"), "error", "The adapters get no gradient"),
        (("adapters-move",), "error", "The adapters do not move"),
        (("save-reload", "merge"), "error", "The saved adapter is another one when it is loaded"),
        (("forward",), "error", "Training fails"),
    ],
    ids=["loss", "gradients", "moves", "saved", "forward"],
)
def test_ld221_says_what_fails_with_which_setting(
    failed: tuple[str, ...], severity: str, outcome: str, gathered: Callable[..., None]
) -> None:
    compared(gathered, "LD221", failed)
    found = one("LD221", recipe=adapter("LORA", lora_alpha=0), verification=failed_run())
    assert (found.severity, found.explains) == (severity, failed)
    assert found.message == (
        f"{outcome} with lora_alpha: 0 in this LORA adapter, but not without it: {failed[0]}: no"
    )
    assert evidence(found) == {
        "with lora_alpha: 0": f"{failed[0]}: no",
        "without lora_alpha": f"checks passed: {', '.join(failed)}",
    }
    (fix,) = found.fixes
    assert (fix.safety, fix.edits[0].key) == ("unsafe", "lora_alpha")


def test_ld221_tries_settings_that_the_traceback_names_first(
    gathered: Callable[..., None],
) -> None:
    """At most six, and the targets only of a method that has others than LoRA."""

    def key(method: str, run: Stub, **values: Any) -> str:
        return one("LD221", recipe=adapter(method, **values), verification=run).location.path

    many = {f"setting_{number}": number for number in range(8)}
    compared(gathered, "LD221", ("forward",))
    assert key("LORA", failed_run(), **many) == "setting_0"
    assert key("LORA", failed_run(traceback="x = setting_7"), **many) == "setting_7"
    assert key("LORA", failed_run("setting_6 is wrong"), **many) == "setting_6"
    assert key("LORA", Stub(depth="tiny", failure=None), **many) == "setting_0"
    for method in ("SHADOW", "ADALORA"):
        assert key(method, failed_run(), target_modules=["q_proj"]) == "target_modules"
    only_targets = adapter("LORA", target_modules=["q_proj"])
    assert ask("LD221", recipe=only_targets, verification=failed_run()) == []
    run = {"recipe": adapter("SHADOW", target_modules=["q"], **many), "verification": failed_run()}
    tried: list[str] = []
    gathered("LD221", holds=False, tried=lambda case, edits: tried.append(edits[0].key))
    assert ask("LD221", **run) == [], "without it the same fails"
    assert tried == [*(f"setting_{number}" for number in range(6)), "target_modules"]
    compared(gathered, "LD221", ())
    assert ask("LD221", **run) == [], "nothing failed"


def test_ld221_shortens_a_long_value(gathered: Callable[..., None]) -> None:
    compared(gathered, "LD221", ("forward",))
    for value, told in (("x" * 40, "x" * 40), ("x" * 41, f"{'x' * 37}...")):
        found = one("LD221", recipe=adapter("LORA", a=value), verification=failed_run())
        assert next(iter(evidence(found))) == f"with a: {told}"


def test_ld222_offers_lora_where_the_method_alone_fails(gathered: Callable[..., None]) -> None:
    def case(method: str, run: Stub, **values: Any) -> dict[str, Any]:
        recipe = adapter(method, **values)
        return {"recipe": recipe, "verification": run, "recipe_in_full": lambda: recipe,
                "structure": Stub(model_class="Qwen2")}  # fmt: skip

    own = {"target_modules": ["q"], "layers_to_transform": [1], "sizes": 3, "lora_alpha": 9}
    shadow = case("SHADOW", failed_run(where="a.py:1"), **own)
    compared(gathered, "LD222", ("attaches", "forward"))
    found = one("LD222", **shadow)
    assert (found.severity, found.explains) == ("error", ("attaches", "forward"))
    assert found.message == (
        "SHADOW fails on Qwen2, where LoRA on the same layers trains: attaches: no"
    )
    assert evidence(found) == {
        "SHADOW, failed check attaches": "attaches: no",
        "raised in": "a.py:1",
        "LoRA on the same layers": "checks passed: attaches, forward",
    }
    (fix,) = found.fixes
    assert fix.safety == "unsafe" and {edit.key: edit.value for edit in fix.edits}.keys() == {
        "peft_type", "sizes", "lora_alpha",
    }, "what LoRA has as well is about the same layers, the rest is its default"  # fmt: skip
    assert fix.edits[0].value == "LORA"
    for run in (failed_run(), Stub(depth="tiny", failure=None)):
        nowhere = one("LD222", **case("ADALORA", run))
        assert evidence(nowhere)["raised in"] == "nothing was raised"
    for method in ("LORA", "PREFIX_TUNING"):
        assert ask("LD222", **case(method, failed_run())) == [], "other rules are about these"
    compared(gathered, "LD222", ("attaches",), better=False)
    assert ask("LD222", **shadow) == [], "LoRA fails there as well"
    compared(gathered, "LD222", ())
    assert ask("LD222", **shadow) == []


def test_ld317_counts_matrices_and_says_what_loading_makes_of_them() -> None:
    def case(*dtypes: str, recipe: Any = None, unread: bool = False, **given: Any) -> Any:
        tensors = {str(n): Stub(shape=(8,) * (n + 2), dtype=one) for n, one in enumerate(dtypes)}
        tensors["norm"] = Stub(shape=(8,), dtype="I8")
        weights = Stub(unread=unread, tensors=tensors)
        files = {
            "quantization_config": {"quant_method": "bitsandbytes"}, "where": lambda name: name,
            "weights": Stub(require=lambda: weights), **given.pop("static", {}),
        }  # fmt: skip
        plain = PlainWeights("bitsandbytes", **{"missing": ("a", "b", "c"), **given})
        return {"has": {"static"}.__contains__, "static": Stub(**files), "recipe": recipe or {},
                "plain_weights": plain}  # fmt: skip

    found = one("LD317", **case("BF16", "BF16", "F32"))
    assert found.severity == "error" and found.explains == ("builds",)
    assert found.message == (
        "config.json says that the weights are quantized with bitsandbytes, and all 3 matrices in "
        "the checkpoint are in floating point: weights stay random, such as a, b and 1 more."
    )
    assert evidence(found)["matrices by dtype"] == "2 BF16, 1 F32"
    assert evidence(one("LD317", **case("F16", "BF16", "F32", "F64")))["matrices by dtype"]
    error = ErrorReport("AssertionError", "no shape", "")
    raised = one("LD317", **case("F16", error=error, raised_in="forward"))
    assert raised.message.endswith(": forward raises AssertionError: no shape.")
    assert ask("LD317", **{**case("BF16"), "has": set().__contains__}) == []
    for healthy in (
        case("BF16", "U8"),
        case(),
        case("BF16", unread=True),
        case("BF16", recipe={"dequantize": True}),
        case("BF16", missing=()),
        case("BF16", static={"quantization_config": None}),
    ):
        assert ask("LD317", **healthy) == []


def test_ld589_is_about_programs(gathered: Callable[..., None]) -> None:
    reset = Stub(code="optimizer.zero_grad()", since_code="accelerator.accumulate(model)")
    gathered("LD589", gradients_discarded=[(Place("a.py", 9), reset, Place("a.py", 7))])
    assert ask("LD589", has=set().__contains__) == []
    found = one("LD589", has={"program"}.__contains__, program=Stub())
    assert found.severity == "warning" and found.location.line == 9
    assert list(evidence(found).values()) == [
        "optimizer.zero_grad()", "accelerator.accumulate(model)",
    ]  # fmt: skip


def test_a_rule_that_runs_the_contract_again_waits_for_those_that_do_not() -> None:
    """What it finds by comparison may be accounted for by another rule, at less cost."""
    again = [
        rule
        for rule in RULES.values()
        if hasattr(sys.modules[rule.__module__], "failed_in_training")
    ]
    assert again and all(rule.is_comparison and rule.is_about_training() for rule in again)


# --- weights that are random ----------------------------------------------------------------------


@pytest.fixture
def random_weights(gathered: Callable[..., None]) -> Callable[..., list[Finding]]:
    """What LD606 says of weights that the checkpoint lacks."""

    def said(
        modules: tuple[str, ...] = ("score",), *, kind: str = "folder", run: Any = None,
        recipe: Any = None, **given: Any,
    ) -> list[Finding]:  # fmt: skip
        gathered("LD606", pattern_of=lambda path: path, entries_for=lambda paths, _: list(paths),
                 trained_whole=lambda case, names: names, matches=lambda path, one: path == one,
                 stack_mismatches=given.get("stacks", ()),
                 difference=(Measurement("logits", "0.9", "run"),))  # fmt: skip
        unsaved = Unsaved(modules, given.get("others", ()), given.get("parameters", 64), 1000)
        loading = Loading(
            "Llama", 12, unplaced=given.get("unplaced", 0), unplaced_examples=("a", "b", "c"),
            unsaved=unsaved, error=given.get("error"), saved_class=given.get("saved_class", ""),
        )  # fmt: skip
        known = {name for name in ("static", "verification") if given.get(name, run is not None)}
        static = Stub(config={}, weights=Stub(value=1 if given.get("stacks") else None),
                      quantization_config=given.get("quantized"))  # fmt: skip
        return ask(
            "LD606", loading=loading, recipe=Recipe(recipe or {}), source=Stub(kind=kind),
            has=known.__contains__, static=static, structure=None, verification=run,
            reaches=lambda depth: given.get("tiny", True),
        )  # fmt: skip

    return said


def reloaded(status: str | None, value: Any = 0.9, **given: Any) -> Stub:
    check = Check("save-reload", status, value, "", "") if status else None  # type: ignore[arg-type]
    random = Stub(modules=given.get("random", ("score",)), others=given.get("others", ()))
    return Stub(check=lambda name: check, saving=Stub(random=random),
                batches=[Stub(loss=loss) for loss in given.get("losses", ("own",))],
                notes=[Stub(is_gap=gap) for gap in given.get("gaps", ())])  # fmt: skip


def test_ld606_is_as_sure_as_the_run(random_weights: Callable[..., list[Finding]]) -> None:
    (unknown,) = random_weights()
    assert unknown.severity == "warning" and unknown.message.endswith(
        "will not contain them; whether the loss depends on them was not tested."
    )
    assert evidence(unknown)["frozen and not saved"] == "64 parameters of 1,000"
    assert "in the checkpoint, not used by the class" not in evidence(unknown)
    assert unknown.proof.kind == "measured" and "logits" not in evidence(unknown)
    (failed,) = random_weights(run=reloaded("failed"), unplaced=3)
    assert failed.severity == "error" and failed.message.endswith("will not contain them.")
    assert failed.proof.kind == "executed" and evidence(failed)["logits"] == "0.9"
    assert evidence(failed)["in the checkpoint, not used by the class"] == (
        "3 of 12 tensors, such as a, b and 1 more"
    )
    (surrogate,) = random_weights(run=reloaded("failed", losses=("own", "surrogate")))
    assert surrogate.severity == "warning" and "whether your loss depends" in surrogate.message
    for run in (reloaded("skipped"), reloaded(None), reloaded("passed"), reloaded("passed", "x")):
        assert random_weights(run=run)[0].severity == "warning"
    assert random_weights(run=reloaded("passed", 1e-6)) == [], "nothing depends on them"
    assert len(random_weights(run=reloaded("passed", 1e-5))) == 1
    assert random_weights(run=reloaded("passed", 0.0, gaps=(False,))) == []
    for not_sure in (
        {"run": reloaded("passed", 0.0, gaps=(False, True))},
        {"run": reloaded("passed", 0.0), "quantized": {}},
        {"run": reloaded("passed", 0.0), "recipe": {"load_in_4bit": True}},
        {"run": reloaded("passed", 0.0, random=())},
        {"run": reloaded("passed", 0.0), "tiny": False},
        {"run": reloaded("passed", 0.0), "verification": False},
    ):
        assert random_weights(**not_sure)[0].severity == "warning"
    assert random_weights(run=reloaded("passed", 0.0, random=(), others=("x",))) == []
    no_saving = reloaded("passed", 0.0)
    no_saving.saving = None
    assert random_weights(run=no_saving)[0].severity == "warning"


def test_ld606_says_how_it_is_known_and_what_helps(
    random_weights: Callable[..., list[Finding]],
) -> None:
    def known(**given: Any) -> tuple[str, str]:
        (found,) = random_weights(**given)
        return found.evidence[0].source.partition(" ")[0], found.proof.kind

    assert known() == ("from_pretrained", "measured")
    assert known(saved_class="Base") == ("config.json:", "inferred")
    assert known(kind="arch") == ("from_pretrained", "measured")
    assert known(kind="factory") == ("other", "measured")
    assert known(kind="module") == ("weight", "inferred")
    assert "unless your code loads them" in random_weights(kind="module")[0].message
    whole, complete = random_weights(recipe={"target_modules": ["score", "q"]})[0].fixes
    assert whole.title.startswith("Train and save score") and whole.safety == "unsafe"
    assert [edit.key for edit in whole.edits] == ["target_modules", "modules_to_save"]
    assert whole.edits[0].value == ["q"] and complete.safety == "manual"
    for targets in ("all-linear", ["q"], ["score"], None):
        (whole, _) = random_weights(recipe={"target_modules": targets})[0].fixes
        assert [edit.key for edit in whole.edits] == ["modules_to_save"]
    (beside,) = random_weights(others=("a.scale",))
    assert "no weights for score, a.scale:" in beside.message and len(beside.fixes) == 1
    (only,) = random_weights((), others=("a.scale",))
    assert fixes(only)[0].startswith("Or save a complete checkpoint")
    (most,) = random_weights(parameters=501)
    assert most.severity == "error" and fixes(most)[0].startswith("Load the class that")
    assert random_weights(parameters=500)[0].severity == "warning"
    (many,) = random_weights(tuple("abcdefghi"))
    assert "no weights for a, b, c, d and 5 more:" in many.message
    assert evidence(many)["not in the checkpoint"] == "a, b, c, d, e, f, g, h and 1 more"
    assert fixes(many)[0].startswith("Train and save a, b, c, d and 5 more with")
    layers = [Stub(stack="layers", missing=(3, 4))]
    assert random_weights(("m.layers.3.q", "layers.4"), stacks=layers, static=True) == []
    assert len(random_weights(("m.layers.3.q", "m.layers.5"), stacks=layers, static=True)) == 1
    assert random_weights(()) == []
    with pytest.raises(EvidenceError, match="PEFT refuses the recipe: ValueError: no"):
        random_weights((), error=ErrorReport("ValueError", "no"))
    with pytest.raises(EvidenceError, match="Base, lacks no module"):
        random_weights((), saved_class="Base")
