"""What rules say where their examples do not come: which sentence, which evidence, which fix.

An example is a real set-up, and a rule has more to say than a few of these show. Here a rule is
handed a case that holds just what it reads; no model is built.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace as Stub
from typing import Any

import pytest

import lora_doctor
from lora_doctor.engine.registry import find_rules
from lora_doctor.errors import EvidenceError
from lora_doctor.recipe.edit import Edit
from lora_doctor.recipe.program.best_metric import MetricNotComputed
from lora_doctor.recipe.program.launch import Launch
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.finding import Finding, Location, Measurement
from lora_doctor.results.fix import Fix
from lora_doctor.results.loading import Loading, Unsaved
from lora_doctor.results.memory_plan import MemoryPart, MemoryPlan, MemoryVariant, PlannedGpu
from lora_doctor.results.observations import ActivationReading, InstancePatch, UpdateReading
from lora_doctor.results.plain_weights import PlainWeights
from lora_doctor.results.stacked_adapters import Stacked, StackedAdapter
from lora_doctor.results.training_signal import AdapterGradients
from lora_doctor.results.verification import Check
from lora_doctor.static.folder.checkpoint_files import DamagedFile, IndexMismatch
from lora_doctor.static.folder.token_ids import TokenId
from lora_doctor.static.installed import environment, import_chain, pair_repair, shared_folders
from lora_doctor.static.installed.import_chain import MissingImport
from lora_doctor.static.installed.refused_versions import LORA, TRAINER, RefusedVersion
from lora_doctor.static.place import Place
from lora_doctor.static.remote_code import code_fit, loaded_code, remote_code, source_facts
from lora_doctor.static.script.script_flow import Replacement
from lora_doctor.static.script.script_order import EarlyOptimizer, ScriptOrder, WrappedTwice
from lora_doctor.static.tokenizer_reading import Unreadable

RULES = {rule.code: rule for rule in find_rules()}
Ask = Callable[..., list[Finding]]


def ask(code: str, **evidence: Any) -> list[Finding]:
    """The findings of a rule on a case with this evidence."""
    return list(RULES[code]().check(Stub(**evidence)))


def one(code: str, **evidence: Any) -> Finding:
    (finding,) = ask(code, **evidence)
    return finding


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``gathered("LD615", index_mismatch=x)``: what the functions that a rule calls give; a
    function is called in the place of the other."""

    def replace(code: str, **values: Any) -> None:
        module = sys.modules[RULES[code].__module__]
        for name, value in values.items():
            instead = value if callable(value) else lambda *_, value=value, **__: value
            monkeypatch.setattr(module, name, instead)

    return replace


def evidence(finding: Finding) -> dict[str, Any]:
    return {line.what: line.value for line in finding.evidence}


def fixes(finding: Finding) -> list[str]:
    return [fix.title for fix in finding.fixes]


def versions(**installed: str) -> Stub:
    return Stub(version=installed.get)


# --- configs --------------------------------------------------------------------------------------


def test_ld214_tells_a_mistyped_key_from_one_of_another_release() -> None:
    recipe = Stub(unknown={"lora_alhpa": 32, "new_key": [1], "empty": None}, peft_type="LORA")
    case: dict[str, Any] = {"recipe": recipe, "environment": versions(peft="0.99")}
    meant, other = ask("LD214", **case, asked={"peft_version": "0.98"})
    assert (meant.severity, meant.location.path) == ("warning", "lora_alhpa")
    assert meant.message == (
        "PEFT 0.99 does not know lora_alhpa in the adapter config; did you mean lora_alpha?"
    )
    assert fixes(meant) == ["Write lora_alpha for lora_alhpa."]
    assert evidence(meant) == {
        "not known": "lora_alhpa: 32", "PEFT": "0.99", "written by PEFT": "0.98",
    }  # fmt: skip
    assert (other.severity, other.location.path) == ("info", "new_key")
    assert other.message == "PEFT 0.99 does not know new_key in the adapter config."
    assert fixes(other) == ["Remove new_key, or install the PEFT that wrote the config (0.98)."]
    (unsaid,) = ask("LD214", **{**case, "recipe": Stub(unknown={"new_key": 1}, peft_type="LORA")},
                    asked={})  # fmt: skip
    assert fixes(unsaid) == ["Remove new_key, or install the PEFT that wrote the config."]
    assert "written by PEFT" not in evidence(unsaid)
    assert ask("LD214", recipe=Stub(unknown={"empty": ""}, peft_type="LORA")) == []


def test_ld413_knows_the_default_dtype_of_the_installed_transformers() -> None:
    class Recipe(dict[str, Any]):
        quantized: str | None = None

    flash = "flash_attention_2"

    def found(version: str, quantized: str | None = None, **keys: Any) -> list[Finding]:
        recipe = Recipe({"attn_implementation": flash, **keys})
        recipe.quantized = quantized
        return ask("LD413", recipe=recipe, environment=versions(transformers=version))

    (finding,) = found("4.57.6")
    assert evidence(finding)["dtype"].startswith("not set: float32")
    assert [fix.safety for fix in finding.fixes] == ["unsafe", "unsafe"]
    assert found("5.0.0") == [] == found("4.57.6", quantized="4bit")
    (given,) = found("5.0.0", dtype="float32")
    assert evidence(given)["dtype"] == "float32"
    assert found("4.57.6", bf16=True) == found("4.57.6", fp16=True) == []
    assert found("4.57.6", dtype="bfloat16") == found("4.57.6", attn_implementation="sdpa") == []


def test_ld303_names_the_dtype_that_was_asked_for() -> None:
    broken = Stub(type="RuntimeError", message="mat1 and mat2.", where="modeling.py:3")
    found = {
        dtype: one("LD303", verification=Stub(error_once_prepared=broken), asked={"dtype": dtype})
        for dtype in (None, "float16")
    }
    asked = {dtype: evidence(one)["dtype it is loaded in"] for dtype, one in found.items()}
    assert asked == {None: "the library's own", "float16": "float16"}
    assert found[None].message.endswith(
        "prepare_model_for_kbit_training: RuntimeError: mat1 and mat2."
    )
    assert found[None].fixes[0].safety == "safe" and found[None].explains == ("forward",)
    assert ask("LD303", verification=Stub(error_once_prepared=None), asked={}) == []


# --- numbers --------------------------------------------------------------------------------------


def reading(path: str, most: float, *, finite: bool = True) -> ActivationReading:
    return ActivationReading(path, "Linear", "float16", most, finite)


def test_ld402_warns_near_the_limit_and_fails_beyond_it(gathered: Callable[..., None]) -> None:
    def asked(*readings: ActivationReading) -> list[Finding]:
        gathered("LD402", computes_in_float16=True, observed=Stub(activations=readings),
                 chosen_by=())  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            module = sys.modules[RULES["LD402"].__module__]
            patch.setattr(module, "wider_dtypes", lambda case, paths: (Fix(str(paths), "manual"),))
            return ask("LD402", verification=Stub(depth="full"))

    assert asked(reading("quiet", 0.24 * 65504)) == []
    (nearer,) = asked(reading("loud", 0.5 * 65504))
    assert nearer.severity == "warning"
    (beyond,) = asked(reading("beyond", 7e4))
    assert beyond.severity == "error" and beyond.message.startswith("beyond outputs values up to")
    (near,) = asked(reading("quiet", 1.0), reading("loud", 0.25 * 65504))
    assert (near.severity, near.location.path, near.explains) == ("warning", "loud", ())
    assert "close to 65504" in near.message and near.proof.kind == "measured"
    assert fixes(near) == ["[]"]
    (at,) = asked(reading("quiet", 1.0), reading("limit", 65504), reading("later", 7e4))
    assert (at.severity, at.location.path, at.explains) == ("error", "limit", ())
    assert "outputs values up to 6.55e+04; float16 overflows above 65504." in at.message
    (over,) = asked(reading("first", 9e4, finite=False), reading("later", 2e5, finite=False))
    assert "outputs values above 65504 (9e+04 in float32)" in over.message
    assert over.proof.kind == "executed" and over.explains and fixes(over) == ["['first']"]
    (just,) = asked(reading("first", 65504, finite=False))
    assert "(6.55e+04 in float32)" in just.message
    (unknown,) = asked(reading("first", 3.0, finite=False))
    assert "outputs values above 65504, the largest" in unknown.message
    many = [reading(f"layer{n}", 20_000.0 + n) for n in range(10)]
    (long,) = asked(reading("first", 6.0, finite=False), *many)
    shown = [line.what.split()[0] for line in long.evidence]
    assert shown == ["first", *(f"layer{n}" for n in range(2, 10))], (
        "the first and the largest eight"
    )
    assert long.evidence[0].value == "6 (9.2e-05 x 65504); not finite in float16"
    with pytest.raises(EvidenceError, match="before the output of a layer"):
        asked()
    gathered("LD402", computes_in_float16=False)
    assert ask("LD402") == []


@pytest.mark.parametrize(
    ("user_weights", "scaling", "found"),
    [(False, 2.0, 0), (False, 64.0, 1), (True, 2.0, 1)],
    ids=["drawn anew", "drawn anew, far out of scale", "the user's own"],
)
def test_ld404_takes_weights_that_it_does_not_have_for_trained_in_a_narrow_model_too(
    gathered: Callable[..., None], user_weights: bool, scaling: float, found: int
) -> None:
    """64 inputs, numbers of 0.02 as they are drawn, r 16, one step at 1e-3: 2.9% of them at a
    scaling of 2. Trained, they would be six times as large."""
    weight = 0.02 * 64
    step = scaling * 1e-3 * 64 * (16 / 3) ** 0.5 / 64**0.5
    update = UpdateReading("layers.*.q_proj", 1, step, weight, (64, 64), 16, scaling, 1e-3)
    group = Stub(pattern="layers.*.q_proj", shape=(64, 64), kind="linear")
    seen = Stub(observations=Stub(updates=(update,), user_weights=user_weights))
    gathered("LD404", judged=seen, _fixes=())
    recipe = {"learning_rate": 1e-3, "lora_alpha": 16 * scaling}
    assert len(ask("LD404", recipe=Stub(get=recipe.get), structure=Stub(groups=(group,)))) == found


def test_ld407_says_what_replaces_the_value_and_what_follows() -> None:
    def found(**changes: Any) -> Finding:
        values = {"what": "loss", "value": "loss", "how": "nan_to_num", "by": "0.0", "line": 3,
                  "code": "x", "function": ""}  # fmt: skip
        replacement = Replacement(**{**values, **changes})
        return one("LD407", script=Stub(path=Path("train.py"), replacements=(replacement,)))

    plain = found()
    assert plain.message.startswith("A loss that is not finite is replaced (loss by 0.0): the step")
    assert "in the function" not in evidence(plain) and "clamp" not in evidence(plain)
    clamped = found(what="activation", how="clamp", by="-1, 1", function="forward")
    assert clamped.message.startswith("An activation that is not finite")
    assert evidence(clamped)["by"] == "the bounds -1, 1"
    assert evidence(clamped)["in the function"] == "forward" and "clamp" in evidence(clamped)
    assert evidence(found(how="clamp", by=""))["by"] == "a bound"


# --- the order of calls ---------------------------------------------------------------------------


def test_ld507_compares_statements_where_no_model_is_followed(
    gathered: Callable[..., None],
) -> None:
    gathered("LD507", optimizer_too_early=(), adapted_twice=())

    def of_blocks(order: ScriptOrder, *, program: bool, script: bool = True) -> list[Finding]:
        held = {"program": program, "script": script}
        case: dict[str, Any] = {"has": held.__getitem__, "program": Stub()}
        if script:
            case["script"] = Stub(path=Path("train.py"), order=order)
        return ask("LD507", **case)

    order = ScriptOrder(
        (EarlyOptimizer("net", 4, 6, "AdamW(net.parameters())"),),
        (WrappedTwice("net", 6, 9, "get_peft_model(net, b)"),),
    )
    early, twice = of_blocks(order, program=False)
    assert of_blocks(order, program=True) == [early, twice]
    assert of_blocks(order, program=True, script=False) == [], "a notebook has no blocks"
    assert early.location.line == 4 and "before get_peft_model in line 6" in early.message
    assert evidence(early)["adapters added in line"] == 6
    assert fixes(early) == ["Create the optimizer after get_peft_model."]
    assert twice.location.line == 9
    assert "called on net, which already has adapters from line 6" in twice.message
    assert evidence(twice)["called before in line"] == 6
    assert {early.proof.kind, twice.proof.kind} == {"inferred"}


TWICE = """
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

def adapted(net):
    net = get_peft_model(net, LoraConfig(task_type="CAUSAL_LM"))
    return get_peft_model(net, LoraConfig(task_type="CAUSAL_LM", r=4))

model = AutoModelForCausalLM.from_pretrained("gpt2")
model = adapted(model)
"""


def test_ld507_tells_each_place_once(tmp_path: Path) -> None:
    """What was followed and what stands in one block are the same calls."""
    script = tmp_path / "train.py"
    script.write_text(TWICE)
    found = lora_doctor.check(str(script), depth="static", select=("LD507",)).findings
    assert [finding.location.line for finding in found] == [7]


def test_ld505_says_what_became_of_each_adapter() -> None:
    def member(
        name: str, *, trainable: int = 2, saved: int = 2, active: bool = True
    ) -> StackedAdapter:
        return StackedAdapter("LORA", name, 0, 2, trainable, saved, active)

    def found(*members: StackedAdapter, **changes: Any) -> Finding:
        stacked = Stacked(("PeftModel LORA", "PeftModel LORA"), members, **changes)
        return one("LD505", structure=Stub(stacked=stacked), reaches=lambda depth: False)

    def reloaded(status: Any, detail: str, *, tiny: bool = True, run: bool = True) -> Any:
        check = Check("save-reload", status, 0.25, "", detail)
        stacked = Stacked(("PeftModel LORA", "PeftModel LORA"), (member("a"),))
        case = {"reaches": lambda depth: tiny, "has": lambda name: run}
        seen = Stub(check=lambda name: check)
        finding = one("LD505", structure=Stub(stacked=stacked), verification=seen, **case)
        return evidence(finding).get("saved and reloaded")

    fine = found(member("a"), member("b"))
    assert fine.severity == "warning" and fine.message.endswith("the model is wrapped 2 times.")
    assert fine.location.path == "PeftModel LORA in PeftModel LORA"
    frozen = found(member("a", trainable=0, saved=0, active=False), member("b"))
    assert frozen.severity == "error"
    assert frozen.message.endswith(
        "LORA a (2 tensors) is frozen, not in the forward and not saved."
    )
    assert "trainable but not in the forward" in found(member("a", active=False)).message
    assert found(member("a", saved=0)).message.endswith("LORA a (2 tensors) is not saved.")
    assert evidence(found(member("a", active=False)))["LORA a"] == (
        "2 of 2 tensors trainable, 2 saved, not active"
    )
    left = found(member("a"), leftovers=("q",), leftover_tensors=4, path="inner")
    assert left.severity == "error" and "4 tensors in q are left over" in left.message
    assert left.location.path.startswith("inner: ") and "not in target_modules" in evidence(left)
    renamed = found(member("a"), renamed=3, saved_names=8, renamed_example="x.y")
    assert renamed.severity == "error" and "3 of 8 saved tensors" in renamed.message
    assert evidence(renamed)["saved as"] == "x.y"
    assert reloaded("failed", "they differ") == "they differ"
    assert reloaded("failed", "") == "0.25" and reloaded("passed", "same") is None
    assert reloaded("failed", "x", tiny=False) is None is reloaded("failed", "x", run=False)
    many = found(member("a"), leftovers=tuple("abcdefgh"), leftover_tensors=9)
    assert "in a, b, c, d and 4 more are left" in many.message
    assert evidence(many)["not in target_modules"] == "a, b, c, d, e, f and 2 more"
    single = found(StackedAdapter("LORA", "a", 0, 1, 0, 0, active=True))
    assert single.message.endswith("LORA a (1 tensor) is frozen and not saved.")


def test_ld505_names_the_methods_that_can_be_kept() -> None:
    def titles(*methods: str) -> list[str]:
        members = tuple(StackedAdapter(name, "x", 0, 2, 2, 2, active=True) for name in methods)
        stacked = Stacked(("PeftModel", "PeftModel"), members)
        return fixes(one("LD505", structure=Stub(stacked=stacked), reaches=lambda depth: False))

    (same,) = titles("LORA", "LORA")
    assert same.startswith("Remove the second call")
    first, mixed = titles("LORA", "IA3")
    assert first == same and mixed.startswith("For IA3 and LORA at once")
    keep, in_turn = titles("LORA", "PROMPT_TUNING")
    assert keep.startswith("Keep one of the two, LORA or PROMPT_TUNING, with a single")
    assert "train LORA, save it" in in_turn
    (prompts,) = titles("PROMPT_TUNING", "PREFIX_TUNING")
    assert prompts == same
    assert ask("LD505", structure=Stub(stacked=None)) == []


def test_ld504_tells_a_patch_that_passes_adapters_by_from_one_that_is_lost() -> None:
    def patch(**changes: Any) -> InstancePatch:
        values = {"path": "layer", "name": "forward", "kind": "module", "source": "/x/train.py:3",
                  "calls_before": 1, "calls": 1}  # fmt: skip
        return InstancePatch(**{**values, **changes})

    def asked(*patches: InstancePatch, status: Any = "passed") -> list[Finding]:
        seen = Stub(
            check=lambda name: Check("forward", status, None, "", ""), depth="tiny",
            reason=None, observations=Stub(instance_patches=patches),
        )  # fmt: skip
        return ask("LD504", verification=seen)

    (around,) = asked(patch(bypassed=("layer.q", "layer.v")))
    assert around.severity == "error"
    assert "layer.forward runs without the adapter of 2 layers" in around.message
    assert "Look up layers" in fixes(around)[0]
    assert evidence(around) == {
        "layer.forward": "set by train.py:3", "calls without adapters": 1,
        "calls with adapters": 1, "adapters that were not called": "layer.q, layer.v",
    }  # fmt: skip
    (bare,) = asked(patch(path="", source="", bypassed=("a", "b", "c", "d", "e")))
    assert bare.location.path == "model" and evidence(bare)["forward"] == "set by not Python"
    assert "5 layers (a, b, c and 2 more)" in bare.message
    assert evidence(bare)["adapters that were not called"] == "a, b, c, d and 1 more"
    (itself,) = asked(patch(bypassed=("layer",)))
    assert "of 1 layer (layer)" in itself.message and "layer.base_layer.forward" in fixes(itself)[0]
    (lost,) = asked(patch(calls=0))
    assert lost.severity == "warning" and lost.message == (
        "The patched layer.forward is no longer called: the adapters run without it."
    )
    assert fixes(lost)[0].startswith("Patch the class, or use an adapter method")
    assert "calls of the model's own method" not in evidence(lost)
    assert "adapters that were not called" not in evidence(lost)
    wrapper = patch(kind="wrapper", path="", calls=0, calls_before=0, inner_calls=1)
    (outer,) = asked(wrapper)
    assert outer.location.path == "model" and "it is set on PEFT's wrapper" in outer.message
    (several,) = asked(wrapper, patch(kind="wrapper", path="", name="score", calls=0,
                                      calls_before=0, inner_calls=2))  # fmt: skip
    assert "are no longer called: they are set on PEFT's wrapper" in several.message
    (mixed,) = asked(wrapper, patch(path="other", name="score", calls=0))
    assert mixed.location.path == "model" and "get_base_model().forward" in fixes(mixed)[0]
    assert "set on PEFT's wrapper" in mixed.message
    (around_two,) = asked(
        patch(path="one", bypassed=("one", "b")), patch(path="two", bypassed=("c",))
    )
    assert "two.forward run without the adapter of 3 layers (one, b, c)" in around_two.message
    assert around_two.location.path == "one" and "one.base_layer.forward" in fixes(around_two)[0]
    assert evidence(outer)["calls of the model's own method"] == 1
    assert "get_base_model().forward" in fixes(outer)[0]
    assert asked(patch(calls=0, calls_before=0)) == [] == asked(patch())
    assert asked(patch(kind="wrapper", calls=0, calls_before=5)) == []
    assert asked(patch(calls=0), status="failed") == []
    (two,) = asked(patch(calls=0), patch(path="other", calls=0))
    assert "layer.forward, other.forward are no longer called" in two.message
    (five,) = asked(*(patch(path=f"l{n}", calls=0) for n in range(5)))
    assert "l0.forward, l1.forward and 3 more are no longer called" in five.message
    assert [line.what for line in five.evidence if "." in line.what] == [
        f"l{n}.forward" for n in range(4)
    ]
    with pytest.raises(EvidenceError, match="no forward with adapters"):
        asked(status="skipped")


# --- files ----------------------------------------------------------------------------------------


def part(name: str, *, since: str | None = None, until: str | None = None) -> Unreadable:
    return Unreadable(name, "{...}", "error", since, until)


@pytest.mark.parametrize(
    ("parts", "title"),
    [
        ((), "Download tokenizer.json again; in a git clone: git lfs pull."),
        (
            (part("a", until="0.19"), part("b", until="0.19")),
            'Set prepend_scheme to "never" in a and b',
        ),
        ((part("a", since="0.9"), part("b", since="0.20")), "installs tokenizers 0.20 or later"),
        ((part("a", since="0.20"), part("b")), "which release wrote the file is unknown"),
        ((part("a", since="0.20"), part("b", until="0.19")), "release wrote the file is unknown"),
    ],
)
def test_ld601_names_the_release_that_reads_the_file(
    gathered: Callable[..., None], tmp_path: Path, parts: tuple[Unreadable, ...], title: str
) -> None:
    (tmp_path / "tokenizer.json").touch()
    static = Stub(
        folder=tmp_path, source="x", where=lambda name: name,
        tokenizer=Stub(value={} if parts else None, reason="no JSON"),
    )  # fmt: skip
    case: dict[str, Any] = {"static": static, "environment": versions(tokenizers="0.18")}
    gathered("LD601", unreadable_parts=parts, whole_file_error="did not match")
    finding = one("LD601", **case)
    assert title in fixes(finding)[0]
    told = " and ".join(one.part for one in parts)
    what = f"cannot read {told} of tokenizer.json" if parts else "cannot read the file: no JSON"
    assert finding.message == f"tokenizers 0.18 {what}."
    assert evidence(finding).get("tokenizer.json") == (None if parts else "no JSON")
    for one_part in parts:
        shown = evidence(finding)[one_part.part]
        assert (f"supported from {one_part.since} on" in shown) == bool(one_part.since)
        assert (f"refused from {one_part.until} on" in shown) == bool(one_part.until)
    gathered("LD601", whole_file_error=None)
    assert ask("LD601", **case) == [], "the library reads it"
    if parts:
        gathered("LD601", unreadable_parts=(), whole_file_error="not asked")
        assert ask("LD601", **case) == []


def token(name: str, number: int, *, added: bool = True, role: str | None = None) -> TokenId:
    return TokenId(name, number, "tokenizer.json", added, role)


def test_ld611_is_an_error_where_the_ids_will_be_used(gathered: Callable[..., None]) -> None:
    static = Stub(weights=Stub(value=object()), config={}, source="x")

    def asked(*beyond: TokenId, **changes: Any) -> list[Finding]:
        values = {"vocabulary_mismatches": (), "token_rows": Stub(rows=1000, where="config.json"),
                  "tokens_beyond": beyond}  # fmt: skip
        gathered("LD611", **{**values, **changes})
        return ask("LD611", static=static)

    (unused,) = asked(token("<a>", 1000), token("<b>", 1001))
    assert unused.severity == "warning"
    assert unused.message.endswith("data that contains <a>, <b> will raise IndexError.")
    assert len(unused.fixes) == 1 and "trainable_token_indices=[1000, 1001]," in fixes(unused)[0]
    (padding,) = asked(token("<a>", 1000, role="pad_token"))
    assert padding.severity == "error" and padding.message.endswith(": <a> will raise IndexError.")
    assert fixes(padding)[0].startswith("Use a padding token")
    (mixed,) = asked(token("<a>", 1000), token("b", 1001, added=False))
    assert mixed.severity == "error" and mixed.message.endswith(": b will raise IndexError.")
    assert fixes(mixed)[-1].startswith("Or use the tokenizer that belongs to these weights")
    assert not fixes(mixed)[0].startswith("Use a padding token")
    (eight,) = asked(*(token(f"<{n}>", 1000 + n) for n in range(8)))
    (nine,) = asked(*(token(f"<{n}>", 1000 + n) for n in range(9)))
    assert "and so on" not in fixes(eight)[0] and "1007] and so on" in fixes(nine)[0]
    assert evidence(nine)["highest id"] == 1008
    assert asked(token("<a>", 1000), vocabulary_mismatches=("LD612",)) == [] == asked()
    with pytest.raises(EvidenceError, match="number of its token embeddings is unknown"):
        asked(token_rows=None)


def test_ld615_tells_files_that_are_missing_from_weights_that_are(
    gathered: Callable[..., None],
) -> None:
    def asked(transformers: str = "5.0", snapshot: object = None, **found: Any) -> list[Finding]:
        values: dict[str, Any] = {"missing": (), "present": 2, **found}
        gathered("LD615", index_mismatch=IndexMismatch("index.json", **values), unread_weights=())
        source = Stub(name="org/model", snapshot=snapshot)
        environment = versions(transformers=transformers)
        return ask("LD615", static=object(), source=source, environment=environment)

    (single,) = asked(missing=("a",))
    assert single.message.startswith("index.json names 3 files and a is not there")
    (several,) = asked(missing=("a", "b"))
    assert "names 4 files and a, b are not there" in several.message
    assert evidence(several) == {"missing files": ["a", "b"], "files there": 2}
    (lacking,) = asked(lacking=("w",), unlisted=("u",))
    assert "w, which are in no file" in lacking.message
    assert evidence(lacking) == {"tensors in no file": ["w"], "tensors not in the index": ["u"]}
    (unlisted,) = asked("4.57.6", unlisted=("u",))
    assert "initialise these weights at random" in unlisted.message
    assert asked("5.0", unlisted=("u",)) == asked("", unlisted=("u",)) == []
    assert "hf download org/model" in fixes(asked(snapshot=object(), missing=("a",))[0])[0]
    assert "hf download" not in fixes(single)[0]


def test_ld615_tells_gguf_from_weights_under_other_names(gathered: Callable[..., None]) -> None:
    def advice(*files: str) -> str:
        gathered("LD615", index_mismatch=None, unread_weights=files)
        return fixes(one("LD615", static=object()))[0]

    assert "gguf_file=" in advice("a.gguf") and "gguf_file=" not in advice("a.gguf", "b.pth")
    gathered("LD615", unread_weights=())
    assert ask("LD615", static=object()) == []


def test_ld616_says_whether_the_files_are_damaged_alike(gathered: Callable[..., None]) -> None:
    pointer = DamagedFile("a", 130, "is a pointer of git-lfs", pointer=True)
    cut = DamagedFile("b", 5000, "ends too early")

    def found(*files: DamagedFile) -> Finding:
        gathered("LD616", damaged_files=files)
        return one("LD616", static=object())

    assert found(cut).message == "b ends too early."
    assert fixes(found(cut)) == ["Download or copy b again."]
    alike = found(pointer, DamagedFile("c", 130, pointer.problem, pointer=True))
    assert alike.message == "a is a pointer of git-lfs, and so are 1 more."
    assert fixes(alike) == ["In the clone: git lfs pull (a, c)."]
    mixed = found(pointer, cut)
    assert mixed.message == "a is a pointer of git-lfs; 1 more cannot be read either."
    assert len(mixed.fixes) == 2 and "copy b again" in fixes(mixed)[1]
    assert evidence(mixed)["b"] == "5,000 bytes; ends too early"


def test_ld618_writes_what_an_older_release_reads(gathered: Callable[..., None]) -> None:
    def asked(settings: dict[str, Any], **found: Any) -> list[Finding]:
        values = {"unknown_tokenizer_class": None, "special_tokens_in_a_list": None,
                  "adds_prefix_space": False}  # fmt: skip
        gathered("LD618", **{**values, **found})
        static = Stub(tokenizer_config=Stub(require=lambda: settings))
        return ask("LD618", static=static, environment=versions(transformers="4.57.6"))

    (by_class,) = asked({"backend": "tokenizers"}, unknown_tokenizer_class="NewTokenizer")
    assert by_class.message.endswith("it has no class NewTokenizer.")
    assert fixes(by_class)[0].startswith(
        'In a copy of the folder, write {"tokenizer_class": "PreTrainedTokenizerFast"} into '
        "tokenizer_config.json; transformers 5"
    )
    assert evidence(by_class)["backend"] == "tokenizers"
    (spaced,) = asked({}, unknown_tokenizer_class="NewTokenizer", adds_prefix_space=True)
    assert '"add_prefix_space": true' in fixes(spaced)[0] and "backend" not in evidence(spaced)
    (listed,) = asked({}, special_tokens_in_a_list=["<a>"], adds_prefix_space=True)
    assert listed.message.endswith("extra_special_tokens is a list.")
    assert '{"additional_special_tokens": ["<a>"]} into' in fixes(listed)[0]
    assert "and remove extra_special_tokens" in fixes(listed)[0]
    assert asked({}) == []


#: What LD604 measures first.
BEFORE = "logits after saving and loading, relative difference"
COMMITS = ("a" * 40, "b" * 40)


def test_ld624_compares_revisions_that_can_be_compared() -> None:
    def asked(
        revision: str, have: str, snapshot: str | None = None, kind: str = "hub"
    ) -> list[Finding]:
        source = Stub(
            kind=kind, name="org/base", folder=None, revision=have,
            snapshot=None if snapshot is None else Stub(revision=snapshot),
        )  # fmt: skip
        named = {"base_model_name_or_path": "org/base", "revision": revision}
        return ask("LD624", asked=named, source=source)

    (commits,) = asked(*COMMITS)
    assert commits.severity == "warning" and "may be the same" not in commits.message
    (tag,) = asked("v1", COMMITS[1])
    assert tag.severity == "info" and tag.message.endswith(", which may be the same.")
    assert asked(COMMITS[0], COMMITS[0]) == asked("main", COMMITS[1]) == asked("", COMMITS[1]) == []
    assert asked("v1", COMMITS[1], snapshot="v1") == asked(*COMMITS, kind="folder") == []


@pytest.mark.parametrize(
    ("named", "kind", "name", "severity"),
    [
        ("other/base", "hub", "org/base", "info"),  # a copy of another account
        ("org/base-2", "hub", "org/base", "warning"),
        ("/models/base", "hub", "org/base", None),  # where it was trained it lay in a folder
        ("/models/Base/", "folder", "base", None),
        ("/models/other", "folder", "base", "info"),
        ("org/other", "folder", "base", "info"),
        ("org/other", "module", "base", None),
        ("org/other", "script", "base", None),
        ("", "hub", "org/base", None),
        (None, "hub", "org/base", None),
    ],
)
def test_ld624_is_sure_only_of_two_names_on_the_hub(
    named: str | None, kind: str, name: str, severity: str | None
) -> None:
    class Source(Stub):
        def __str__(self) -> str:
            return name

    source = Source(kind=kind, name=name, folder=None, revision=None, snapshot=None)
    found = ask("LD624", asked={"base_model_name_or_path": named}, source=source)
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    for finding in found:
        assert f"names {named!r} as its base model; MODEL is {name!r}" in finding.message
        assert evidence(finding)["MODEL"] == name


def test_ld624_knows_the_same_folder_by_another_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()

    def found(named: str, folder: str | None) -> int:
        source = Stub(kind="folder", name="x", folder=folder, revision=None)
        return len(ask("LD624", asked={"base_model_name_or_path": named}, source=source))

    assert found("./models", str(tmp_path / "models")) == 0
    assert found("./models", str(tmp_path)) == found("./models", None) == 1
    assert found("mod\0els", str(tmp_path / "models")) == 1


# --- versions, several devices --------------------------------------------------------------------


def test_ld707_tells_one_refusal_of_a_package_and_only_what_is_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lora_doctor.static.installed import refused_versions

    def asked(
        *refused: RefusedVersion, explained: tuple[str, ...] = (), **case: Any
    ) -> list[Finding]:
        monkeypatch.setattr(refused_versions, "refused_versions", lambda: refused)
        given = {"source": Stub(kind="environment"), "explained": explained, **case}
        return ask("LD707", **given)

    by_lora = RefusedVersion("peft", "torchao", "0.1", "torchao>=0.16", LORA, "import_utils.py", 9)
    by_trainer = RefusedVersion(
        "transformers", "accelerate", "0.1", "accelerate>=1", TRAINER, "t.py", 2
    )
    lora, trainer = asked(by_lora, by_trainer, by_lora)
    assert (lora.severity, lora.explains) == ("error", ("builds", "attaches"))
    assert fixes(lora) == [
        "pip install 'torchao>=0.16'", "If nothing uses it: pip uninstall torchao",
    ]  # fmt: skip
    assert (trainer.severity, trainer.explains) == ("warning", ())
    assert fixes(trainer) == ["pip install 'accelerate>=1'"]
    assert asked(by_trainer, explained=("builds",)) == []
    ran: dict[str, Any] = {
        "source": Stub(kind="arch"), "reaches": lambda depth: True, "has": lambda name: True,
    }  # fmt: skip

    def injected(*, ok: bool, count: int) -> Stub:
        return Stub(injection=Stub(ok=ok, adapter_parameters=count))

    assert asked(by_lora, **ran, structure=injected(ok=True, count=8)) == []
    assert asked(by_lora, **ran, structure=injected(ok=True, count=1)) == []
    for not_past in (injected(ok=True, count=0), injected(ok=False, count=8)):
        assert len(asked(by_lora, **ran, structure=not_past)) == 1


def test_ld712_knows_which_quantized_weights_can_be_sharded() -> None:
    def of_file(quantized: str | None, format: str = "TRL", **files: Any) -> list[Finding]:
        entries = files.pop("entries", {})
        values = {"fsdp": False, "zero_stage": None, "deepspeed_file": "", "accelerate_file": ""}
        return ask(
            "LD712", has=lambda name: False, side_files=Stub(**{**values, **files}),
            set_up=Stub(entries=entries, format=format),
            recipe=Stub(quantized=quantized, places={}),
        )  # fmt: skip

    (eight,) = of_file("8bit", zero_stage=3, deepspeed_file="ds.json")
    assert eight.message.startswith("ZeRO-3 may be unable to shard the 8-bit weights")
    assert evidence(eight) == {"load_in_8bit": True, "sharded by": "ZeRO-3"}
    assert eight.evidence[1].source == "ds.json"
    (four,) = of_file("4bit", fsdp=True)
    assert "stored as uint8" in four.message and evidence(four)["sharded by"] == "FSDP"
    assert of_file("4bit", fsdp=True, entries={"bnb_4bit_quant_storage": "bfloat16"}) == []
    assert of_file("4bit", "axolotl", entries={"fsdp": ["full_shard"]}) == []
    assert len(of_file("8bit", "axolotl", entries={"fsdp_config": {"x": 1}})) == 1
    assert (
        of_file("4bit", zero_stage=3)
        == of_file("8bit", zero_stage=2)
        == of_file(None, fsdp=True)
        == []
    )

    def of_run(quantized: str, **processes: Any) -> list[Finding]:
        values = {"asked_type": "", "zero_stage": None, "asked_in": "ds.json"}
        found = Stub(**{**values, **processes}) if processes else None
        return ask("LD712", has=lambda name: True, dry_run=Stub(processes=found),
                   recipe=Stub(quantized=quantized))  # fmt: skip

    (zero,) = of_run("8bit", zero_stage=3)
    assert evidence(zero) == {"load_in_8bit": True, "sharded by": "ZeRO-3"}
    assert zero.evidence[1].source == "ds.json"
    assert evidence(of_run("8bit", asked_type="FSDP2")[0])["sharded by"] == "FSDP2"
    assert of_run("4bit", zero_stage=3) == of_run("8bit", zero_stage=2) == of_run("8bit") == []


def test_ld604_saves_the_statistics_only_where_that_helps(gathered: Callable[..., None]) -> None:
    def found(again: str, after: str | None) -> Finding:
        def run(status: str | None) -> Stub | None:
            if status is None:
                return None
            check = Check("save-reload", status, 0.25, "", "")  # type: ignore[arg-type]
            return Stub(check=lambda name: check)

        moved = ("layers.*.conv.norm",)
        none = Stub(check=lambda name: None)
        gathered(
            "LD604", round_trip=(run(again), Stub(statistics=moved)), with_edits=run(after) or none
        )
        recipe = {"modules_to_save": ["head"]}
        return one("LD604", recipe=recipe, settings=Stub(depth="tiny"))

    none_ran = Stub(check=lambda name: None)
    gathered("LD604", with_edits=none_ran,
             round_trip=(none_ran, Stub(statistics=("a", "b", "c", "d"))))  # fmt: skip
    unknown = one("LD604", recipe={}, settings=Stub(depth="tiny"))
    assert unknown.message.startswith("The running statistics of a, b, c and 1 more changed")
    assert unknown.severity == "warning" and evidence(unknown)[BEFORE] == "not measured"
    assert unknown.location.path == "a"
    unmeasured = Stub(check=lambda name: Check("save-reload", "failed", None, "", ""))
    gathered("LD604", round_trip=(unmeasured, Stub(statistics=("a",))))
    nothing = one("LD604", recipe={}, settings=Stub(depth="tiny"))
    assert evidence(nothing)[BEFORE] == "not measured"
    gathered("LD604", round_trip=(unmeasured, Stub(statistics=())))
    assert ask("LD604", recipe={}) == []
    helps = found("failed", "passed")
    assert (helps.severity, helps.explains) == ("error", ("save-reload",))
    assert fixes(helps)[0].endswith("modules_to_save=['head', 'conv.norm'].")
    assert helps.fixes[0].safety == "unsafe" and helps.fixes[0].edits[0].value == [
        "head",
        "conv.norm",
    ]
    assert list(evidence(helps).values()) == ["0.25", "0.25"]
    for after in ("failed", "skipped", None):
        no_help = found("passed", after)
        assert (no_help.severity, no_help.explains) == ("warning", ())
        assert no_help.fixes[0].safety == "manual" and "eval()" in fixes(no_help)[0]
        assert list(evidence(no_help).values())[-1] == "not better"


# --- what starts a script, and what its steps were ------------------------------------------------


def launch(*, certain: bool = True, version: int = 1, code: str = "accelerate launch") -> Launch:
    sharded = {"fsdp_use_orig_params": True, "fsdp_version": version}
    config = {"distributed_type": "FSDP", "fsdp_config": sharded}
    return Launch("accelerate", 2, code, Place("run.sh", 1), certain, config)


@pytest.mark.parametrize(
    ("launches", "severity"),
    [
        ([launch()], "error"),
        ([launch(certain=False)], "warning"),
        # A config that lies there starts nothing by itself.
        ([launch(certain=False, version=2), launch()], "error"),
        ([launch(certain=False), launch()], "error"),
        ([launch(), launch(version=2)], "warning"),
    ],
)
def test_ld553_is_sure_where_every_command_shards_so(launches: list[Launch], severity: str) -> None:
    recipe = Recipe({"use_dora": True})
    program = Stub(roles=Stub(trainer=Stub()))
    case: dict[str, Any] = {"has": lambda _: False, "program": program, "recipe": recipe}
    assert one("LD553", **case, launches=launches).severity == severity
    assert ask("LD553", **case, launches=[launch(version=2)]) == []
    assert ask("LD553", **{**case, "recipe": Recipe({})}, launches=launches) == []


def test_ld588_says_what_took_a_gradient_instead() -> None:
    names = tuple(f"layers.{number}.lora_A" for number in range(3))
    dropped = AdapterGradients("second", names, held=2, accumulated=0)
    third, fourth = (AdapterGradients(name, names, held=3, accumulated=3) for name in "ab")
    found = one("LD588", dry_run=Stub(signal=Stub(adapters=(dropped, third, fourth))))
    assert found.location.path == "layers.0.lora_A" and found.message.startswith(
        "The adapter second"
    )
    assert evidence(found) == {
        "reached by a backward pass": "layers.0.lora_A, layers.1.lora_A and 1 more",
        "took a gradient": "0 of 3",
        "held by an optimizer": "2 of 3",
        "adapters that take gradients": "a, b",
    }
    assert len(found.evidence) == 4
    alone = one("LD588", dry_run=Stub(signal=Stub(adapters=(dropped,))))
    assert "adapters that take gradients" not in evidence(alone)
    assert ask("LD588", dry_run=Stub(signal=Stub(adapters=(third, fourth)))) == []


def test_ld587_names_the_first_metrics_that_there_are(gathered: Callable[..., None]) -> None:
    place = Place("train.py", 9)
    metrics = tuple(f"eval_{name}" for name in "abcde")
    missing = MetricNotComputed("Trainer", place, "eval_f1", metrics, "TrainingArguments", place)
    gathered("LD587", metrics_not_computed=[missing, replace(missing, metric="", computed=())])
    first, early = ask("LD587", has=lambda _: False, program=Stub())
    names = "eval_a, eval_b, eval_c, eval_d and 1 more"
    assert f"which computes {names} only" in first.message and names in fixes(first)[0]
    assert evidence(first)["metric_for_best_model"] == "eval_f1"
    assert "raises AssertionError" in early.message and "eval_loss" in fixes(early)[0]
    assert evidence(early)["metric_for_best_model"] == "not given"


@pytest.mark.parametrize(("start", "severity", "when"), [("corda", "error", "before"),
                                                         ("eva", "info", "after")])  # fmt: skip
def test_ld220_says_what_becomes_of_it(start: str, severity: str, when: str) -> None:
    """The value is no constant of this process where it was read from a file."""
    recipe = Recipe({"init_lora_weights": start.upper().lower()})
    case = {"has": lambda _: False, "source": Stub(kind="folder"), "asked": recipe}
    found = one("LD220", **case)
    assert found.severity == severity and f" {when} get_peft_model" in fixes(found)[0]
    assert ("refuses the config" in found.message) == (start == "corda")
    assert ask("LD220", **{**case, "source": Stub(kind="module")}) == []


@pytest.mark.parametrize(
    ("left", "targets", "refused"),
    [
        (["model.layers.0.self_attn.q_proj"], ["q_proj"], False),
        (["model.layers.0.self_attn.q_proj"], ["q_proj", "v_proj"], True),
        (["model.layers.0.self_attn.q_proj"], ["model"], True),
        ([], ["q_proj"], True),
        (None, "all-linear", True),
    ],
)
def test_ld316_leaves_adapters_on_layers_that_are_not_quantized(
    gathered: Callable[..., None], left: list[str] | None, targets: Any, refused: bool
) -> None:
    place = Place("train.py", 7)
    merge = Stub(code="merge()", place=place, other_code="adapt()", other_place=place)
    gathered("LD316", merges=repeat(merge), lora_merges=("no", "NotImplementedError: none"))
    config = {"quant_method": "aqlm", "modules_to_not_convert": left}
    recipe = Recipe({"peft_type": "LORA", "target_modules": targets})
    held = {"static": True, "set_up": False, "program": True}
    case = {"has": held.__getitem__, "static": Stub(quantization_config=config), "program": Stub()}
    found = ask("LD316", **case, recipe=recipe)
    assert [one.location.line for one in found] == [7] * refused
    assert ask("LD316", **case, recipe=Recipe({**recipe.values, "dequantize": True})) == []
    assert ask("LD316", **{**case, "static": Stub(quantization_config=None)}, recipe=recipe) == []


# --- calls of adapters ----------------------------------------------------------------------------


def _step(gathered: Callable[..., None], code: str, **fault: Any) -> Finding:
    step = Stub(code="model.add_weighted_adapter(...)", place=Place("train.py", 7))
    gathered(code, faults=[(Stub(**fault), step)])
    return one(code)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("ValueError: All adapters must have the same r value", "Combine them with"),
        ("ValueError: 'lm_head' is in modules_to_save of both", "Merge or combine one adapter"),
        ("ValueError: an adapter of this name exists", "Change the call, or the adapters"),
    ],
)
def test_ld647_advises_by_what_is_refused(
    error: str, advice: str, gathered: Callable[..., None]
) -> None:
    found = _step(gathered, "LD647", error=error)
    assert found.message == f"model.add_weighted_adapter(...) will fail: {error}"
    assert fixes(found)[0].startswith(advice)
    assert evidence(found)["what PEFT raises"] == error


@pytest.mark.parametrize(
    ("cause", "lost"),
    [("use_rslora", "does not carry use_rslora over"), ("", "loses a part of them")],
)
def test_ld648_says_what_is_lost(cause: str, lost: str, gathered: Callable[..., None]) -> None:
    found = _step(gathered, "LD648", cause=cause, adapters=("a", "b"), detail="61 %")
    assert found.message == (
        f"model.add_weighted_adapter(...) {lost}: with all the weight on one adapter (a, b) the "
        "combination does not give that adapter (61 % of the output)."
    )
    assert found.location.line == 7


# --- what the trainer calls -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("not_taken", "unfilled", "columns", "what", "title", "passed"),
    [
        (["answer", "step"], [], ["answer"], "with answer, step, which the function does not take",
         "End the parameters of score with **kwargs.", "prompts, completions, the other columns"),
        ([], ["truth"], [], "without truth, which is no column of the training set",
         "Name the parameter as its column, or give the training set this column.",
         "prompts, completions"),
    ],
    ids=["not-taken", "unfilled"],
)  # fmt: skip
def test_ld932_says_which_arguments_do_not_fit(
    not_taken: list[str], unfilled: list[str], columns: list[str], what: str, title: str,
    passed: str, gathered: Callable[..., None],
) -> None:  # fmt: skip
    """TRL need not be installed for this, as it must be for the rule's example."""
    reward = Stub(
        trainer="GRPOTrainer", function=Stub(name="score", place=Place("train.py", 3)),
        not_taken=not_taken, unfilled=unfilled, columns=columns, trainer_place="train.py:9",
        call=Stub(names=("prompts", "completions"), place="trl/trainer/grpo_trainer.py:1"),
    )  # fmt: skip
    gathered("LD932", refused_rewards=[reward])
    assert ask("LD932", has={"dry_run"}.__contains__, program=Stub()) == []
    found = one("LD932", has=set().__contains__, program=Stub())
    assert found.message == f"GRPOTrainer calls score {what}: TypeError in the first step."
    assert found.severity == "error" and found.location.line == 3
    assert fixes(found) == [title]
    told = {"columns": ", ".join(columns)} if columns else {}
    assert evidence(found) == {"passed by name": passed, **told}


def test_ld933_names_every_argument_and_leaves_what_ran(gathered: Callable[..., None]) -> None:
    override = Stub(
        owner="Mine", method="compute_loss", not_taken=["num_items_in_batch", "more"],
        place=Place("train.py", 4), call=Stub(place="transformers/trainer.py:1", due=frozenset()),
    )  # fmt: skip
    gathered("LD933", narrow_overrides=[override])
    assert ask("LD933", has={"dry_run"}.__contains__, program=Stub()) == []
    found = one("LD933", has=set().__contains__, program=Stub())
    assert found.message.startswith(
        "The Trainer calls Mine.compute_loss with num_items_in_batch, more, which it does not take:"
    )
    assert found.location.line == 4
    assert fixes(found) == ["Add num_items_in_batch=None to the parameters of compute_loss."]
    assert evidence(found) == {"called with": "num_items_in_batch, more"}


def test_ld934_returns_the_distance_below_zero(gathered: Callable[..., None]) -> None:
    function = Stub(name="near", place=Place("train.py", 5))
    gathered("LD934", distances_rewarded=[(function, "abs(len(text) - 20)")])
    assert ask("LD934", has=set().__contains__) == []
    found = one("LD934", has={"program"}.__contains__, program=Stub())
    assert found.severity == "warning" and found.location.line == 5
    assert found.message.startswith("near returns abs(len(text) - 20) as the reward")
    assert fixes(found) == ["Return -abs(len(text) - 20)."]


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
        "without lora_alpha": f"{', '.join(failed)} passed",
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
        "SHADOW, check attaches": "attaches: no",
        "raised in": "a.py:1",
        "LoRA on the same layers": "attaches, forward passed",
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


# --- code of the repository -----------------------------------------------------------------------

AT = source_facts.Place("modeling.py", 7)


@pytest.fixture
def remote(gathered: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``remote(missing_packages=[x], raised="KeyError")``: what LD104 says of code with these
    faults, of which loading, where it was tried, raised that."""
    functions = ("missing_packages", "missing_names", "missing_keys", "tied_lists")

    def said(
        *, raised: str = "", lacks: str = "", refused: bool = False, works: bool = False,
        lacking: Any = None, trusted: bool = False, unread: str = "", **faults: Any,
    ) -> list[Finding]:  # fmt: skip
        classes = [Stub(class_name="Base", module="base"), Stub(class_name="Own", module="code")]

        def require_read(code: Any) -> None:
            if unread:
                raise EvidenceError(unread)

        view = Stub(
            version="5.24.0", raised=raised, reason=raised, lacks=lacks, refused=refused,
            static=Stub(source="the folder", auto_map=classes),
            saw=lambda *traces: any(trace in raised for trace in traces),
            other_fixes=lambda pinned=True: [Fix(f"another release, {pinned}", "manual")],
        )  # fmt: skip
        view.case = Stub(
            source=Stub(trust_remote_code=works or trusted, kind="folder"),
            remote_code=None, recipe={},
            has=lambda name: works, reaches=lambda depth: works, environment=versions(lib="2.0"),
            static=Stub(auto_map=True, model_type="own", architectures=[], config={}),
            structure=Stub(model_class="Own", python_module="transformers_modules.own"),
        )  # fmt: skip
        native = ("own",) if "native" in faults else None
        gathered("LD104", View=lambda *_: view, known_architectures=native,
                 require_read=require_read, missing_attribute=lacking)  # fmt: skip
        for name in functions:
            given = faults.get(name, ())
            monkeypatch.setattr(code_fit, name, lambda *_, given=given, **__: given)
        monkeypatch.setattr(loaded_code, "loaded_code", lambda *_: None)
        return list(RULES["LD104"]().check(view.case))

    return said


def test_ld104_tells_when_a_missing_package_is_imported(remote: Callable[..., Any]) -> None:
    def package(name: str, when: str = "always") -> Any:
        return code_fit.MissingPackage(name, AT, when, None)

    assert remote() == []
    with pytest.raises(EvidenceError, match="too large"):
        remote(unread="too large")
    given = {"missing_packages": [package("einops")], "native": True}
    assert remote(**given) == [], "the library has a class of its own"
    assert len(remote(**given, trusted=True, unread="too large")) == 1
    (alone,) = remote(missing_packages=[package("einops")])
    assert (alone.severity, alone.proof.kind) == ("error", "measured") and alone.explains
    assert alone.message == (
        "modeling.py:7 imports einops, which is not installed: the model cannot be loaded."
    )
    assert evidence(alone) == {"einops": "imported; not installed"}
    assert fixes(alone)[0].startswith("pip install einops") and fixes(alone)[1].endswith("False")
    (guarded,) = remote(missing_packages=[package("a", "function"), package("b", "if")])
    assert "imports a, b, which are not installed" in guarded.message
    assert evidence(guarded) == {
        "a": "imported, only in a function; not installed",
        "b": "imported, only under a condition; not installed",
        "transformers 5.24.0": "requires it before it runs the file",
    }
    for told in ({"lacks": "a", "raised": "x"}, {"raised": "No module named 'b'"}):
        (tried,) = remote(missing_packages=[package("a"), package("b", "if")], **told)
        assert tried.proof.kind == "executed" and evidence(tried)["loading"] == told["raised"]
        assert "transformers 5.24.0" not in evidence(tried), "one is imported in any case"


def test_ld104_says_of_names_how_sure_it_is(remote: Callable[..., Any]) -> None:
    def name(name: str, certain: bool) -> Any:
        return code_fit.MissingName("lib.cache", name, AT, certain)

    (sure,) = remote(missing_names=[name("Old", True)])
    assert sure.message == (
        "modeling.py:7 imports Old from lib.cache, which lib 2.0 does not have: the model cannot "
        "be loaded."
    )
    assert sure.proof.kind == "measured"
    (may,) = remote(missing_names=[name("Old", False), name("Older", False)])
    assert "Old from lib.cache and 1 more name, which" in may.message
    assert may.message.endswith("the model may fail to load.") and may.proof.kind == "inferred"
    (three,) = remote(missing_names=[name("Old", False), name("B", True), name("C", False)])
    assert "and 2 more names, which" in three.message and three.proof.kind == "measured"
    (tried,) = remote(missing_names=[name("Old", False)], raised="cannot import name 'Old'")
    assert tried.proof.kind == "executed"


def test_ld104_tells_keys_that_the_library_rewrites_from_those_that_lack(
    remote: Callable[..., Any],
) -> None:
    def key(name: str, value: Any, rewritten: bool, at_init: bool = True) -> Any:
        read: Any = Stub(attribute="rope_scaling", key=name, at=AT, at_init=at_init)
        return code_fit.MissingKey(read, value, rewritten)

    (rewritten,) = remote(missing_keys=[key("type", None, True)])
    assert rewritten.message == (
        'modeling.py:7 reads rope_scaling["type"], and rope_scaling is null, which transformers '
        "5.24.0 turns into a dictionary without this key: the model may fail to load."
    )
    assert list(evidence(rewritten).values()) == [
        "read, after a check for None only", "null",
        "a property that returns rope_parameters, never None",
    ]  # fmt: skip
    assert len(fixes(rewritten)) == 1
    (lacks,) = remote(missing_keys=[key("type", {"rope_type": 1, "factor": 2}, False, False)])
    assert lacks.message.endswith("rope_scaling has no 'type': the model may fail to run.")
    assert list(evidence(lacks).values()) == ["read", "rope_type, factor"]
    assert fixes(lacks)[0].startswith('Add "type" next to "rope_type"')
    (other,) = remote(missing_keys=[key("factor", {}, False)], raised="KeyError: 'factor'")
    assert other.message.endswith("the model cannot be loaded.") and len(fixes(other)) == 1
    (runs,) = remote(missing_keys=[key("a", {}, False, False)], raised="KeyError: 'a'")
    assert runs.message.endswith("the model cannot run.")


def test_ld104_warns_of_tied_lists_unless_loading_needs_them(remote: Callable[..., Any]) -> None:
    def tied(tied: bool | None) -> list[Any]:
        return [code_fit.TiedKeys("Own", AT, tied)]

    for value, told in ((None, "not given"), (False, False)):
        (later,) = remote(tied_lists=tied(value))
        assert (later.severity, later.explains) == ("warning", ())
        assert "adapters train, but save_pretrained of the model itself" in later.message
        assert evidence(later)["tie_word_embeddings"] == told
        assert later.proof.kind == "inferred"
    (may,) = remote(tied_lists=tied(True))
    assert may.severity == "error" and may.message.endswith("the model may fail to load.")
    (does,) = remote(tied_lists=tied(True), raised="'list' object has no attribute 'keys'")
    assert does.message.endswith("the model cannot be loaded.")
    (works,) = remote(tied_lists=tied(True), works=True)
    assert works.severity == "warning", "it was loaded"
    (refused,) = remote(tied_lists=tied(True), works=True, refused=True)
    assert refused.severity == "error" and "_tied_weights_keys" in refused.message


def test_ld104_says_what_loading_or_running_it_raised(remote: Callable[..., Any]) -> None:
    lacks = "Own has no attribute all_tied_weights_keys"
    (built,) = remote(raised=lacks)
    assert "cannot construct the class" in built.message and "post_init()" in fixes(built)[0]
    assert remote(raised="something else") == []
    (refused,) = remote(raised=lacks, works=True, refused=True)
    assert refused.message == (
        "transformers 5.24.0 can construct Own, which is code of the repository, but cannot load "
        f"it: {lacks}."
    )
    assert refused.location.path == "code.py" and "post_init()" in fixes(refused)[0]
    (other,) = remote(raised="size mismatch", works=True, refused=True)
    assert fixes(other) == ["another release, True"]
    assert remote(raised=lacks, works=True) == []

    def asks(what: str, own: bool = False) -> Stub:
        return Stub(asked=what, in_transformers=own, file="a/b.py", line=3, depth="tiny",
                    message=f"no {what}")  # fmt: skip

    (cache,) = remote(lacking=asks("DynamicCache.seen_tokens"))
    assert cache.message == (
        "b.py:3 uses DynamicCache.seen_tokens, which transformers 5.24.0 does not have: the model "
        "does not run in training, where it keeps a cache by default."
    )
    assert "use_cache" in fixes(cache)[0] and cache.location.line == 3
    (plain,) = remote(lacking=asks("Config.gone"))
    assert plain.message.endswith("does not run in training.") and len(fixes(plain)) == 1
    assert remote(lacking=asks("Config.gone", own=True)) == [], "LD108 is about that"


# --- several processes, and what a run showed -----------------------------------------------------


@pytest.fixture
def of_processes(gathered: Callable[..., None]) -> Callable[..., list[Finding]]:
    """What a rule says of the processes of a dry run."""

    def said(code: str, found: Any, trained_by: str = "a loop") -> list[Finding]:
        values = {"at": Location("file", "train.py", 1)}
        if hasattr(sys.modules[RULES[code].__module__], "together"):
            values["together"] = Measurement("processes", 2, "the run")
        gathered(code, **values)
        return ask(code, dry_run=Stub(processes=found, trained_by=trained_by))

    return said


def test_ld541_is_about_processes_that_do_not_meet_or_differ(
    of_processes: Callable[..., list[Finding]],
) -> None:
    def run(**changes: Any) -> Stub:
        values = {
            "trained": [0, 1],
            "errors": [],
            "apart": 0.25,
            "met": 2,
            "sums": {0: 1.0, 1: 2.5},
        }
        return Stub(**{**values, **changes})

    (differ,) = of_processes("LD541", run())
    assert differ.severity == "error" and differ.message == (
        "2 processes train independently: after the same steps the sums of their adapters differ "
        "by 0.25 (relative)."
    )
    sums = "sum of absolute trainable parameters, same steps"
    assert evidence(differ)[sums] == "rank 0: 1, rank 1: 2.5"
    (alone,) = of_processes("LD541", run(met=1, sums={}, apart=0.0, trained=[0, 1, 2]))
    assert alone.message == "3 processes train independently: they have no process group."
    assert sums not in evidence(alone)
    assert len(of_processes("LD541", run(apart=2e-6))) == 1
    three = run(met=3, trained=[0, 1, 2])
    assert "the sums of their adapters differ" in of_processes("LD541", three, "Trainer")[0].message
    for healthy in (None, run(apart=1e-6), run(apart=1e-7), run(trained=[0]), run(errors=["x"])):
        assert of_processes("LD541", healthy) == []
    for trainer in ("Trainer", "lightning"):
        assert of_processes("LD541", run(met=1), trainer) == [], "it meets on other machines"
    assert len(of_processes("LD541", run(), "Trainer")) == 1


def test_ld548_and_ld586_count_processes(of_processes: Callable[..., list[Finding]]) -> None:
    def asked(**changes: Any) -> Stub:
        values = {"asked": 2, "started": 1, "simple_launcher": "NO"}
        return Stub(**{**values, **changes})

    (one_started,) = of_processes("LD548", asked())
    assert one_started.message == "accelerate was asked for 2 processes, but starts one."
    assert list(evidence(one_started).values()) == [2, "NO", 1]
    assert fixes(one_started)[0].startswith("accelerate launch --multi_gpu --num_processes 2,")
    assert len(of_processes("LD548", asked(asked=3, started=0))) == 1
    for healthy in (None, asked(asked=1), asked(started=2), asked(simple_launcher="")):
        assert of_processes("LD548", healthy) == []

    def batches(**changes: Any) -> Stub:
        return Stub(**{"ran_type": "FSDP2", "same_batches": 2, "met": 4, **changes})

    (same,) = of_processes("LD586", batches())
    assert same.severity == "warning" and "first 2 training batches are the same in all 4" in (
        same.message
    )
    assert evidence(same)["batches that are the same in all"] == 2
    for healthy in (None, batches(ran_type="NO"), batches(same_batches=1)):
        assert of_processes("LD586", healthy) == []
    assert len(of_processes("LD586", batches(same_batches=3, ran_type="DDP"))) == 1


def test_ld926_tells_both_losses() -> None:
    found = Stub(next_tokens=9, labels=10, loss=3.0, shifted=4.0, unshifted=3.0)
    said = one("LD926", dry_run=Stub(shifted_labels=found))
    assert said.message.startswith("9 of 10 labels are already the next token")
    assert list(evidence(said).values()) == [3.0, 4.0, 3.0]
    assert ask("LD926", dry_run=Stub(shifted_labels=None)) == []


def test_ld551_asks_who_distributes_the_ranks(gathered: Callable[..., None]) -> None:
    def said(
        peft_type: Any = "AdaLora", *, allocates: bool = False, text: str = "", trainer: Any = None,
        config: Any = None, unread: bool = False, made: bool = True,
    ) -> list[Finding]:  # fmt: skip
        gathered("LD551", trainer_allocates=allocates, has_unread_callback=unread)
        trainer = Stub(method="Trainer", place=Place("train.py", 4)) if made else None
        program = Stub(
            roles=Stub(trainer=trainer), program=Stub(units=[Stub(text="x"), Stub(text=text)]),
            parts={"adapter": config} if config else {},
        )  # fmt: skip
        return ask("LD551", program=program, asked={"peft_type": peft_type})

    (bare,) = said()
    assert bare.severity == "warning" and bare.location.line == 4
    assert evidence(bare) == {"calls of update_and_allocate": 0}
    (told,) = said(config=Stub(method="AdaLoraConfig", place="train.py:2"))
    assert evidence(told)["AdaLoRA"] == "AdaLoraConfig"
    for healthy in (
        said("LORA"), said(None), said(allocates=True), said(text="model.update_and_allocate(1)"),
        said(made=False),
    ):  # fmt: skip
        assert healthy == []
    with pytest.raises(EvidenceError, match="callback"):
        said(unread=True)


def test_ld510_leaves_the_rate_to_an_optimizer_of_its_own(gathered: Callable[..., None]) -> None:
    def said(rate: Any, *known: str, brings: bool = False, adapters: bool = True) -> list[Finding]:
        gathered("LD510", brings_optimizer=brings, not_updated=[])
        return ask("LD510", recipe={"learning_rate": rate}, has=set(known).__contains__,
                   program=Stub(), optimizer=Stub(adapters=adapters))  # fmt: skip

    for rate in (0, 0.0):
        (zero,) = said(rate)
        assert zero.severity == "error" and evidence(zero) == {"learning_rate": 0}
    assert len(said(0, "program")) == 1
    for healthy in (None, False, 1e-4, 1, -1e-4, "0"):
        assert said(healthy) == []
    assert said(0, "program", brings=True) == [] == said(0, "dry_run") == said(0, "optimizer")
    gathered("LD510", not_updated=lambda *_: ["told"])
    for adapters, told in ((True, ["told"]), (False, [])):
        assert ask("LD510", recipe={}, has=bool, optimizer=Stub(adapters=adapters)) == told


@pytest.mark.parametrize(
    ("detail", "effect"),
    [
        ("taken off", "'b' was loaded, was never active, and is taken off unmerged"),
        ("active", "'b' stays active and is not applied where others are merged"),
        ("head", "the whole head of 'b' is dropped, and that of the active adapter stays"),
    ],
)
def test_ld651_says_what_becomes_of_an_adapter(
    detail: str, effect: str, gathered: Callable[..., None]
) -> None:
    step = Stub(code="model.merge_and_unload()")
    for merged, told in (("a",), "'a'"), ((), "nothing"):
        fault = Stub(adapters=("b",), merged=merged, detail=detail)
        gathered("LD651", faults=[(fault, step)], at=Location("file", "a.py", 3),
                 call=Measurement("the call", step.code, "a.py:3"))  # fmt: skip
        found = one("LD651", settings=Stub(trains=False))
        assert found.message == f"model.merge_and_unload() merges {told}: {effect}."
        assert list(evidence(found).values()) == [step.code, told, "'b'"]
    assert ask("LD651", settings=Stub(trains=True)) == []


# --- a head that the loss bypasses, adapters that are not found again, memory ---------------------


def test_ld512_says_who_bypasses_the_head(gathered: Callable[..., None]) -> None:
    head = Stub(role="head", adapted=1, leaf="lm_head", pattern="lm_head")
    other = Stub(role="layer", adapted=2, leaf="q_proj", pattern="q_proj")

    def said(recipe: dict[str, Any] | None = None, groups: Any = (head, other),
             **given: Any) -> list[Finding]:  # fmt: skip
        """given: what Liger, TRL and the script have; ``trainer``: the name that it calls."""
        edits = given.get("edits", (Edit("target_modules", ["q_proj"]),))
        gathered("LD512", liger_reads_head=given.get("line"), edits_without=edits,
                 liger_version=given.get("installed", ""),
                 trl_refuses_head=lambda name: given.get("refusal"))  # fmt: skip
        name, calls, set_up = (given.get(key, "") for key in ("trainer", "calls", "set_up"))
        call = Stub(name=name, method=name.rpartition(".")[2]) if name else None
        known = {"program"} if name or calls else {"set_up"} if set_up else set()
        return ask(
            "LD512", structure=Stub(groups=groups, model_type="llama"), recipe=recipe or {},
            has=known.__contains__, environment=versions(trl="1.0"), set_up=Stub(format=set_up),
            program=Stub(roles=Stub(trainer=call), program=Stub(calls=calls)),
        )  # fmt: skip

    liger = {"use_liger_kernel": True}
    (may,) = said(liger)
    assert may.severity == "warning" and may.proof.kind == "inferred"
    assert may.message.startswith("The adapters on lm_head may get no gradient: Liger's fused")
    assert evidence(may)["the loss"] == "Liger's fused linear cross entropy"
    assert [fix.safety for fix in may.fixes] == ["unsafe", "manual"]
    line = Stub(code="lin_weight=self.lm_head.weight")
    (surely,) = said(liger, line=line, installed="0.5")
    assert surely.severity == "warning" and surely.proof.kind == "read"
    assert "The adapters on lm_head get no gradient" in surely.message
    assert evidence(surely)["the weight is read in"] == line.code
    (alone,) = said(liger, (head,), line=line, installed="0.5")
    assert alone.severity == "error"
    assert said(liger, (head,))[0].severity == "warning", "it was not read"
    (cut,) = said({"cut_cross_entropy": True}, edits=())
    assert "cut cross entropy reads lm_head.weight" in cut.message
    assert [(fix.safety, fix.title) for fix in cut.fixes] == [
        ("manual", "Remove the output head from target_modules."),
        ("unsafe", "Or turn the fused loss off: cut_cross_entropy."),
    ]
    assert cut.fixes[1].edits == (Edit("cut_cross_entropy", False),)
    refusal = Stub(with_liger=False, message="not supported", place=Place("sft.py", 3))
    (raises,) = said(refusal=refusal, trainer="trl.SFTTrainer")
    assert raises.severity == "error" and raises.message.startswith("SFTTrainer raises ValueError")
    assert evidence(raises)["SFTTrainer raises"] == "not supported" and len(raises.fixes) == 1
    assert len(said(refusal=refusal, set_up="TRL")) == 1
    assert said(refusal=refusal, set_up="axolotl") == [] == said(refusal=refusal)
    assert said(refusal=refusal, trainer="transformers.Trainer") == []
    with_liger = Stub(with_liger=True, message="", place=Stub(code="raise ValueError"))
    assert said(refusal=with_liger, trainer="trl.SFTTrainer") == []
    (now,) = said(liger, refusal=with_liger, trainer="trl.SFTTrainer")
    assert evidence(now)["SFTTrainer raises"] == "raise ValueError"
    for name, value, certain, found in (
        ("apply_liger_kernel_to_llama", None, True, 1), ("x", None, True, 0),
        ("apply_liger_kernel_to_llama", None, False, 0),
        ("apply_liger_kernel_to_llama", Stub(value=False), True, 0),
        ("AutoLigerKernelForCausalLM.from_pretrained", None, True, 1),
    ):  # fmt: skip
        call = Stub(name=name, method=name, certain=certain, place="a.py:1",
                    value=lambda key, value=value: value)  # fmt: skip
        assert len(said(calls=[call])) == found, name
    off = {**liger, "liger_kernel_config": {"fused_linear_cross_entropy": False}}
    for healthy in (
        said(), said(off), said(liger, installed="0.5"), said(liger, (other,)),
        said(liger, (Stub(role="head", adapted=0, leaf="lm_head"),)),
        said(liger, (Stub(role="head", adapted=1, leaf="score"),)),
    ):  # fmt: skip
        assert healthy == []


def test_ld603_leaves_out_what_is_lost_and_keeps_the_rest(gathered: Callable[..., None]) -> None:
    def group(pattern: str, adapted: int, kind: str = "linear") -> Stub:
        return Stub(pattern=pattern, adapted=adapted, kind=kind)

    groups = (group("a.x", 3), group("b.y", 5), group("c.z", 0), group("d.w", 2, "parameter"))
    asked: list[list[str]] = []

    def names(structure: Any, layers: Any) -> list[list[str]]:
        asked.append([one.pattern for one in layers])
        return [["y"]]

    def said(recipe: dict[str, Any], lost: Any = ("a.x",), example: Any = None) -> list[Finding]:
        injection = Stub(not_reloaded=lost, not_reloaded_example=example)
        gathered("LD603", require_lora=None, name_groups=names)
        return ask("LD603", recipe=recipe, structure=Stub(injection=injection, groups=groups))

    pair = Stub(saved="a..x.lora_A", looked_for="a.x.lora_A")
    (found,) = said({"target_parameters": ["a.x", "w"]}, example=pair)
    assert found.message.startswith("Saved adapters of 3 layers (a.x) will not be found")
    assert found.location.path == "a.x" and found.explains == ("save-reload",)
    assert list(evidence(found).values()) == ["a.x", "a..x.lora_A", "a.x.lora_A"]
    patched, left_out = found.fixes
    assert (patched.safety, left_out.safety) == ("safe", "unsafe") and asked == [["b.y"]]
    assert [(edit.key, edit.value) for edit in left_out.edits] == [
        ("target_modules", ["y"]), ("target_parameters", ["w"]),
    ]  # fmt: skip
    (nothing_left,) = said({"target_parameters": ["a.x"]}, ("a.x", "b.y"))
    assert "of 8 layers (a.x, b.y)" in nothing_left.message
    assert nothing_left.fixes[1].edits[1].value is None
    assert list(evidence(nothing_left).values())[1:] == ["", ""]
    (only_layers,) = said({})
    assert [edit.key for edit in only_layers.fixes[1].edits] == ["target_modules"]
    assert said({}, ()) == []
    gathered("LD603", name_groups=[])
    structure = Stub(
        groups=groups, injection=Stub(not_reloaded=("a.x",), not_reloaded_example=None)
    )
    assert len(one("LD603", recipe={}, structure=structure).fixes) == 1


GIB = 1 << 30


def memory(name: str, size: float | None, **given: Any) -> MemoryVariant:
    part = MemoryPart("weights", None if size is None else int(size * GIB), "a sum", "counted")
    return MemoryVariant(name, given, (part,))


def planned(recipe: MemoryVariant, *others: MemoryVariant, **given: Any) -> MemoryPlan:
    return MemoryPlan(4, given.pop("length", 128), "the recipe", "the recipe", "adamw", {}, recipe,
                      others, **given)  # fmt: skip


def test_ld704_names_the_nearest_recipe_that_fits() -> None:
    def said(plan: MemoryPlan, **recipe: Any) -> list[Finding]:
        return ask("LD704", recipe=recipe or {"memory_budget": 8 * GIB}, memory_plan=plan)

    smaller = memory("8-bit", 4, load_in_8bit=True)
    plan = planned(memory("recipe", 40), smaller, budget=8 * GIB)
    (found,) = said(plan)
    assert found.severity == "error" and found.location.path == "memory_budget"
    assert found.message == (
        "Training with a batch of 4 of 128 tokens takes about 40.0 GiB, and the GPU has 8.0 GiB: "
        "it does not fit."
    )
    told = evidence(found)
    assert (told["batch size"], told["weights"], told["with 8-bit"]) == (4, "40.0 GiB", "4.0 GiB")
    assert told["total"] == "40.0 GiB to 40.0 GiB"
    assert found.fixes[0].title == "Train with 8-bit: about 4.0 GiB."
    assert found.fixes[0].edits == (Edit("load_in_8bit", True),)
    (none,) = said(planned(memory("recipe", 40), memory("8-bit", 50), budget=8 * GIB, length=0))
    assert "a batch of 4 takes about" in none.message
    assert fixes(none)[0] == (
        "No alternative fits for certain: the smallest takes 40.0 GiB, with the recipe as it is."
    )
    (other,) = said(planned(memory("recipe", 40), memory("8-bit", 30), budget=8 * GIB))
    assert fixes(other)[0].endswith("the smallest takes 30.0 GiB, with 8-bit.")
    assert said(planned(memory("recipe", 4), budget=8 * GIB)) == []
    assert said(plan, r=8) == [], "nobody asked"
    cards = (
        PlannedGpu("t4", "NVIDIA T4", 16 * GIB, ""),
        PlannedGpu("a", "NVIDIA A100", 32 * GIB, ""),
    )
    both = said(planned(memory("recipe", 40), smaller, gpus=cards), gpu="t4")
    assert [found.location.path for found in both] == ["gpu", "gpu"]
    assert "and the NVIDIA T4 has 16.0 GiB" in both[0].message
    (largest,) = said(planned(memory("recipe", 40), smaller, gpus=cards, any_gpu=True), gpu="x")
    assert "and the NVIDIA A100 has" in largest.message
    assert said(planned(memory("recipe", 20), gpus=cards, any_gpu=True), gpu="x") == []
    unknown = MemoryVariant("recipe", {}, (*memory("", 4).parts, *memory("", None).parts))
    with pytest.raises(EvidenceError, match=r"weights: a sum.*the rest takes 4.0 GiB of 8.0 GiB"):
        said(planned(unknown, budget=8 * GIB))
    too_much = MemoryVariant("recipe", {}, (*memory("", 9).parts, *memory("", None).parts))
    (at_least,) = said(planned(too_much, memory("8-bit", None), budget=8 * GIB))
    assert "takes at least 9.0 GiB" in at_least.message
    assert evidence(at_least)["total"] == "≥ 9.0 GiB"
    assert evidence(at_least)["with 8-bit"] == "at least 0 MiB; a sum"
    assert fixes(at_least)[0] == "No alternative fits for certain: no alternative is known."
    margins = MemoryPart("weights", 8 * GIB, "x", "counted", low=7 * GIB, high=9 * GIB)
    (perhaps,) = said(planned(MemoryVariant("recipe", {}, (margins,)), budget=8 * GIB))
    assert perhaps.severity == "warning" and perhaps.message.endswith("it may not fit.")


# --- imports that fail ----------------------------------------------------------------------------


def lacking(root: str, module: str, name: str | None, *chain: str) -> MissingImport:
    return MissingImport(root, module, name, f"{chain[-1]}/a.py", 7, chain)


@pytest.fixture
def imports(gathered: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``imports(missing, ...)``: what LD706 says where these imports fail."""

    def said(
        *missing: MissingImport, kind: str = "folder", raised: str = "", meta: bool = True,
        **given: Any,
    ) -> list[Finding]:  # fmt: skip
        shared = [Stub(package=name) for name in given.get("mixed", ())]
        installed = {"transformers": "5.0", "peft": "0.21", "trl": "1.0"}
        monkeypatch.setattr(import_chain, "missing_imports", lambda: missing)
        monkeypatch.setattr(shared_folders, "shared_folders", lambda: shared)
        monkeypatch.setattr(environment, "installed_version", installed.get)
        monkeypatch.setattr(pair_repair, "pip_lines", lambda one: [f"pip install {one.provider}"])
        return ask(
            "LD706", source=Stub(kind=kind), reaches=lambda depth: meta,
            has={*given.get("known", ())}.__contains__, why_not=lambda name: raised,
            script=Stub(path=Stub(read_text=lambda *_: given.get("text", ""))),
        )  # fmt: skip

    return said


def test_ld706_tells_what_is_too_old_and_what_is_not_there(imports: Callable[..., Any]) -> None:
    old = lacking("import peft", "transformers.cache", "Hybrid", "peft.x")
    assert imports() == []
    (found,) = imports(old)
    assert found.message == (
        "`import peft` fails: peft 0.21 imports Hybrid, which transformers 5.0 does not have."
    )
    assert (found.severity, found.proof.kind) == ("error", "inferred")
    assert evidence(found) == {"import peft": old.message}
    assert found.evidence[0].source == "peft.x/a.py:7"
    assert found.location.path == "peft 0.21, transformers 5.0"
    assert fixes(found) == ["pip install transformers"]
    assert imports(old, raised=f"ImportError: {old.message}")[0].proof.kind == "executed"
    also = imports(old, kind="environment", raised=old.message)
    assert also[0].proof.kind == "inferred", "nothing was run"
    (absent,) = imports(lacking("import peft", "einops.layers", None, "peft.x"))
    assert absent.message.endswith("peft 0.21 imports einops.layers, which is not installed.")
    assert absent.location.path == "peft 0.21, einops (not installed)"
    assert imports(old, known=["structure"]) == [], "a model was built"
    assert imports(old, mixed=["peft"]) == [] == imports(old, mixed=["transformers"])
    with pytest.raises(EvidenceError, match="static"):
        imports(old, meta=False)
    assert len(imports(old, meta=False, kind="script")) == 1


def test_ld706_joins_what_has_a_package_in_common(imports: Callable[..., Any]) -> None:
    one_name = lacking("import peft", "transformers.a", "A", "peft.x")
    whole = lacking("from transformers import Trainer", "einops", None, "transformers.trainer")
    apart = lacking("import lib", "other", None, "lib")
    joined, other = imports(whole, apart, one_name)
    joined, other = sorted((joined, other), key=lambda found: -len(found.evidence))
    assert joined.message.startswith(
        "`from transformers import Trainer`, `import peft` fail: peft 0.21 imports A, which "
    ), "a name tells more than a package"
    assert fixes(joined) == ["pip install einops", "pip install transformers"]
    assert other.message.startswith("`import lib` fails: lib imports other")
    trainer = lacking("from transformers import Trainer", "accelerate", None, "transformers.x")
    assert imports(trainer, kind="environment")[0].severity == "warning"
    assert imports(trainer)[0].severity == "error"
    both = imports(trainer, one_name, kind="environment")
    assert [found.severity for found in both] == ["error"]


def test_ld706_leaves_trl_to_scripts_that_import_it(imports: Callable[..., Any]) -> None:
    trl = lacking("from trl import SFTTrainer", "rich", None, "trl.x")
    assert imports(trl) == [] == imports(trl, known=["script"], text="# from trl import x")
    assert len(imports(trl, known=["script"], text="import os\n  from trl import x")) == 1
    assert imports(trl, kind="environment")[0].severity == "warning"


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
    layers = [Stub(stack="layers", missing=(3, 4))]
    assert random_weights(("m.layers.3.q", "layers.4"), stacks=layers, static=True) == []
    assert len(random_weights(("m.layers.3.q", "m.layers.5"), stacks=layers, static=True)) == 1
    assert random_weights(()) == []
    with pytest.raises(EvidenceError, match="PEFT refuses the recipe: ValueError: no"):
        random_weights((), error=ErrorReport("ValueError", "no"))
    with pytest.raises(EvidenceError, match="Base, lacks no module"):
        random_weights((), saved_class="Base")


# --- a model without generation -------------------------------------------------------------------

PREPARE = "prepare_inputs_for_generation"
ENCODE = "_prepare_encoder_decoder_kwargs_for_generation"


def headed(task_type: str, name: str) -> Stub:
    return Stub(task_type=task_type, class_name=name, auto_class=f"Auto{name}")


def loaded_class(**changes: Any) -> Stub:
    values = {"model_class": "Base", "has_head": False, "has_prepare_inputs": False,
              "main_input_name": "input_ids", "head_classes": (), "error": None, "language": True,
              "wrapper": ""}  # fmt: skip
    given = {**values, **changes}
    groups = ["layers"] if given.pop("language") else []
    injection = Stub(error=given.pop("error"), wrapper=given.pop("wrapper"))
    return Stub(**given, injection=injection, groups_of=lambda tower: groups)


def of_ld101(structure: Any, task_type: str = "CAUSAL_LM", kind: str = "folder") -> list[Finding]:
    return ask("LD101", structure=structure, recipe={"task_type": task_type},
               has={"structure"}.__contains__, reaches=bool, source=Stub(kind=kind))  # fmt: skip


def test_ld101_tells_a_missing_head_from_a_missing_method() -> None:
    (headless,) = of_ld101(loaded_class())
    assert headless.message == (
        "Base has no language model head, and the CAUSAL_LM wrapper needs one: training fails in "
        "get_peft_model."
    )
    assert headless.location.path == "model_class" and headless.proof.kind == "measured"
    assert list(evidence(headless).values()) == ["missing", "for CAUSAL_LM", "none"]
    assert [(fix.safety, [edit.value for edit in fix.edits]) for fix in headless.fixes] == [
        ("safe", ["FEATURE_EXTRACTION"]), ("safe", [None]),
    ]  # fmt: skip
    error = ErrorReport("AttributeError", f"no {PREPARE}")
    (lacks,) = of_ld101(loaded_class(has_head=True, error=error, wrapper="PeftModel"))
    assert lacks.message.startswith("Base is not a GenerationMixin, and the CAUSAL_LM wrapper")
    assert lacks.location.path == "task_type" and lacks.proof.kind == "executed"
    assert list(evidence(lacks).values()) == [
        "missing", "PeftModel", "there", f"AttributeError: no {PREPARE}",
    ]  # fmt: skip
    assert [fix.safety for fix in lacks.fixes] == ["safe", "manual"]
    assert "bases of Base" in fixes(lacks)[1]
    (in_forward,) = of_ld101(loaded_class(has_prepare_inputs=True))
    assert in_forward.message.endswith("training fails in the forward.")
    assert evidence(in_forward)[f"Base.{PREPARE}"] == "there"
    encodes = ErrorReport("AttributeError", f"no {ENCODE}")
    (of_two,) = of_ld101(
        loaded_class(has_head=True, has_prepare_inputs=True, error=encodes), "SEQ_2_SEQ_LM"
    )
    assert evidence(of_two)[f"Base.{ENCODE}"] == "missing"
    assert of_ld101(loaded_class(has_head=True, has_prepare_inputs=True)) == []
    assert of_ld101(loaded_class(has_head=True, has_prepare_inputs=True, error=error)) == []
    assert of_ld101(loaded_class(), "SEQ_CLS") == []


def test_ld101_loads_the_class_with_the_head_of_the_task() -> None:
    heads = (headed("SEQ_CLS", "Classes"), headed("SEQ_2_SEQ_LM", "Two"),
             headed("CAUSAL_LM", "Causal"), headed("CAUSAL_LM", "Base"))  # fmt: skip

    def edits(structure: Any, kind: str = "folder") -> list[list[tuple[str, Any]]]:
        (found,) = of_ld101(structure, kind=kind)
        return [[(edit.key, edit.value) for edit in fix.edits] for fix in found.fixes]

    assert edits(loaded_class(head_classes=heads)) == [[("model_class", "AutoCausal")], []]
    assert edits(loaded_class(head_classes=heads[:2])) == [
        [("model_class", "AutoTwo"), ("task_type", "SEQ_2_SEQ_LM")], [],
    ]  # fmt: skip
    (found,) = of_ld101(loaded_class(head_classes=heads))
    assert (
        fixes(found)[1].startswith("For embeddings only")
        and "loaded onto Causal" in (fixes(found)[1])
    )
    for no_text in ({"language": False}, {"main_input_name": "pixel_values"}):
        assert len(edits(loaded_class(head_classes=heads, **no_text))) == 1
        assert edits(loaded_class(**no_text)) == [[("task_type", None)]]
    for without in (heads[:1], heads[3:]):
        assert edits(loaded_class(head_classes=without))[0] == [("task_type", "FEATURE_EXTRACTION")]
    for kind in ("hub", "arch"):
        assert edits(loaded_class(head_classes=heads), kind)[0] == [("model_class", "AutoCausal")]
    assert edits(loaded_class(head_classes=heads), "module")[0][0][0] == "task_type"
    assert edits(loaded_class(has_head=True, head_classes=heads))[0] == [("task_type", None)]


def test_ld101_in_a_factory_and_in_a_part_is_about_these_methods() -> None:
    def factory(message: str | None, meta: bool = True) -> list[Finding]:
        cause = ErrorReport("AttributeError", message) if message else None
        return ask("LD101", has=set().__contains__, reaches=lambda depth: meta, structure=None,
                   source=Stub(kind="factory", name="f"), cause_of=lambda name: cause)  # fmt: skip

    for method in (PREPARE, ENCODE):
        (found,) = factory(f"no {method}")
        assert found.severity == "error" and "cannot build its model" in found.message
    assert factory("no other") == [] == factory(None)
    assert factory(f"no {PREPARE}", meta=False) == []

    def part(message: str | None) -> list[Finding]:
        error = ErrorReport("AttributeError", message) if message else None
        adapted = Stub(error=error, code="get_peft_model(m.x, c)", path="x", class_name="Inner",
                       file="a.py", line=4)  # fmt: skip
        return ask("LD101", has=lambda name: True, adapted_part=adapted)

    (of_part,) = part(f"no {PREPARE}")
    assert of_part.location.line == 4 and of_part.message.endswith("needs one: AttributeError.")
    assert evidence(of_part)["get_peft_model"] == f"AttributeError: no {PREPARE}"
    assert len(part(f"no {ENCODE}")) == 1 and part("no other") == [] == part(None)


def test_ld101_reads_code_that_wraps_its_own_model(
    gathered: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(**changes: Any) -> Stub:
        values = {"inner_has_prepare_inputs": False, "task_type_known": True, "line": 3,
                  "task_type": "CAUSAL_LM", "conditional": False, "class_name": "Outer",
                  "wrapped": "self.model", "inner_class": "Inner", "inner_at": None}  # fmt: skip
        given = {**values, **changes}
        return Stub(**given, at=Place("code.py", given["line"]))

    def said(*calls: Any, inherited: bool | None = False, raised: str = "") -> list[Finding]:
        gathered("LD101", pretrained_model_generates=inherited)
        monkeypatch.setattr(remote_code, "nested_adapter_calls", lambda code: calls)
        cause = ErrorReport("AttributeError", raised) if raised else None
        return ask("LD101", has={"remote_code"}.__contains__, reaches=lambda depth: bool(raised),
                   source=Stub(kind="hub", folder="x"), remote_code=None,
                   cause_of=lambda name: cause, why_not=lambda name: raised)  # fmt: skip

    (sure,) = said(call())
    assert sure.message == (
        "Outer wraps its own Inner with PEFT while it is being built, and Inner lacks "
        f"{PREPARE}: the model cannot be loaded."
    )
    assert sure.proof.kind == "inferred" and "loading" not in evidence(sure)
    assert evidence(sure)["task_type"] == "CAUSAL_LM"
    for unsure in (call(conditional=True), call(task_type_known=False, task_type=None)):
        assert said(unsure)[0].message.endswith("may not be loaded.")
    (unread,) = said(call(task_type_known=False, task_type=None, inner_class=""))
    assert evidence(unread)["which is a"] == "class not found"
    assert evidence(unread)["task_type"] == "not readable"
    (seen,) = said(call(conditional=True), raised=f"no {PREPARE}")
    assert seen.proof.kind == "executed" and seen.message.endswith("cannot be loaded.")
    assert evidence(seen)["loading"] == f"no {PREPARE}"
    assert said(call(conditional=True), raised="no other")[0].proof.kind == "inferred"
    two = said(call(inner_has_prepare_inputs=None), call(task_type="SEQ_CLS"), call(line=9),
               call(line=10))  # fmt: skip
    assert [found.location.line for found in two] == [9], "one is enough"
    assert said() == [] == said(call(), inherited=True)
    with pytest.raises(EvidenceError, match="source of transformers"):
        said(call(), inherited=None)
