"""LD202: some targets match nothing, and PEFT does not warn."""

from __future__ import annotations

from collections.abc import Iterator
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
    Rule,
    Symptom,
    beyond,
    cover_of,
    expression_ends,
    means_mlp,
    naming,
    offered_layers,
    quoted,
    require_named_layers,
    same_job,
    side_towers,
    target_entries,
    unmatched_targets,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import Structure


class SomeTargetsMatchNothing(Rule):
    """Some entries of `target_modules` match no layer. PEFT adapts those that do match, and does
    not warn.

    ## What happens
    Training runs and the loss falls, but only part of the intended layers are trained: with Llama's
    seven names Phi-3 gets adapters on `o_proj` and `down_proj` only, because its attention is one
    `qkv_proj` and its MLP one `gate_up_proj`.

    ## Why
    PEFT raises only when *nothing* matches.

    ## Versions
    All versions of PEFT.

    ## Fix
    This model's names for the same roles. The fix is safe where each new name stands for a role
    that the recipe named, because that is what the recipe asked for; more adapters are trained than
    before. Where this model computes several roles in one layer, the fix says what it trains as
    well.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD202"
    name = "some-targets-match-nothing"
    summary = "Some targets match nothing, silently, and part of the model is not trained."
    depth = "meta"
    symptoms = (Symptom(r"target_modules=.{1,500}? were set but no module was matched"),)
    descriptions = (
        Symptom(
            r"\b(?:some|part|one|two|half) of (?:the |my )?target\w*\b.{0,60}"
            r"\b(?:not match|nothing|not found|ignored|missing|skipped)"
        ),
        Symptom(
            r"\b(?:incorrect|wrong|mistyped|one of (?:my|the)\b.{0,20}) (?:names? in )?"
            r"target.?modules?\b.{0,40}\b(?:does|do|is|are)(?: not|n't) "
            r"(?:error|raise|warn|exist|report)"
        ),
        Symptom(
            r"\b(?:silently|quietly) (?:skip|ignor|drop)\w*.{0,40}\btarget",
            unless=r"\b(?:vllm|sglang|tgi|ollama|llama\.cpp)\b",
        ),
    )
    told_as = ("A wrong name in target_modules raises no error, and is silently ignored.",)
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
            "arch:arcee",
            {
                "target_modules": [
                    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
                ]
            },
            requires={"transformers": ">=4.55"},
            why="told only, as every layer is adapted by the other names",
        ),
        Example(
            "broken",
            "arch:phi3",
            {"target_modules": r".*\.(mlp|self_attn)\.(q|k|v|o|gate|up|down)_proj"},
            requires={"transformers": ">=4.41"},
            why="the same names in an expression",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": r".*(mlp|cross_attn|self_attn).(up|down|gate|q|k|v|o|qkv)_proj"},
            depth="meta",
            why="what has no match is adapted under other names",
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
        require_named_layers(case.recipe)
        if not structure.injection.ok or not any(group.adapted for group in structure.groups):
            return  # LD201
        yield from self._in_other_towers(case)
        yield from self._in_expression(case)
        entries = unmatched_targets(structure)
        if not entries:
            return
        matched = [entry for entry in target_entries(case.recipe) if entry not in entries]
        kept = sorted({group.leaf for group in structure.groups if group.adapted})
        # Norms or embeddings: what is offered are linear layers, which that kind is not put on.
        linear = any(group.adapted for group in offered_layers(structure))
        cover = cover_of(structure, target_entries(case.recipe)) if linear else []
        more = beyond(structure, target_entries(case.recipe))
        also = f" (trains {', '.join(more)} as well)" if more else ""
        # What stays keeps its place, so that the diff shows what changes.
        wanted = list(dict.fromkeys([*matched, *cover]))
        missing = [name for name in cover if name not in kept]
        evidence = [
            Measurement("match nothing", quoted(entries), "installed PEFT, entry by entry"),
            Measurement("adapted", quoted(kept), "installed PEFT, meta device"),
            Measurement(
                "the model's own names",
                quoted(missing) if missing else "none known for these entries",
                f"{structure.model_class}, language tower",
            ),
            Measurement("layers adapted", _share(structure), "language tower"),
        ]
        yield self.finding(
            "warning" if missing or not _all_served(structure, entries) else "info",
            f"{len(entries)} of {len(target_entries(case.recipe))} target_modules match nothing in "
            f"{structure.model_class} ({quoted(entries, 6)}); only {quoted(kept, 6)} "
            + f"{_be(kept)} adapted"
            + (f", while {quoted(missing, 6)} {_be(missing)} not." if missing else "."),
            location=Location("recipe", "target_modules"),
            evidence=tuple(evidence),
            proof=Proof(
                "measured",
                (
                    "PEFT injected the adapters into the full-size model on "
                    "the meta device, and they were counted"
                ),
            ),
            fixes=(
                Fix(
                    f"Use this model's names for the same layers: {', '.join(wanted)}{also}.",
                    "unsafe" if set(more) & set(cover) else "safe",
                    (Edit("target_modules", naming(structure, wanted, within=False)),),
                ),
            )
            if missing
            else (
                Fix(
                    "Remove the entries that match nothing; training does not change.",
                    "safe",
                    (Edit("target_modules", matched),),
                ),
            ),
            explains=("attaches",),
        )

    def _in_expression(self, case: Case) -> Iterator[Finding]:
        """Names that a regular expression lists at its end, as a list would."""
        structure, targets = case.structure, case.written.get("target_modules")
        if not isinstance(targets, str) or structure.injection.converted:
            return
        dead = _dead_ends(structure, targets)
        if not dead:
            return
        missing = list(dict.fromkeys(name for names in dead.values() for name in names))
        kept = sorted({group.leaf for group in structure.groups if group.adapted})
        wanted = [*kept, *missing]
        yield self.finding(
            "warning",
            f"The expression in target_modules also ends in {quoted(dead, 6)}, which match "
            f"nothing in {structure.model_class}; only {quoted(kept, 6)} {_be(kept)} adapted, "
            f"while {quoted(missing, 6)} {_be(missing)} not.",
            location=Location("recipe", "target_modules"),
            evidence=(
                Measurement("match nothing", quoted(dead), "names at the end of the expression"),
                Measurement("adapted", quoted(kept), "installed PEFT, meta device"),
                Measurement("the model's own names", quoted(missing),
                            f"{structure.model_class}, language tower"),
                Measurement("layers adapted", _share(structure), "language tower"),
            ),
            proof=Proof("measured", ("PEFT injected the adapters into the full-size model on "
                                    "the meta device, and they were counted")),
            fixes=(
                Fix(
                    f"Use this model's names for the same layers: {', '.join(wanted)}.",
                    "unsafe",
                    (Edit("target_modules", naming(structure, wanted)),),
                ),
            ),
        )  # fmt: skip

    def _in_other_towers(self, case: Case) -> Iterator[Finding]:
        """Names of the language model's, as other models have them, that hit another tower: only
        told, because it may be meant."""
        structure, entries = case.structure, target_entries(case.recipe)
        found = _elsewhere(structure, entries)
        if not found:
            return
        own = list(dict.fromkeys(name for names in found.values() for name in names))
        yield self.finding(
            "info",
            f"target_modules {quoted(found, 6)} match only in other towers; the language model "
            f"has {quoted(own, 6)} for the same role, not adapted.",
            location=Location("recipe", "target_modules"),
            evidence=(
                Measurement("match only in other towers", quoted(found), "installed PEFT"),
                Measurement("language model, not adapted", quoted(own),
                            f"{structure.model_class}, meta device"),
            ),
            proof=Proof("measured", ("PEFT injected the adapters into the full-size model on "
                                    "the meta device, and they were counted")),
            fixes=(
                Fix(
                    f"Add {quoted(own, 6)} to target_modules.",
                    "unsafe",
                    (Edit("target_modules", [*entries, *own]),),
                ),
            ),
        )  # fmt: skip


def _dead_ends(structure: Structure, expression: str) -> dict[str, list[str]]:
    """Names at the end of an expression that match nothing, each with what the language model has
    for the same job, where no adapter is on any of that."""
    adapted = {group.leaf for group in structure.groups if group.adapted}
    if not any(group.adapted for group in offered_layers(structure)):
        return {}  # meant for another tower
    fused = any(g.kind == "parameter" and g.role == "experts" for g in structure.groups)
    dead = {}
    for name in expression_ends(expression):
        own = [] if fused and means_mlp(name) else same_job(structure, name)
        if own and not adapted.intersection(own) and not any(one.endswith(name) for one in adapted):
            dead[name] = own
    return dead


def _elsewhere(structure: Structure, entries: list[str]) -> dict[str, list[str]]:
    """Names that match in vision and audio towers only, each with what the language model has for
    the same job, where no adapter is on that."""
    sides = {tower.path for tower in side_towers(structure)}
    adapted = {group.leaf for group in offered_layers(structure) if group.adapted}
    # What joins the towers is not the language model either (GLM's merger has an MLP of its own).
    language = {group.leaf for group in structure.groups_of("language", "head") if group.adapted}
    found = {}
    for entry in entries if adapted else ():
        places = {
            group.tower for group in structure.groups if group.adapted and group.leaf == entry
        }
        own = cover_of(structure, [entry])
        if places & sides and entry not in language and not adapted.intersection(own):
            found[entry] = own
    return found


def _all_served(structure: Structure, entries: list[str]) -> bool:
    """Whether all that there is to adapt is adapted, or what these names stand for is, under the
    names that it has here (``up_proj`` where there is no gate): they are of other models, in a list
    that was written for several."""
    if all(group.adapted == group.count for group in offered_layers(structure)):
        return True
    kept = {group.leaf for group in structure.groups if group.adapted}
    return all(kept.intersection(same_job(structure, entry)) for entry in entries)


def _be(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _share(structure: Structure) -> str:
    offered = offered_layers(structure)
    adapted, count = sum(g.adapted for g in offered), sum(g.count for g in offered)
    return f"{adapted} of {count} linear layers"
