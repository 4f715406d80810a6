"""LD624: an adapter config that names another base model than the one checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Severity,
)
from lora_doctor.static.model_source import is_hub_id

_COMMIT = re.compile(r"[0-9a-f]{40}")


class AdapterOfAnotherBase(Rule):
    """The adapter config names another base model, or another revision of it.

    ## What happens
    If the sizes differ, loading fails. If they agree, it does not: the adapter is applied to
    weights that it was not trained on, and the model works worse than with or without the right
    adapter.

    ## Why
    `base_model_name_or_path` in adapter_config.json names the base model of the training. Two names
    may refer to the same model (a local copy, a mirror), so a different name alone is not an error:
    if the last part of the name is the same, a folder is not reported, and a mirror is reported as
    info.

    ## Versions
    All.

    ## Fix
    Load the adapter onto the base model that its config names; or, if both are the same weights,
    correct the name in the config, so that the auto classes find it.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/checkpoint
    """

    code = "LD624"
    name = "adapter-of-another-base"
    summary = "The adapter config names another base model, or revision, than the one checked."
    depth = "static"
    about_saved_adapter = True
    told_as = ("The adapter was trained on another base model, and the output is garbage.",)
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"base_model_name_or_path": "org/another-model", "target_modules": ["q_proj"]},
            depth="static",
        ),
        Example("healthy", "tests.saved_adapters:lora", loaded=True, depth="static"),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj"]}, depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        named = case.asked.get("base_model_name_or_path")
        if not isinstance(named, str) or not named or case.source.kind in ("module", "script"):
            return
        source = case.source
        if named == source.name or _same_folder(named, source.folder):
            yield from self._revision(case, named)
            return
        last, own = (Path(name.rstrip("/")).name.lower() for name in (named, source.name))
        both_hub = source.kind == "hub" and is_hub_id(named)
        if last == own and not both_hub:
            return  # the same model in a folder
        different = both_hub and last != own
        yield self._differs(case, named, "warning" if different else "info")

    def _differs(self, case: Case, named: str, severity: Severity) -> Finding:
        return self.finding(
            severity,
            f"The adapter config names {named!r} as its base model; MODEL is {str(case.source)!r}.",
            location=Location("recipe", "base_model_name_or_path"),
            evidence=(
                Measurement("base_model_name_or_path", named, "adapter config"),
                Measurement("MODEL", str(case.source), "this run"),
            ),
            proof=Proof("inferred", "the names differ; the weights were not compared"),
            fixes=(
                Fix(
                    f"Check it with {named}; or, if both are the same weights, correct "
                    "base_model_name_or_path.",
                    "manual",
                ),
            ),
        )

    def _revision(self, case: Case, named: str) -> Iterator[Finding]:
        wanted, have = case.asked.get("revision"), case.source.revision
        if case.source.kind != "hub" or not isinstance(wanted, str) or not wanted or not have:
            return
        asked = case.source.snapshot.revision if case.source.snapshot is not None else None
        if wanted in (have, asked, "main", "master"):
            return
        # A tag or a branch may be the commit that was fetched; only two commits can be compared.
        comparable = all(_COMMIT.fullmatch(name) for name in (wanted, have))
        unclear = "" if comparable else ", which may be the same"
        yield self.finding(
            "warning" if comparable else "info",
            f"The adapter was trained on revision {wanted!r} of {named!r}; MODEL is "
            f"{have!r}{unclear}.",
            location=Location("recipe", "revision"),
            evidence=(
                Measurement("revision in the config", wanted, "adapter config"),
                Measurement("revision of MODEL", have, "this run"),
            ),
            proof=Proof("inferred", "the revisions differ; the weights were not compared"),
            fixes=(Fix(f"Load the base model with revision={wanted!r}.", "manual"),),
        )


def _same_folder(named: str, folder: str | None) -> bool:
    if folder is None or "\0" in named:
        return False
    return Path(named).expanduser().resolve() == Path(folder).resolve()
