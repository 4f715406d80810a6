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
from lora_doctor.errors import EvidenceError
from lora_doctor.recipe.program.best_metric import MetricNotComputed
from lora_doctor.recipe.program.launch import Launch
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.finding import Finding
from lora_doctor.results.fix import Fix
from lora_doctor.results.observations import ActivationReading, InstancePatch, UpdateReading
from lora_doctor.results.stacked_adapters import Stacked, StackedAdapter
from lora_doctor.results.training_signal import AdapterGradients
from lora_doctor.results.verification import Check
from lora_doctor.static.folder.checkpoint_files import DamagedFile, IndexMismatch
from lora_doctor.static.folder.token_ids import TokenId
from lora_doctor.static.installed.refused_versions import LORA, TRAINER, RefusedVersion
from lora_doctor.static.place import Place
from lora_doctor.static.script.script_flow import Replacement
from lora_doctor.static.script.script_order import EarlyOptimizer, ScriptOrder, WrappedTwice
from lora_doctor.static.tokenizer_reading import Unreadable
from tests.rule_asking import RULES, ask, evidence, fixes, one, versions

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
    assert spaced.message.startswith("transformers 4.57.6 cannot read")
    assert evidence(spaced)["add_prefix_space"] is True
    (long,) = asked({}, special_tokens_in_a_list=[f"<{number}>" for number in range(22)])
    assert len(evidence(long)["extra_special_tokens"]) == 20
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
