"""Rules about what a run showed, processes, the loss and memory: which sentence, which evidence,
which fix.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace as Stub
from typing import Any

import pytest

from lora_doctor.errors import EvidenceError
from lora_doctor.recipe.edit import Edit
from lora_doctor.results.finding import Finding, Location, Measurement
from lora_doctor.results.memory_plan import MemoryPart, MemoryPlan, MemoryVariant, PlannedGpu
from lora_doctor.static.place import Place
from tests.rule_asking import RULES, ask, evidence, fixes, one, versions

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
        ("taken off", "'b' was loaded but never active, and is removed without being merged"),
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
    for framework in ("axolotl", "LLaMA-Factory"):
        assert said(refusal=refusal, set_up=framework) == []
    assert said(refusal=refusal) == []
    second = Stub(role="head", adapted=1, leaf="lm_head", pattern="other.lm_head")
    (two,) = said(liger, (head, second))
    assert "reads lm_head.weight" in two.message
    assert evidence(two)["adapters on the output head"] == "lm_head, other.lm_head"
    (two,) = said(refusal=refusal, set_up="TRL", groups=(head, second))
    assert "the weight of lm_head and" in two.message
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
        return [["y"], ["b.y"]]

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
    assert nothing_left.location.path == "a.x"
    (many,) = said({}, tuple(f"m.{number}" for number in range(9)))
    assert "of 0 layers (m.0, m.1, m.2 and 6 more) will not" in many.message
    assert evidence(many)["layers whose adapter is lost"].endswith("m.7 and 1 more")
    assert "not found again (m.0, m.1, m.2 and 6 more)" in fixes(many)[1]
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
