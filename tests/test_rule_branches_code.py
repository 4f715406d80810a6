"""Rules about code of the model's repository, installed packages and classes: which sentence, which
evidence, which fix.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace as Stub
from typing import Any

import pytest

from lora_doctor.errors import EvidenceError
from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.finding import Finding
from lora_doctor.results.fix import Fix
from lora_doctor.static.installed import environment, import_chain, pair_repair, shared_folders
from lora_doctor.static.installed.import_chain import MissingImport
from lora_doctor.static.place import Place
from lora_doctor.static.remote_code import code_fit, loaded_code, remote_code, source_facts
from tests.rule_asking import RULES, ask, evidence, fixes, versions

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
    (earlier,) = remote(missing_packages=[package("a", "always"), package("b", "always")])
    assert "transformers 5.24.0" not in evidence(earlier)
    assert "imports a, b, which are not installed" in earlier.message
    (under_try,) = remote(missing_packages=[package("a", "try")])
    assert "imports a, which is not installed" in under_try.message


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
    assert of_part.location.line == 4 and of_part.message.endswith(
        "needs one: it raises AttributeError."
    )
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
