"""LD209: entries of modules_to_save or target_parameters name nothing in the model."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Edit,
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
    require_lora,
    unmatched_entries,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import Structure

_KEYS = ("target_parameters", "modules_to_save")
#: One or two letters of a name: ``embed_token`` is ``embed_tokens``, ``v_head`` is not ``lm_head``.
_NEAR = 0.8


class OtherKeysMatchNothing(Rule):
    """Entries of `modules_to_save` or `target_parameters` name nothing in the model, and PEFT
    passes over them.

    ## What happens
    Training runs. The head or the experts that were to be trained as well are neither trained nor
    saved.

    ## Why
    PEFT raises only when no target matches. It warns, `target_parameters=... were set but no
    parameter was matched`, where not one of them does, and says nothing of `modules_to_save`.
    `score` is the head of a classifier; the same model with a language head calls it `lm_head`.

    ## Versions
    All versions of PEFT; `target_parameters` exists from 0.17 on.

    ## Fix
    Where the model has a name that is nearly the same (`lm_haed`, `embed_token`), that name: it is
    what was asked for, and unsafe all the same, because the module is then trained and saved in
    full. To take such an entry out loses the wish without a word, so that is not safe either.
    Where no name is near, the entries taken out, which changes nothing: they had no effect.
    Whoever meant a module of the model puts its name there.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD209"
    name = "other-keys-match-nothing"
    summary = "Entries of modules_to_save or target_parameters name nothing in the model."
    depth = "meta"
    symptoms = (
        Symptom(r"target_parameters=.{1,500}? were set but no parameter was matched", "peft>=0.17"),
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
        structure = case.structure
        require_lora(case.recipe)
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
            evidence.append(Measurement("the model has nearly the same", names, source))
        return self.finding(
            "warning",
            f"{key} {quoted(entries, 6)} name nothing in {structure.model_class}; "
            "PEFT passes over them without a word.",
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
        return (Fix(f"Take {quoted(entries, 6)} out of {key}; nothing changes.", "safe", (out,)),)
    spelled = [meant.get(entry, entry) for entry in own if entry in meant or entry in rest]
    others = [entry for entry in entries if entry not in meant]
    pairs = quoted((f"{name} for {entry}" for entry, name in meant.items()), 6)
    also = f"; take {quoted(others, 6)} out" if others else ""
    title = f"Write {pairs} in {key}, which trains and saves it{also}."
    return (
        Fix(title, "unsafe", (Edit(key, spelled),)),
        Fix(
            f"Take {quoted(entries, 6)} out of {key}; what was meant by it stays frozen, as now.",
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
