"""LD201: target modules match nothing."""

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
    mended_expression,
    name_groups,
    naming,
    offered_layers,
    quoted,
    require_named_layers,
    target_entries,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import Structure

#: Keys by which fewer of the layers that are named are adapted.
_NARROWING = ("layers_to_transform", "layers_pattern", "exclude_modules")


class NoTargetMatches(Rule):
    """The recipe's target modules name no layer of this model.

    ## What happens
    `get_peft_model` raises `Target modules {...} not found in the base model`, or, where the recipe
    has no `target_modules` and PEFT has no default for the architecture, `Please specify
    target_modules in peft_config`.

    ## Why
    Every model family names its layers differently: the names of Llama are not those of GPT-2,
    Falcon or T5. Typically a list was copied from a recipe for another model, a regular expression
    was written for paths that a later transformers renamed, or a single name was given as a string,
    which PEFT reads as a regular expression for the whole path.

    ## Versions
    All versions of PEFT.

    ## Fix
    The names of this model's layers for the same roles (attention, MLP). Where the roles cannot be
    recognised from the names, all linear layers of the language tower, which is unsafe. A regular
    expression that is one letter away from layers of this model is kept but for that. Where this
    model computes several roles in one layer (queries, keys and values), that layer is the only way
    to train one of them; the fix says what it trains as well.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD201"
    name = "no-target-matches"
    summary = "The target modules match no layer of the model."
    depth = "meta"
    symptoms = (
        Symptom(r"(?i)\bTarget modules\b.{0,300}?not found in the base model"),
        Symptom(
            r"(?i:please) specify `?target_modules`?( or `?target_parameters`?)? ?in "
            r"`?peft_config`?"
        ),
        Symptom(r"No layers? types? compatible with \w+ were found\. Please check `peft"),
        Symptom(r"No `?target_modules`? passed"),
        Symptom(r"No modules were targeted for adaptation"),
        Symptom(r"All modules were excluded\. This is likely unintended"),
    )
    descriptions = (
        Symptom(
            r"\b(?:regex|target\w*)\b.{0,80}\b(?:no longer match|match\w* (?:nothing"
            r"|no\b|none)|(?:do|does|did)(?: not|n.t) match|fails? to match)"
        ),
        Symptom(
            r"\b(?:zero|no|0) (?:lora )?(?:adapters?|lora (?:layers|modules))\b.{0,30}"
            r"\b(?:attach|inject|add|creat|insert|are found|were found)"
        ),
        Symptom(r"\b(?:lora|adapters?)\b.{0,20}\battached to (?:nothing|no layer)"),
    )
    told_as = (
        "My target_modules match no layer.",
        "No LoRA layers were added to the model.",
    )
    examples = (
        Example("broken", "arch:gpt2", {"target_modules": ["q_proj", "v_proj"]}),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": "q_proj"},
            why="a text is a regular expression for the whole path",
        ),
        Example(
            "broken",
            "arch:camembert",
            {"target_modules": None, "model_class": "AutoModelForCausalLM"},
            why="no targets, and PEFT has none for it: only layers that are trained are named",
        ),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": r".*\.self_attn\.(q|v)_prj"},
            why="a letter is missing in an expression, which is put right as it stands",
        ),
        Example("broken", "arch:bloom", {"target_modules": ["q_proj", "v_proj"]}),
        Example(
            "broken",
            "arch:llama",
            {
                "target_modules": ["q_proj", "v_proj"],
                "layers_to_transform": [0, 1],
                "layers_pattern": "h",
            },
            depth="meta",
            why="Llama's list of layers is not called h",
        ),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]},
            requires={"peft": ">=0.14"},
            depth="meta",
            why="everything excluded",
        ),
        Example("healthy", "arch:gpt2", {"target_modules": ["c_attn"]}),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj", "v_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
        recipe = case.recipe
        require_named_layers(recipe)
        injection = structure.injection
        entries = target_entries(recipe)
        adapted = sum(group.adapted for group in structure.groups)
        # A kind that cannot be made without weights is asked by name only, and not refused.
        if adapted or (injection.ok and not injection.not_made):
            return
        empty = recipe.get("target_modules") == []
        asks = _asks_for_targets(structure) or (empty and _of_no_match(structure))  # PEFT 0.7
        no_default = not entries and asks
        unmatched = {item.entry for item in injection.unmatched}
        nothing = bool(entries) and all(entry in unmatched for entry in entries)
        if not nothing and not no_default:
            yield from self._by_other_keys(case, entries)
            return
        cover = cover_of(structure, entries)
        stated = quoted(entries) or ("an empty list" if empty else "not set")
        evidence = [
            Measurement("target_modules", stated, "recipe"),
            Measurement(
                "layers matched",
                f"0 of {sum(g.count for g in offered_layers(structure))}",
                "installed PEFT, meta device",
            ),
            Measurement(
                "the model has",
                quoted(sorted({g.leaf for g in offered_layers(structure)})),
                f"{structure.model_class}, language tower",
            ),
        ]
        if injection.error:
            evidence.append(
                Measurement("get_peft_model", f"{injection.error.type}: {injection.error.message}",
                        "installed PEFT")
            )  # fmt: skip
        if entries:
            match = "matches" if len(entries) == 1 else "match"
            message = (
                f"target_modules {quoted(entries)} {match} no layer of {structure.model_class}"
            )
        elif empty:
            message = "target_modules is an empty list, which names no layer of the model"
        else:
            message = (
                "The recipe has no target_modules, and this PEFT has no default for "
                f"{structure.model_type or structure.model_class}"
            )
        yield self.finding(
            "error",
            f"{message}; it has {quoted(sorted({g.leaf for g in offered_layers(structure)}), 8)}.",
            location=Location("recipe", "target_modules"),
            evidence=tuple(evidence),
            proof=Proof(
                "executed", ("PEFT refused the config on the full-size model, on the meta device")
            ),
            fixes=_fixes(structure, case.recipe.get("target_modules"), entries, cover),
            explains=("attaches",),
        )

    def _by_other_keys(self, case: Case, entries: list[str]) -> Iterator[Finding]:
        """The entries name layers, and another key leaves none of them: PEFT says it plainly."""
        structure = case.structure
        error = structure.injection.error
        given = [key for key in _NARROWING if case.recipe.get(key)]
        if error is None or not given or not _of_no_match(structure):
            return
        yield self.finding(
            "error",
            f"No layer is left to adapt: {' with '.join(given)} excludes every layer of "
            f"{structure.model_class} that target_modules ({quoted(entries)}) selects.",
            location=Location("recipe", given[-1]),
            evidence=(
                *(Measurement(key, str(case.recipe.get(key)), "recipe") for key in given),
                Measurement("get_peft_model", f"{error.type}: {error.message}", "installed PEFT"),
            ),
            proof=Proof(
                "executed", ("PEFT refused the config on the full-size model, on the meta device")
            ),
            fixes=(Fix(f"Correct or remove {given[-1]}.", "manual"),),
            explains=("attaches",),
        )


def _of_no_match(structure: Structure) -> bool:
    """Whether PEFT said that it found nothing to adapt; it names the keys that it went by."""
    error = structure.injection.error
    return error is not None and any(
        words in error.message
        for words in ("not found in the base model", "No modules were targeted for adaptation")
    )


def _asks_for_targets(structure: Structure) -> bool:
    error = structure.injection.error
    return error is not None and "target_modules" in error.message


def _fixes(
    structure: Structure, written: object, entries: list[str], cover: list[str]
) -> tuple[Fix, ...]:
    mended = mended_expression(structure, written) if isinstance(written, str) else None
    if mended is not None:
        return (
            Fix(
                f"Write {mended} instead of {written}.",
                "safe",
                (Edit("target_modules", mended),),
            ),
        )
    if not cover:
        return (
            Fix("Set target_modules to layers of this model; the evidence lists them.", "manual"),
        )
    if not entries:
        # Nothing to go by: what the default recipe would train, and only that.
        return (
            Fix(
                f"Set target_modules to {quoted(cover)}.",
                "safe",
                (Edit("target_modules", name_groups(structure, offered_layers(structure))[0]),),
            ),
        )
    more = beyond(structure, entries)
    also = f" (trains {', '.join(more)} as well)" if more else ""
    guessed = bool(set(more) & set(cover))  # no role can be told from the names
    return (
        Fix(
            f"Use this model's names for the same layers: {', '.join(cover)}{also}.",
            "unsafe" if guessed else "safe",
            (Edit("target_modules", naming(structure, cover)),),
        ),
    )
