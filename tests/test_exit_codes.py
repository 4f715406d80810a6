"""Exit codes say what was proven: 0 only where the depth that was asked for was reached and nothing
was found, and a limit of the tool is never a finding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lora_doctor.engine import limits as limits_module
from lora_doctor.engine.child_failures import evidence_error, without_answer
from lora_doctor.engine.limits import DEFAULT_MEMORY, GIB, Checkpoint, Limits
from lora_doctor.errors import LimitReached
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.verification import Verification
from lora_doctor.sandbox.outcome import Outcome, TaskFailure
from lora_doctor.static.weights import Tensor, Weights
from tests.cli import ROOT, Result, environment_without, lora_doctor

SCHEMA = json.loads((ROOT / "lora_doctor" / "schema" / "diagnosis-2.json").read_text("utf-8"))
FORMATS = ("full", "concise", "json", "html")
SCRIPTS = ROOT / "tests" / "scripts"

#: Factories for the limits; each hangs, grows or crashes only when the model is run.
MODELS = """
import os, time, torch

class Model(torch.nn.Module):
    def __init__(self, act):
        super().__init__()
        self.layer, self.act, self.kept = torch.nn.Linear(4, 4), act, []
    def forward(self, x):
        self.act(self)
        return self.layer(x)

def wait(model):
    time.sleep(100)

def grow(model):
    while True:
        model.kept.append(torch.ones(1 << 22))
        time.sleep(0.002)

def grab(model):
    model.kept.append(torch.ones(1 << 34))

def end(model):
    os._exit(3)

def made(act):
    return Model(act), {"x": torch.ones(2, 4)}

def waits(): return made(wait)
def grows(): return made(grow)
def grabs(): return made(grab)
def ends(): return made(end)
def builds_slowly():
    time.sleep(100)
"""


def outputs(folder: Path) -> list[str]:
    """Options that write the result into this folder in each format."""
    return [word for name in FORMATS for word in ("--output", f"{name}={folder / name}.txt")]


def written(folder: Path) -> dict[str, str]:
    return {name: (folder / f"{name}.txt").read_text("utf-8") for name in FORMATS}


def diagnosis(result: Result | str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result if isinstance(result, str) else result.out)
    jsonschema.validate(found, SCHEMA)
    return found


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    (tmp_path / "slow.py").write_text(MODELS, "utf-8")
    return tmp_path


# --- the depth that was asked for ----------------------------------------------------------------


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_clean_script_is_not_green_unless_reading_is_all_that_was_asked_for(
    tmp_path: Path, output_format: str
) -> None:
    shutil.copy(SCRIPTS / "nan_stops.py", tmp_path / "train.py")
    asked = ("check", "train.py", "--output-format", output_format)
    result = lora_doctor(*asked, cwd=tmp_path)
    assert result.code == 2, result
    text = " ".join(result.out.split())
    assert "epth tiny was not reached" in text and "--depth static" in text
    assert lora_doctor(*asked, "--depth", "static", cwd=tmp_path).code == 0


def test_findings_win_over_a_depth_that_was_not_reached(tmp_path: Path) -> None:
    shutil.copy(SCRIPTS / "nan_replaced.py", tmp_path / "train.py")
    result = lora_doctor("check", "train.py", cwd=tmp_path)
    assert result.code == 1 and "was not reached" in " ".join(result.out.split()), result
    ignored = lora_doctor("check", "train.py", "--fail-on", "never", cwd=tmp_path)
    assert ignored.code == 2
    asked = ("check", "train.py", "--fail-on", "never", "--depth", "static")
    assert lora_doctor(*asked, cwd=tmp_path).code == 0


def test_the_json_says_how_deep_a_run_came(tmp_path: Path) -> None:
    shutil.copy(SCRIPTS / "nan_stops.py", tmp_path / "train.py")
    found = diagnosis(lora_doctor("check", "train.py", "--output-format", "json", cwd=tmp_path))
    assert (found["depth"], found["reached"], found["verdict"]) == (
        "tiny",
        "static",
        "undetermined",
    )


def test_an_architecture_has_no_files_to_look_at() -> None:
    result = lora_doctor("check", "arch:gpt2", "--depth", "static", "--output-format", "json")
    found = diagnosis(result)
    assert result.code == 2 and found["reached"] is None
    assert "no files" in found["undetermined"] and "--depth meta" in found["undetermined"]


def test_what_was_asked_for_and_reached_is_0() -> None:
    folder = ROOT / "tests" / "folders" / "merges_as_texts"
    static = lora_doctor("check", folder, "--depth", "static", "--output-format", "json")
    assert static.code == 0 and diagnosis(static)["reached"] == "static", static
    meta = lora_doctor("check", "arch:gpt2", "--depth", "meta", "--output-format", "json")
    assert meta.code == 0 and diagnosis(meta)["undetermined"] is None, meta


# --- limits --------------------------------------------------------------------------------------


def limited(
    factories: Path, name: str, *options: str, command: str = "check"
) -> tuple[Result, dict[str, Any]]:
    result = lora_doctor(
        command, f"slow:{name}", "--target-modules", "layer", "--output-format", "json", *options,
        cwd=factories,
    )  # fmt: skip
    return result, diagnosis(result)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "verify"])
def test_a_run_that_hangs_is_undetermined_and_says_where(factories: Path, command: str) -> None:
    result, found = limited(factories, "waits", "--time-limit", "8", command=command)
    assert result.code == 2 and found["verdict"] == "undetermined" and not found["findings"]
    limit = found["limit"]
    assert (limit["kind"], limit["limit"], limit["option"]) == ("time", 8, "--time-limit")
    assert limit["reached"] > 8 and "in wait" in limit["stack"].splitlines()[0]
    before = found["verification"]["before"]
    assert (before["outcome"], before["obstacle"], before["checks"]) == (
        "undetermined",
        "limit",
        [],
    )
    assert (before["device"], before["dtype"]) == ("cpu", "float32")
    for words in ("8 s", "--time-limit", "slow.py", "in wait"):
        assert words in found["undetermined"]


@pytest.mark.slow
def test_a_factory_that_hangs_is_undetermined_and_the_report_shows_its_stack(
    factories: Path,
) -> None:
    result = lora_doctor("check", "slow:builds_slowly", "--time-limit", "6", cwd=factories)
    assert result.code == 2, result
    text = " ".join(result.out.split())
    assert "reached the time limit" in text and "in builds_slowly File" in text, result.out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grows", "grabs"])
def test_a_run_that_takes_too_much_memory_is_undetermined(factories: Path, name: str) -> None:
    """Whether it is seen growing, or asks for more at once than there is."""
    result, found = limited(factories, name, "--memory-limit", "1")
    assert result.code == 2 and found["verdict"] == "undetermined" and not found["findings"]
    limit = found["limit"]
    assert (limit["kind"], limit["limit"], limit["option"]) == ("memory", GIB, "--memory-limit")
    assert limit["set_by"] == "as given" and "--memory-limit GIB" in found["undetermined"]
    assert "1.00 GiB" in found["undetermined"]
    assert name == "grabs" or limit["reached"] > GIB


@pytest.mark.slow
def test_a_crash_stays_a_finding(factories: Path) -> None:
    result, found = limited(factories, "ends")
    assert result.code == 1 and [item["rule"] for item in found["findings"]] == ["LD001"]
    assert found["limit"] is None and found["verification"]["before"]["device"] == "cpu"


@pytest.mark.slow
def test_real_weights_that_do_not_fit_a_limit_are_undetermined(tmp_path: Path) -> None:
    """The default of 8 GiB once killed the child that loaded an 8B model: "Training fails"."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=1024, n_layer=8, n_head=8, vocab_size=50_000)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    result = lora_doctor(
        "verify", tmp_path / "model", "--depth", "full", "--device", "cpu", "--dtype", "bfloat16",
        "--memory-limit", "0.7", "--output-format", "json",
    )  # fmt: skip
    found = diagnosis(result)
    assert result.code == 2 and not found["findings"], found["undetermined"]
    before, limit = found["verification"]["before"], found["limit"]
    assert before["obstacle"] == "limit" and found["reached"] == "meta"
    assert (before["device"], before["dtype"]) == ("cpu", "bfloat16")
    assert limit["kind"] == "memory" and limit["reached"] > limit["limit"]
    assert limit["stage"] and limit["stage"] in found["undetermined"]


def test_a_limit_that_strikes_on_a_gpu_is_told_on_that_gpu() -> None:
    """Whatever machine this is: device and dtype are those that were asked for, or told."""
    struck = TaskFailure(
        "memory", "", "x used 9 GiB", limit=LimitReached("memory", 8, 9, "--m", "")
    )
    limits = Limits().of_full(None)
    run = without_answer("full", ("cuda", "float16"), Outcome(failure=struck), limits)
    assert (run.outcome, run.device, run.dtype) == ("undetermined", "cuda", "float16")
    told = Outcome(failure=struck, facts={"device": "cuda:1", "dtype": "bfloat16"})
    run = without_answer("full", ("auto", "auto"), told, limits)
    assert (run.device, run.dtype) == ("cuda:1", "bfloat16")
    crash = Outcome(failure=TaskFailure("crash", "SIGSEGV", "the process was ended by SIGSEGV"))
    run = without_answer("full", ("cuda", "float16"), crash, limits)
    assert (run.outcome, run.device, run.limit) == ("failed", "cuda", None)
    meta = evidence_error("the memory plan", Outcome(failure=struck), Limits().of_meta(), {})
    assert meta.limit is not None and meta.limit.set_by == "the default" and meta.remedy == "limit"


def checkpoint(parameters: int, trained: int = 0, **recipe: Any) -> Checkpoint:
    weights = Weights({"w": Tensor((parameters,), "BF16", "f")}, ("f",))
    found = Checkpoint.of(weights, 0, Recipe(recipe), trained)
    assert found is not None
    return found


def test_limits_at_full_follow_checkpoint_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    eight = checkpoint(8 * 10**9)
    monkeypatch.setattr(limits_module.memory, "available", lambda: 200 * GIB)
    found = Limits().of_full(eight)
    assert 32e9 < found.memory < 100 * GIB and "checkpoint" in found.memory_by
    assert found.seconds > Limits().of_full(checkpoint(10**6)).seconds >= 3600
    assert checkpoint(8 * 10**9, dtype="float32").memory() > eight.memory()
    assert checkpoint(8 * 10**9, trained=10**8).memory() == eight.memory() + 16 * 10**8
    monkeypatch.setattr(limits_module.memory, "available", lambda: 20 * GIB)
    found = Limits().of_full(eight)
    assert found.memory < 20 * GIB and "machine" in found.memory_by
    assert Limits(memory=GIB, full_seconds=5).of_full(eight).memory == GIB
    assert Limits(memory=GIB, full_seconds=5).of_full(eight).seconds == 5
    assert Limits().of_full(checkpoint(10**6)).memory == DEFAULT_MEMORY == Limits().of_tiny().memory


def test_a_container_has_what_its_group_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = limits_module.memory
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    for name, text in (
        ("memory.max", "1000"), ("memory.current", "700"), ("memory.stat", "inactive_file 100"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    assert memory._group_has(tmp_path, "memory.max", "memory.current") == 400
    (tmp_path / "memory.max").write_text("max")
    assert memory._group_has(tmp_path, "memory.max", "memory.current") is None


# --- a part of the recipe that was not run -------------------------------------------------------


@pytest.fixture(scope="module")
def without_bitsandbytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    return environment_without(folder / "e", "bitsandbytes")


@pytest.fixture(scope="module")
def not_quantized(without_bitsandbytes: Path) -> tuple[Result, dict[str, str]]:
    """One run, and what it wrote in each format."""
    folder = without_bitsandbytes.parent
    asked = ("check", "arch:gpt2", "--load-in-8bit", "--output-format", "concise")
    result = lora_doctor(*asked, *outputs(folder), python=without_bitsandbytes)
    return result, written(folder)


@pytest.mark.slow
@pytest.mark.parametrize("output_format", FORMATS)
def test_what_this_machine_cannot_quantize_is_not_healthy(
    not_quantized: tuple[Result, dict[str, str]], output_format: str
) -> None:
    result, texts = not_quantized
    assert result.code == 2, result
    text = " ".join(texts[output_format].split())
    assert "not proven" in text and "✓ arch:gpt2" not in text
    assert "not proven" in result.out and "✓" not in result.out
    if output_format == "json":
        found = diagnosis(texts["json"])
        assert found["verdict"] == "undetermined" and "8bit" in found["undetermined"]
        assert found["verification"]["before"]["obstacle"] == "not-proven"


@pytest.mark.slow
def test_a_fix_is_judged_by_the_state_after_it(without_bitsandbytes: Path, tmp_path: Path) -> None:
    asked = ("fix", "arch:gpt2", "--target-modules", "q_proj,v_proj", "--apply")
    result = lora_doctor(
        *asked, "--load-in-8bit", cwd=tmp_path, python=without_bitsandbytes
    )  # fmt: skip
    assert result.code == 2 and (tmp_path / "lora-doctor.recipe.yaml").exists(), result


# --- --strict ------------------------------------------------------------------------------------


def test_strict_counts_a_rule_that_a_missing_package_keeps_from_being_asked(
    tmp_path: Path,
) -> None:
    folder = ROOT / "tests" / "folders" / "merges_as_texts"
    asked = ("check", folder, "--depth", "static")
    assert lora_doctor(*asked, "--strict").code == 0, "nothing is missing here"
    python = environment_without(tmp_path / "e", "transformers", "tokenizers")
    result = lora_doctor(*asked, "--strict", *outputs(tmp_path), python=python)
    assert result.code == 2, result
    for text in written(tmp_path).values():
        text = " ".join(text.split())
        assert "strict" in text and "LD601" in text and "tokenizers is not installed" in text
    shown = lora_doctor(*asked, *outputs(tmp_path), python=python)
    assert shown.code == 0 and "1 skipped rule that --strict counts: LD601" in shown.out
    found = diagnosis(written(tmp_path)["json"])
    counted = [item["rule"] for item in found["skipped"] if item["remedy"] == "package"]
    assert counted == ["LD601"] and found["undetermined"] is None


def test_strict_counts_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "folders" / "code_that_fits", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text("utf-8"))
    for reference in config["auto_map"].values():
        (tmp_path / "model" / f"{reference.partition('.')[0]}.py").write_bytes(b"x = (\n")
    asked = ("check", tmp_path / "model", "--depth", "static", "--select", "LD104")
    assert lora_doctor(*asked).code == 0
    result = lora_doctor(*asked, "--strict", "--output-format", "json")
    assert result.code == 2 and "not Python" in diagnosis(result)["undetermined"], result


def test_strict_from_python_is_an_undetermined_diagnosis() -> None:
    import lora_doctor as package

    verdict = package.check("arch:gpt2", depth="meta", strict=True)
    assert verdict.undetermined is None, verdict.skipped_with_remedy


def test_a_verification_that_left_something_out_is_no_answer() -> None:
    from lora_doctor.results.note import Note

    ran = Verification("passed", "tiny", "cpu", "float32", (), notes=(Note("not-proven", "why"),))
    assert (ran.as_answer().outcome, ran.as_answer().reason) == ("undetermined", "why")
    assert Verification("passed", "tiny", "cpu", "float32", ()).as_answer().outcome == "passed"
    failed = Verification("failed", "tiny", "cpu", "float32", (), notes=ran.notes)
    assert failed.as_answer() is failed
