"""LD213: entries of rank_pattern, exclude_modules and similar keys have no effect."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
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
    unmatched_entries,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import Structure

#: Key to what is told of an entry without effect.
_SAID = {
    "rank_pattern": "no adapted layer matches, so its ranks are not used",
    "alpha_pattern": "no adapted layer matches, so its alphas are not used",
    "exclude_modules": "no layer that would get an adapter matches",
    "layers_to_transform": "the model has no such layer",
    "bias": "the adapted layers have biases, and this PEFT trains none of them",
    "feedforward_modules": "no adapted layer matches, so that all are scaled at their output",
}
#: The same for ``lambda_pattern``, ``n_frequency_pattern`` and what else PEFT has of that kind.
_SAID_OF_PATTERNS = "no adapted layer matches, so its values are not used"
#: One or two letters of a name.
_NEAR = 0.8


class EntriesWithoutEffect(Rule):
    """Entries of `rank_pattern`, `alpha_pattern` and their like (`lambda_pattern` of DeLoRA,
    `n_frequency_pattern` of FourierFT and WaveFT, `block_size_pattern` of C3A), `exclude_modules`
    or `layers_to_transform`, or `bias`, or `feedforward_modules` of IA3, have no effect on this
    model, and most releases of PEFT do not warn.

    ## What happens
    Training runs as if the entry were not there: with the rank of all other layers, with an adapter
    on the layer that was to be excluded, or without one on a layer that does not exist.

    ## Why
    PEFT looks up each adapted layer in these keys. An entry that matches no adapted layer
    (mistyped, from another architecture, beyond the last layer, of a module that is not a target,
    or after an entry that matches first) is never used. `bias: lora_only` of PEFT 0.6 to 0.9 looks
    for the bias in the wrapper of the layer, where it no longer is, and trains none.

    ## Versions
    All versions of PEFT; `exclude_modules` exists from 0.14 on. `bias: lora_only` trains biases
    before PEFT 0.6 and from 0.10 on.

    ## Fix
    Where an adapted layer has nearly the same name, that name; unsafe, because ranks or adapters
    change. Otherwise the entry is removed, which changes nothing.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD213"
    name = "entries-without-effect"
    summary = "Entries of rank_pattern, exclude_modules and similar keys have no effect."
    depth = "meta"
    symptoms = (
        Symptom(r"exclude_modules=.{1,300}? but no modules were excluded"),
        Symptom(r"keys did not match any targeted module and were ignored", "PEFT 0.19+"),
    )
    descriptions = (
        Symptom(
            r"\b(?:rank_pattern|alpha_pattern|exclude_modules|layers_to_transform)\b.{0,60}\b("
            r"?:no effect|ignored|not applied|does nothing|match(?:es)? nothing)"
        ),
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {
                "target_modules": ["q_proj", "v_proj"],
                "rank_pattern": {"layers.0.self_attn.q_proj": 32, "k_proj": 4},
            },
            why="k_proj is no target",
        ),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["o_porj"]},
            {"peft": ">=0.14"},
            why="mistyped: o_proj was meant",
        ),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj"], "layers_to_transform": [0, 1, 80]},
            why="there are 32 layers",
        ),
        Example(
            "broken",
            "arch:gpt2",
            {"target_modules": ["c_attn"], "bias": "lora_only"},
            {"peft": "<0.10"},
            why="each c_attn has a bias",
        ),
        Example(
            "broken",
            "arch:llama",
            {"peft_type": "DELORA", "target_modules": ["q_proj"], "lambda_pattern": {"k_proj": 8}},
            {"peft": ">=0.18"},
            why="the bound of DeLoRA for a layer that is no target",
        ),
        Example(
            "broken",
            "arch:llama",
            {
                "peft_type": "IA3",
                "target_modules": "all-linear",
                "feedforward_modules": r".*mlp\.fc\d",
            },
            {"peft": ">=0.14"},
            why="names of another architecture",
        ),
        Example(
            "healthy",
            "arch:llama",
            {
                "peft_type": "IA3",
                "target_modules": ["k_proj", "down_proj"],
                "feedforward_modules": ["down_proj"],
            },
            depth="meta",
        ),
        Example(
            "healthy",
            "arch:gpt2",
            {"target_modules": ["c_attn"], "bias": "lora_only"},
            {"peft": ">=0.10"},
        ),
        Example(
            "healthy",
            "arch:llama",
            {
                "target_modules": ["q_proj", "v_proj"],
                "rank_pattern": {"layers.0.self_attn.q_proj": 32, "v_proj": 4},
                "alpha_pattern": {"q_proj": 8},
            },
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
        if not structure.injection.ok:
            return
        asked = {item.key: None for item in structure.injection.unmatched}
        for key in sorted(asked, key=lambda key: [*_SAID, key].index(key)):
            if key not in _SAID and not key.endswith("_pattern"):
                continue  # of another rule
            entries = unmatched_entries(structure, key)
            # What the framework leaves out of every model is nobody's entry.
            if entries and case.recipe.origins.get(key) != "default":
                yield self._finding(case.recipe, structure, key, entries)

    def _finding(
        self, recipe: Recipe, structure: Structure, key: str, entries: list[str]
    ) -> Finding:
        named = key not in ("layers_to_transform", "bias", "feedforward_modules")
        meant = _meant(structure, entries) if named else {}
        evidence = [
            Measurement(f"{key} without effect", quoted(entries), "installed PEFT, entry by entry")
        ]
        if meant:
            pairs = quoted(f"{name} for {entry}" for entry, name in meant.items())
            evidence.append(
                Measurement("adapted layer with a similar name", pairs, "installed PEFT")
            )
        whole = key in ("bias", "feedforward_modules")
        said = "is without effect" if whole else "has entries without effect"
        return self.finding(
            "warning",
            f"{key} {said} ({quoted(entries, 6)}): {_SAID.get(key, _SAID_OF_PATTERNS)}.",
            location=Location("recipe", key),
            evidence=tuple(evidence),
            proof=Proof("measured", "PEFT was asked which entry it takes for which layer"),
            fixes=tuple(_fixes(recipe, key, entries, meant)),
        )


def _meant(structure: Structure, entries: list[str]) -> dict[str, str]:
    """Entry to the name of an adapted layer that it is a slip of; a name that the model has, of a
    layer that is no target, is none."""
    known = {group.leaf for group in structure.groups}
    leaves = sorted({group.leaf for group in structure.groups if group.adapted})
    found: dict[str, str] = {}
    for entry in entries:
        front, dot, leaf = entry.rpartition(".")
        near = difflib.get_close_matches(leaf, leaves, n=1, cutoff=_NEAR)
        if near and leaf not in known:
            found[entry] = f"{front}{dot}{near[0]}"
    return found


def _fixes(recipe: Recipe, key: str, entries: list[str], meant: Mapping[str, str]) -> Iterator[Fix]:
    """The names that were meant, where there are any; the entries taken out."""
    if key not in recipe:
        return
    own = recipe.get(key)
    if meant:
        pairs = quoted((f"{name} for {entry}" for entry, name in meant.items()), 6)
        edit = Edit(key, _changed(own, {**dict.fromkeys(entries), **meant}))
        yield Fix(f"Write {pairs} in {key}.", "unsafe", (edit,))
    # Without a value IA3 has modules of its own choice; an empty list names none.
    left: object = {"bias": "none", "feedforward_modules": []}.get(key)
    if left is None:
        left = _changed(own, dict.fromkeys(entries))
    yield Fix(
        f"Remove {quoted(entries, 6)} from {key}, which has no effect now.",
        "unsafe" if meant else "safe",
        (Edit(key, left),),
    )


def _changed(own: object, names: Mapping[str, str | None]) -> object:
    """The value of a key with entries renamed, or taken out where the new name is ``None``; it is
    ``None`` itself where nothing is left."""
    if isinstance(own, Mapping):
        kept = {names.get(str(name), str(name)): value for name, value in own.items()}
        return {name: value for name, value in kept.items() if name is not None} or None
    if isinstance(own, (list, tuple)):
        renamed = [names.get(str(item), item) for item in own]
        return [item for item in renamed if item is not None] or None
    return names.get(str(own))
