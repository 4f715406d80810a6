"""LD202: some targets match nothing, and PEFT says nothing about it."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.engine.case import Case
from lora_doctor.engine.rule import Edit, Example, Finding, Fix, Location, Measurement, Proof, Rule
from lora_doctor.proposal.targets import (
    cover_of,
    means_mlp,
    naming,
    offered_layers,
    require_lora,
    target_entries,
)
from lora_doctor.results.structure import Structure
from lora_doctor.text import quoted


class SomeTargetsMatchNothing(Rule):
    """Some entries of the recipe match no layer, or so few layers that most of the language
    tower is left out. PEFT adapts what does match and says nothing.

    ## What happens
    Training runs, the loss falls, and a part of what was to be trained is not: with Llama's seven
    names Phi-3 gets adapters on `o_proj` and `down_proj` only, because its attention is one
    `qkv_proj` and its MLP one `gate_up_proj`.

    ## Why
    PEFT raises only when *nothing* matches. `modules_to_save` and `target_parameters` are not
    looked at either. In hybrid models the names exist, but only in one layer of several.

    ## Versions
    All of PEFT.

    ## Fix
    The names that this model has for the same roles. It is safe where each new name stands for a
    role that the recipe named, because that is what was asked for; more adapters are trained than
    without it.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD202"
    name = "some-targets-match-nothing"
    summary = "Some targets match nothing, silently, and part of the model is not trained."
    depth = "meta"
    examples = (
        Example(
            "broken",
            "arch:phi3",
            {
                "target_modules": [
                    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
                ]
            },
            requires={"transformers": ">=4.41"},
            why="Llama's names on a model with fused layers",
        ),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["score"]},
            why="modules_to_save names nothing",
        ),
        Example(
            "healthy",
            "arch:phi3",
            {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]},
            requires={"transformers": ">=4.41"},
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"]},
            why="fewer layers, as the recipe says",
        ),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
        require_lora(case.recipe)
        if not structure.injection.ok:
            return
        unmatched: dict[str, list[str]] = {}
        for item in structure.injection.unmatched:
            unmatched.setdefault(item.key, []).append(item.entry)
        targets = _without_experts(structure, unmatched.pop("target_modules", []))
        if targets:
            yield self._targets(case, structure, targets)
        else:
            yield from self._few_layers(case, structure)
        for key, entries in unmatched.items():
            yield self._other_key(case, structure, key, entries)

    def _targets(self, case: Case, structure: Structure, entries: list[str]) -> Finding:
        matched = [entry for entry in target_entries(case.recipe) if entry not in entries]
        kept = sorted({group.leaf for group in structure.groups if group.adapted})
        cover = cover_of(structure, target_entries(case.recipe))
        wanted = [name for name in matched if name not in cover] + cover
        missing = [name for name in cover if name not in kept]
        evidence = [
            Measurement("match nothing", quoted(entries), "installed PEFT, entry by entry"),
            Measurement("adapters sit on", quoted(kept), "installed PEFT, meta device"),
            Measurement(
                "the model has instead",
                quoted(missing) if missing else "nothing that is left",
                f"{structure.model_class}, language tower",
            ),
            Measurement("layers adapted", _share(structure), "language tower"),
        ]
        return self.finding(
            "warning",
            f"{len(entries)} of {len(target_entries(case.recipe))} target_modules match nothing in "
            f"{structure.model_class} ({quoted(entries, 6)}); only {quoted(kept, 6)} are adapted"
            + (f", and {quoted(missing, 6)} are left out." if missing else "."),
            location=Location("recipe", "target_modules"),
            evidence=tuple(evidence),
            proof=Proof("measured", "PEFT was run on the real class and the result was counted"),
            fixes=(
                Fix(
                    f"Target this model's layers for the same roles: {', '.join(wanted)}.",
                    "safe",
                    (Edit("target_modules", naming(structure, wanted, within=False)),),
                ),
            )
            if missing
            else (
                Fix(
                    "Take the entries that match nothing out; nothing changes.",
                    "safe",
                    (Edit("target_modules", matched),),
                ),
            ),
            explains=("attaches",),
        )

    def _few_layers(self, case: Case, structure: Structure) -> Iterator[Finding]:
        """Every entry matches, but most layers of the tower have no adapter at all."""
        recipe = case.recipe
        if any(recipe.get(key) is not None for key in ("layers_to_transform", "layers_pattern")):
            return
        if isinstance(recipe.get("target_modules"), str):
            return  # a regular expression, or all-linear: chosen with the paths in view
        offered = [group for group in offered_layers(structure) if group.pattern.count("*") == 1]
        layers = max((group.count for group in offered), default=0)
        # What mixes tokens differs from layer to layer; the MLP beside it hides that.
        mixers = [group for group in offered if group.role not in ("mlp", "experts")]
        with_adapter = max((group.adapted for group in mixers), default=0)
        if not with_adapter or with_adapter * 2 >= layers:
            return
        left = sorted(
            {group.leaf for group in mixers if not group.adapted and group.count > with_adapter}
        )
        if not left:
            return
        wanted = [*target_entries(recipe), *left]
        yield self.finding(
            "warning",
            f"The targets exist in {with_adapter} of {layers} layers of {structure.model_class}; "
            f"the other layers have {quoted(left, 6)} instead, which are not adapted.",
            location=Location("recipe", "target_modules"),
            evidence=(
                Measurement(
                    "layers whose token mixing is adapted",
                    f"{with_adapter} of {layers}",
                    "installed PEFT, meta device",
                ),
                Measurement(
                    "not adapted", quoted(left), f"{structure.model_class}, language tower"
                ),
            ),
            proof=Proof("measured", "PEFT was run on the real class and the result was counted"),
            fixes=(
                Fix(
                    f"Also target the other layers: {', '.join(left)}.",
                    "unsafe",
                    (Edit("target_modules", wanted),),
                ),
            ),
        )

    def _other_key(self, case: Case, structure: Structure, key: str, entries: list[str]) -> Finding:
        rest = [entry for entry in case.recipe.get(key) or () if entry not in entries]
        return self.finding(
            "warning",
            f"{key} {quoted(entries, 6)} name nothing in {structure.model_class}; "
            "PEFT passes over them without a word.",
            location=Location("recipe", key),
            evidence=(
                Measurement(
                    f"{key} without a match", quoted(entries), "installed PEFT, meta device"
                ),
            ),
            proof=Proof("measured", "PEFT was run on the real class and the result was looked at"),
            fixes=(
                Fix(
                    f"Take {quoted(entries, 6)} out of {key}; nothing changes.",
                    "safe",
                    (Edit(key, rest or None),),
                ),
            ),
            explains=("attaches",),
        )


def _without_experts(structure: Structure, entries: list[str]) -> list[str]:
    """Entries that stand for an MLP whose experts are fused parameters belong to LD204."""
    fused = any(
        group.kind == "parameter" and group.role == "experts" and not group.adapted
        for group in structure.groups
    )
    return [entry for entry in entries if not (fused and means_mlp(entry))]


def _share(structure: Structure) -> str:
    offered = offered_layers(structure)
    adapted, count = sum(g.adapted for g in offered), sum(g.count for g in offered)
    return f"{adapted} of {count} linear layers"
