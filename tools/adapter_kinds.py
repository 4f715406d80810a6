"""Every kind of adapter of the installed PEFT on three architectures: plain PEFT against us.

    python -m tools.adapter_kinds FILE.jsonl               # one stack: the one that is installed
    python -m tools.adapter_kinds FILE.jsonl --select LOHA VERA --architectures bert
    python -m tools.adapter_kinds --page docs/census.md FILE.jsonl ...    # writes the table

Each kind is trained by ``tools.plain_peft``, which knows nothing of lora-doctor, and checked by
``lora_doctor.check``. The kinds are those of ``peft.mapping``; what stands here is only what a kind
cannot be used without.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.plain_peft import ARCHITECTURES, Truth, train

#: Keys that a kind asks for, or whose default is too large for a model of 64 dimensions.
OWN_KEYS: Mapping[str, Mapping[str, Any]] = {
    "ADALORA": {"total_step": 1000},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "CPT": {
        "cpt_token_ids": [5, 6, 7, 8],
        "cpt_mask": [1, 1, 1, 1],
        "cpt_tokens_type_mask": [1, 2, 3, 4],
    },
    "FOURIERFT": {"n_frequency": 50, "scaling": 10.0},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4, "num_tasks": 2},
    "OFT": {"oft_block_size": 16},
    "POLY": {"r": 4, "n_tasks": 2, "n_skills": 2},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2]},
    "VBLORA": {"num_vectors": 8, "vector_length": 16},
    "WAVEFT": {"n_frequency": 50},
}
#: Kinds whose targets are other layers than those that LoRA has: PEFT's own choice is taken.
OWN_TARGETS = frozenset({"ADAPTION_PROMPT", "IA3", "LN_TUNING", "TRAINABLE_TOKENS"})


def kinds() -> list[str]:
    """The ``peft_type``s of the installed PEFT."""
    return sorted(getattr(key, "value", key) for key in _config_classes())


def _config_classes() -> Mapping[Any, Any]:
    return importlib.import_module("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING  # type: ignore[no-any-return]


def values_for(kind: str, architecture: str) -> dict[str, Any]:
    """An adapter config of this kind as somebody would write it for this architecture."""
    cls = next(c for key, c in _config_classes().items() if getattr(key, "value", key) == kind)
    takes = inspect.signature(cls).parameters
    place = ARCHITECTURES[architecture]
    values: dict[str, Any] = {"peft_type": kind, "task_type": place.task_type}
    if "target_modules" in takes and kind not in OWN_TARGETS:
        values["target_modules"] = list(place.targets)
    if "num_virtual_tokens" in takes:
        values["num_virtual_tokens"] = 4
    known = {key: value for key, value in OWN_KEYS.get(kind, {}).items() if key in takes}
    return values | known


def row(kind: str, architecture: str, worker: Any) -> dict[str, Any]:
    """What plain PEFT and what lora-doctor says of one pair."""
    import lora_doctor
    from lora_doctor.recipe.recipe import make_recipe

    values = values_for(kind, architecture)
    truth = train(architecture, values)
    recipe = make_recipe(values, where="recipe", origin="file", complete=True)
    found = lora_doctor.check(f"arch:{architecture}", recipe, worker=worker, device="cpu")
    findings = [
        {"rule": one.rule, "severity": one.severity, "message": one.message}
        for one in found.findings
        if one.severity != "info"
    ]
    return {
        "kind": kind,
        "architecture": architecture,
        "truth": {"stage": truth.stage, "said": truth.said},
        "findings": findings,
        "undetermined": str(found.undetermined or ""),
        "agrees": agrees(truth, findings, bool(found.undetermined)),
    }


def agrees(truth: Truth, findings: Sequence[Mapping[str, Any]], undetermined: bool) -> bool:
    """Healthy where plain PEFT trains and reloads, a finding where it does not."""
    if truth.stage == "done":
        return not findings and not undetermined
    return bool(findings)


def run(path: Path, selected: Sequence[str], architectures: Sequence[str]) -> int:
    """Write one line a pair into ``path``; how many do not agree."""
    from lora_doctor.sandbox.worker import Worker

    names = ("transformers", "peft", "torch")
    different = 0
    with Worker(threads=1) as worker, path.open("w", encoding="utf-8") as file:
        versions = {name: importlib.metadata.version(name) for name in names}
        file.write(json.dumps({"versions": versions}) + "\n")
        for kind in selected or kinds():
            for architecture in architectures:
                found = row(kind, architecture, worker)
                file.write(json.dumps(found) + "\n")
                file.flush()
                different += not found["agrees"]
                _show(found)
    return different


def _show(found: Mapping[str, Any]) -> None:
    truth = found["truth"]
    mark = "  " if found["agrees"] else "!!"
    ours = "; ".join(f"{one['rule']}: {one['message'][:160]}" for one in found["findings"])
    ours = ours or found["undetermined"][:160] or "healthy"
    plain = f"{truth['stage']} {truth['said'][:160]}".strip()
    print(f"{mark} {found['kind']} on {found['architecture']}: {plain} | {ours}", flush=True)


#: Where the table begins and ends in docs/census.md.
BEGIN = "<!-- adapter kinds: written by `nox -s adapter_kinds adapter_kinds_page` -->"
END = "<!-- adapter kinds: end -->"
_MARKS = {
    "done": "trains",
    "build": "refused",
    "train": "fails",
    "reload": "lost",
    "merge": "no merge",
}


def table(files: Sequence[Path]) -> str:
    """The section of docs/census.md: a line for each kind, a column for each architecture and
    stack, and under it what plain PEFT said where it failed and where the verdicts differ."""
    stacks = [[json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in files]
    heads = [_stack_name(lines) for lines in stacks]
    cells = {
        (one["kind"], head, one["architecture"]): one
        for head, lines in zip(heads, stacks, strict=True)
        for one in lines
        if "kind" in one
    }
    columns = [(head, name) for head in heads for name in ARCHITECTURES]
    lines = [
        BEGIN,
        "",
        "## Kinds of adapters",
        "",
        "Every `peft_type` of the installed PEFT, trained by plain PEFT (built, a few steps with a",
        "falling loss, saved, reloaded, merged) and checked by `lora-doctor check`, which knows",
        "nothing of that run. `trains`: all of it works. `refused`, `fails`, `lost`, `no merge`:",
        "what plain PEFT does not do. The verdicts agree except where a cell says so in bold.",
        "Empty: this PEFT has no such kind.",
        "",
        "| peft_type | " + " | ".join(f"{name}, {head}" for head, name in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for kind in sorted({kind for kind, _, _ in cells}):
        found = [_cell(cells.get((kind, *column))) for column in columns]
        lines.append(f"| {kind} | " + " | ".join(found) + " |")
    lines += ["", "What plain PEFT says where it fails:", ""]
    said: dict[tuple[str, str], list[str]] = {}
    for (kind, head, name), one in cells.items():
        if one["truth"]["stage"] != "done":
            said.setdefault((kind, one["truth"]["said"]), []).append(f"{name}, {head}")
    lines += [
        f"- {kind} ({'; '.join(places)}): {text.replace('<', '&lt;')}"
        for (kind, text), places in sorted(said.items())
    ]
    return "\n".join([*lines, "", END]) + "\n"


def _stack_name(lines: Sequence[Mapping[str, Any]]) -> str:
    versions = next(line["versions"] for line in lines if "versions" in line)
    return f"transformers {versions['transformers']}, peft {versions['peft']}"


def _cell(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    mark = _MARKS[one["truth"]["stage"]]
    if one["agrees"]:
        return mark
    ours = ", ".join(item["rule"] for item in one["findings"])
    return f"{mark}, **{ours or ('undetermined' if one['undetermined'] else 'healthy')}**"


def write_table(page: Path, files: Sequence[Path]) -> None:
    """Put the table into the page, in place of the one that is there, or at its end."""
    text = page.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2].lstrip("\n")
    page.write_text(
        "\n".join(filter(None, [before.rstrip("\n") + "\n", table(files) + after])), "utf-8"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--page", type=Path, help="write the table of these files into this page")
    parser.add_argument("--select", nargs="+", default=[], metavar="KIND")
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    given = parser.parse_args(arguments)
    if given.page is not None:
        write_table(given.page, given.files)
        return 0
    return int(run(given.files[0], given.select, given.architectures) > 0)


if __name__ == "__main__":
    sys.exit(main())
