"""LD582: a dataset of the set-up is not registered."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from lora_doctor.rule_api import (
    ENTRY,
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Measurement,
    Proof,
    Rule,
    Symptom,
    framework_named,
)
from lora_doctor.rules._set_up import located, written


class DatasetNotRegistered(Rule):
    """A dataset of the set-up is not registered.

    ## What happens
    LLaMA-Factory stops with `ValueError: Undefined dataset NAME in dataset_info.json`, after the
    tokenizer was loaded.

    ## Why
    `dataset` and `eval_dataset` are names that are looked up in `dataset_info.json` in
    `dataset_dir`. The name is mistyped, or its entry was not added.

    ## Versions
    All releases of LLaMA-Factory.

    ## Fix
    The name that is nearest, if there is one; else an entry in `dataset_info.json`.

    ## Links
    https://llamafactory.readthedocs.io/en/latest/getting_started/data_preparation.html
    """

    code = "LD582"
    name = "dataset-not-registered"
    summary = "A dataset of the set-up is not registered."
    depth = "static"
    symptoms = (Symptom(r"ValueError: Undefined dataset \S+ in dataset_info\.json"),)
    examples = (
        Example("broken", "tests/set_ups/data/dataset_missing.yaml", depth="static"),
        Example("healthy", "tests/set_ups/data/dataset_registered.yaml", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        set_up, files = case.set_up, case.side_files
        registry = framework_named(set_up.format).registry(set_up.entries)
        if registry is None or not files.registered:
            return
        for entry in (registry[0], f"eval_{registry[0]}"):
            names = _names(set_up.entries.get(entry))
            for name in names:
                if name not in files.registered:
                    yield self._finding(case, entry, name, names)

    def _finding(self, case: Case, entry: str, name: str, names: list[str]) -> Finding:
        set_up, files = case.set_up, case.side_files
        found = difflib.get_close_matches(name, sorted(files.registered - set(names)), n=1)
        meant = [found[0] if one == name else one for one in names] if found else []
        as_list = isinstance(set_up.entries[entry], list)
        value = meant if as_list else ",".join(meant)
        return self.finding(
            "error",
            f"{files.registry_file} has no dataset named {name!r}"
            + (f"; did you mean {found[0]!r}?" if found else "."),
            location=located(set_up, entry),
            evidence=(
                written(set_up, entry),
                Measurement("registered datasets", len(files.registered), files.registry_file),
            ),
            proof=Proof("read", f"the name was looked up in {files.registry_file}"),
            fixes=(
                Fix(f"Write {found[0]!r}.", "unsafe", (Edit(f"{ENTRY}{entry}", value),)) if found
                else Fix(f"Add {name} to {files.registry_file}.", "manual"),
            ),
        )  # fmt: skip


def _names(value: object) -> list[str]:
    parts = value.split(",") if isinstance(value, str) else value
    return [str(part).strip() for part in parts] if isinstance(parts, list) else []
