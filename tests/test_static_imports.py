"""Depth static answers in a blink: what only deeper depths have a value of is not imported.

Told by names of modules, not by a clock.
"""

from __future__ import annotations

import json
import subprocess
import sys

#: Data classes of evidence that depth static never has, and readers of files that nobody gave.
DEEPER = [
    "lora_doctor.results.adapter_loading",
    "lora_doctor.results.checkpoint_quantization",
    "lora_doctor.results.dry_run",
    "lora_doctor.results.loading",
    "lora_doctor.results.memory_plan",
    "lora_doctor.results.observations",
    "lora_doctor.results.round_trip",
    "lora_doctor.results.structure",
    "lora_doctor.results.supervision",
    "lora_doctor.results.injection",
    "lora_doctor.results.quantization",
    "lora_doctor.evidence.meta",
    "lora_doctor.evidence.tiny",
    "lora_doctor.model.injection",
    "lora_doctor.model.loading",
    "lora_doctor.prescription.write_fix",
    "lora_doctor.recipe.files.read_write",
    "lora_doctor.static.installed.devices",
    "lora_doctor.supervision.data_file",
]
_RUN = """
import json, sys
from lora_doctor.cli.main import main
code = main(["check", "arch:llama", "--depth", "static"])
print()
print(json.dumps([code, sorted(sys.modules)]))
"""


def test_a_static_check_imports_no_deeper_evidence() -> None:
    """Every run imports all rules: one that names a deeper kind of evidence for its annotations
    imports it from ``rule_api`` under ``TYPE_CHECKING``."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN], capture_output=True, text=True, check=True, timeout=120
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 2  # a default config has no files
    assert [name for name in DEEPER if name in modules] == []
    heavy = {"torch", "transformers", "peft", "jinja2", "huggingface_hub", "ruamel", "numpy"}
    heavy.add("libcst")  # nobody gave a script
    assert heavy.isdisjoint(modules)
    # Only the format that was asked for.
    ours = {name for name in modules if name.startswith("lora_doctor.reports.")}
    assert "lora_doctor.reports.full" in ours and "lora_doctor.reports.html" not in ours
