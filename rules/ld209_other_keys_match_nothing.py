"""LD209: entries of modules_to_save or target_parameters match nothing in the model."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Edit,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Recipe,
    Rule,
    Symptom,
    quoted,
    require_named_layers,
    unmatched_entries,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import Structure

_KEYS = ("target_parameters", "modules_to_save")
#: One or two letters of a name: ``embed_token`` is ``embed_tokens``, ``v_head`` is not ``lm_head``.
_NEAR = 0.8


class OtherKeysMatchNothing(Rule):
    """Entries of `modules_to_save` or `target_parameters` match nothing in the model, and PEFT
    ignores them.

    ## What happens
    Training runs. The head or the experts that should also be trained are neither trained nor
    saved.

    ## Why
    PEFT raises only when no target matches. For `target_parameters` it warns (`... were set but no
    parameter was matched`) only if none of them matches, and for `modules_to_save` it never warns.
    A typical case: the head of a classifier is called `score`, that of the same model with a
    language model head `lm_head`.

    ## Versions
    All versions of PEFT; `target_parameters` exists from 0.17 on.

    ## Fix
    Where the model has a nearly identical name (for `lm_haed`, `embed_token`), that name. This is
    unsafe although it was intended, because the module is then trained and saved in full. Removing
    such an entry is not safe either, because it would silently drop what was intended. Where no
    similar name exists, the entry is removed, which changes nothing because it had no effect; if a
    module of the model was meant, write its name instead.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD209"
    name = "other-keys-match-nothing"
    summary = "Entries of modules_to_save or target_parameters match nothing in the model."
    depth = "meta"
    symptoms = (
        Symptom(r"target_parameters=.{1,500}? were set but no parameter was matched", "peft>=0.17"),
    )
    descriptions = (
        Symptom(
            r"\b(?:modules_to_save|target_parameters)\b.{0,60}\b(?:no effect|ignored|match(?:e"
            r"s)? nothing|(?:does|do)(?: not|n't) exist)"
        ),
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["score"]},
            why="modules_to_save names nothing",
        ),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_haed"]},
            why="mistyped: lm_head was meant, and is offered",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head"]},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        written = case.asked.written
        if written is not None and written.around and not case.has("dry_run"):
            raise EvidenceError(f"{written.around} may have such parts, and is not built here")
        structure = case.structure
        require_named_layers(case.recipe)
        if not structure.injection.ok:
            return
        for key in _KEYS:
            entries = unmatched_entries(structure, key)
            if entries:
                yield self._finding(case.recipe, structure, key, entries)

    def _finding(
        self, recipe: Recipe, structure: Structure, key: str, entries: list[str]
    ) -> Finding:
        own = list(recipe.get(key) or ())
        meant = _meant(structure, key, entries, own)
        evidence = [
            Measurement(f"{key} without a match", quoted(entries), "installed PEFT, meta device")
        ]
        if meant:
            names = quoted(f"{name} for {entry}" for entry, name in meant.items())
            source = f"module names of {structure.model_class}"
            evidence.append(Measurement("similar names in the model", names, source))
        verb, them = ("matches", "it") if len(entries) == 1 else ("match", "them")
        return self.finding(
            "warning",
            f"{key}: {quoted(entries, 6)} {verb} nothing in {structure.model_class}; PEFT "
            f"silently ignores {them}.",
            location=Location("recipe", key),
            evidence=tuple(evidence),
            proof=Proof(
                "measured",
                ("PEFT injected the adapters into the full-size model on the meta device"),
            ),
            fixes=_fixes(key, own, entries, meant),
            explains=("attaches",),
        )


def _fixes(
    key: str, own: Sequence[str], entries: Sequence[str], meant: Mapping[str, str]
) -> tuple[Fix, ...]:
    """The names that were meant, where there are any; the entries taken out."""
    rest = [entry for entry in own if entry not in entries]
    out = Edit(key, rest or None)
    if not meant:
        return (
            Fix(
                f"Remove {quoted(entries, 6)} from {key}; training does not change.", "safe", (out,)
            ),
        )
    spelled = [meant.get(entry, entry) for entry in own if entry in meant or entry in rest]
    others = [entry for entry in entries if entry not in meant]
    pairs = quoted((f"{name} for {entry}" for entry, name in meant.items()), 6)
    also = f"; remove {quoted(others, 6)}" if others else ""
    title = f"Write {pairs} in {key}: the module is then trained and saved{also}."
    return (
        Fix(title, "unsafe", (Edit(key, spelled),)),
        Fix(
            (
                f"Remove {quoted(entries, 6)} from {key}; the module that was meant stays frozen, "
                "as it is now."
            ),
            "unsafe",
            (out,),
        ),
    )


def _meant(
    structure: Structure, key: str, entries: Sequence[str], own: Sequence[str]
) -> dict[str, str]:
    """Entry to the name in the model that it is a slip of: the nearest that PEFT could take for
    this key, has no adapter, and is not in the recipe already."""
    wants_parameters = key == "target_parameters"
    groups = [
        group
        for group in structure.groups
        if (group.kind == "parameter") == wants_parameters and not group.adapted
    ]
    leaves = {group.leaf for group in groups} - {entry.rpartition(".")[2] for entry in own}
    meant: dict[str, str] = {}
    for entry in entries:
        front, dot, leaf = entry.rpartition(".")
        near = difflib.get_close_matches(leaf, sorted(leaves), n=1, cutoff=_NEAR)
        if near:
            path = f"{front}{dot}{near[0]}"
            there = any(f".{group.pattern}".endswith(f".{path}") for group in groups)
            meant[entry] = path if there else near[0]
            leaves.discard(near[0])
    return meant
