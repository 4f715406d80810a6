"""The report on Phi-4-multimodal, the part on code of a repository that the installed packages
cannot run: found from the source, with and without trust, and gone once the code fits."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.engine.registry import find_rules
from lora_doctor.engine.symptoms import find_by_message
from lora_doctor.sandbox.worker import Worker
from tests.remote_repository import keep_modules_apart, load
from tests.scenario import FOUND_BY_HAND, holds, message_of, prove, record

pytestmark = pytest.mark.slow

REPORT = "Phi-4-multimodal"
FOLDERS = Path(__file__).parent / "folders"
RECIPE = {"target_modules": ["qkv_proj", "o_proj"], "task_type": "CAUSAL_LM", "r": 4}
ON_5 = holds({"transformers": ">=5"})
TIED = '_tied_weights_keys = ["lm_head.weight"]'


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Code of repositories is copied to where nobody else's is."""
    keep_modules_apart(monkeypatch, tmp_path / "modules")


def copy(name: str, to: Path, *edits: tuple[str, str], **config: Any) -> Path:
    """A repository of ``tests/folders`` with edited code and other values in its config."""
    shutil.copytree(FOLDERS / name, to)
    values = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**values, **config}))
    file = to / "modeling_tiny.py"
    text = file.read_text()
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    file.write_text(text)
    return to


def found_from_source(folder: Path, line: str, worker: Worker) -> list[Any]:
    """Without trust nothing of the repository runs; file and line are told."""
    file = folder / "modeling_tiny.py"
    text = file.read_text()
    # A line that gives itself away when it runs.
    file.write_text(f"{text}\nopen({str(folder / 'ran')!r}, 'w')\n")
    found = []
    for depth in ("static", "tiny"):
        diagnosis = lora_doctor.check(str(folder), RECIPE, depth=depth, worker=worker)
        found = [item for item in diagnosis.findings if item.rule == "LD104"]
        assert found, diagnosis.skipped
        assert found[0].proof.kind != "executed"
        assert found[0].location.path == file.name
        assert line in text.splitlines()[(found[0].location.line or 0) - 1]
    assert not (folder / "ran").exists()
    file.write_text(text)
    return found


def test_a_package_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found; then the package is installed, and the same repository trains."""
    folder = copy("code_needs_package", tmp_path / "needs_package")
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(site), before))))
    message = message_of(lambda: load(folder))
    assert "LD104" in {match.rule.code for match in find_by_message(message, find_rules())}
    with Worker(threads=1) as worker:
        (finding,) = found_from_source(folder, "import rearrange", worker)
        assert "cannot be loaded" in finding.message
        assert "pip install einops_that_is_not_installed" in finding.fixes[0].title
        diagnosis = lora_doctor.fix(str(folder), RECIPE, trust_remote_code=True, worker=worker)
        (finding,) = [item for item in diagnosis.findings if item.rule == "LD104"]
        assert finding.proof.kind == "executed"
        package = site / "einops_that_is_not_installed.py"
        package.write_text("def rearrange(x, pattern):\n    return x.flatten(0, 1)\n")
        importlib.invalidate_caches()
        again = lora_doctor.check(str(folder), RECIPE, trust_remote_code=True, worker=worker)
    assert "LD104" not in {item.rule for item in again.findings}
    assert again.before is not None and again.before.outcome == "passed", again.before
    failure = "remote code imports a package that is not installed"
    record(REPORT, failure, "LD104", FOUND_BY_HAND)


@pytest.mark.parametrize(
    ("name", "module", "here"),
    [
        ("is_torch_fx_available", "transformers.utils.import_utils", {"transformers": "<5"}),
        ("ALL_ATTENTION_FUNCTIONS", "transformers.modeling_utils", {"transformers": ">=4.50"}),
    ],
)
def test_a_name_that_this_transformers_does_not_have(
    tmp_path: Path, worker: Worker, name: str, module: str, here: dict[str, str]
) -> None:
    """Code that is older, and code that is newer, than what is installed."""
    line = f"from {module} import {name}"
    old = "from transformers.generation import GenerationMixin"
    folder = copy("code_that_fits", tmp_path / "taken", (old, f"{line}\n{old}"))
    fixed = copy(
        "code_that_fits",
        tmp_path / "asked_for",
        (old, f"try:\n    {line}\nexcept ImportError:\n    {name} = None\n{old}"),
    )
    occurs = not holds(here)
    if occurs:
        (finding,) = found_from_source(folder, line, worker)
        assert name in finding.message and "cannot be loaded" in finding.message
    prove(
        REPORT,
        f"remote code imports {name}, which this transformers does not have",
        "LD104",
        str(folder),
        RECIPE,
        worker=worker,
        occurs=occurs,
        plainly=lambda: load(folder),
        by_hand=(str(fixed), RECIPE),
        trust_remote_code=True,
    )


def test_a_key_of_rope_scaling_that_is_not_kept(tmp_path: Path, worker: Worker) -> None:
    """``rope_scaling: null`` and code that looks for None, which transformers 5 never gives."""
    no_list = (TIED, "_tied_weights_keys = None")
    folder = copy("code_of_old_transformers", tmp_path / "reads_type", no_list)
    fixed = copy(
        "code_of_old_transformers",
        tmp_path / "asks",
        no_list,
        (
            "if config.rope_scaling is not None:",
            'if (config.rope_scaling or {}).get("type") is not None:',
        ),
    )
    if ON_5:
        (finding,) = found_from_source(folder, '["type"]', worker)
        assert "may fail to load" in finding.message
        assert any("transformers==4.46.1" in fix.title for fix in finding.fixes)
    prove(
        REPORT,
        'remote code reads rope_scaling["type"] of a config that has null',
        "LD104",
        str(folder),
        RECIPE,
        worker=worker,
        occurs=ON_5,
        plainly=lambda: load(folder),
        by_hand=(str(fixed), RECIPE),
        trust_remote_code=True,
    )


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_as_a_list(tmp_path: Path, worker: Worker, tied: bool) -> None:
    """With tied weights the model cannot be built; without, the merged one cannot be saved."""
    asks = (
        "if config.rope_scaling is not None:",
        'if (config.rope_scaling or {}).get("type") is not None:',
    )
    new = '_tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}'
    folder = copy("code_of_old_transformers", tmp_path / "has_list", asks, tie_word_embeddings=tied)
    fixed = copy(
        "code_of_old_transformers", tmp_path / "has_dictionary", asks, (TIED, new),
        tie_word_embeddings=tied,
    )  # fmt: skip
    if ON_5:
        (finding,) = found_from_source(folder, TIED, worker)
        assert finding.severity == ("error" if tied else "warning")

    def plainly() -> None:
        model = load(folder)
        model.save_pretrained(tmp_path / "saved")

    how = "tied weights: loading fails" if tied else "weights not tied: saving the model fails"
    prove(
        REPORT,
        f"remote code has _tied_weights_keys as a list; {how}",
        "LD104",
        str(folder),
        RECIPE,
        worker=worker,
        occurs=ON_5,
        plainly=plainly,
        by_hand=(str(fixed), RECIPE),
        trust_remote_code=True,
    )


def test_what_the_library_has_itself_is_not_the_codes_matter(
    tmp_path: Path, worker: Worker
) -> None:
    """Without trust the library's own class is loaded; with it, leaving it out is a way."""
    config = {"model_type": "llama", "num_attention_heads": 2, "intermediate_size": 32}
    folder = copy("code_needs_package", tmp_path / "llama", **config)
    without = lora_doctor.check(str(folder), depth="static", worker=worker)
    assert "LD104" in without.passed
    trusting = lora_doctor.check(str(folder), depth="static", trust_remote_code=True, worker=worker)
    (finding,) = [item for item in trusting.findings if item.rule == "LD104"]
    assert any("its own class for llama" in fix.title for fix in finding.fixes)
