"""LD204: fused expert parameters that the targets pass by, or that refuse dropout."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_doctor.engine.case import Case
from lora_doctor.engine.rule import (
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.proposal.defaults import suffix
from lora_doctor.proposal.targets import (
    means_mlp,
    names_in,
    offered_layers,
    require_lora,
    target_entries,
)
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.structure import ModuleGroup, Structure
from lora_doctor.static.installed.environment import lora_config_fields
from lora_doctor.text import quoted

_HALF_OF_A_PAIR = re.compile(
    r"Cannot convert PEFT target\(s\) (?P<given>.+?) without also targeting (?P<missing>.+?) "
    r"because .*fused into (?P<fused>\w+)"
)


class FusedExperts(Rule):
    """The experts of this mixture are fused three-dimensional parameters, not linear layers, and
    the recipe's targets pass them by or cannot be put on them.

    ## What happens
    `gate_proj, up_proj, down_proj` or `all-linear` adapt the attention and leave the experts, most
    of the model, frozen, without a word. Or, where PEFT turns these names into
    `target_parameters` by itself, `lora_dropout` other than 0 ends in
    `lora.ParamWrapper does not work with lora_dropout != 0`.

    ## Why
    transformers 5 stores the experts of a layer in one parameter (gpt-oss does so in 4.x too), and
    PEFT's `target_modules` finds modules only. PEFT from 0.19 on converts some families itself;
    which, it is asked here. The names that it converts no longer stand for the linear layers of
    dense blocks and shared experts, which then have no adapter.

    ## Versions
    transformers 5, and gpt-oss on 4.55 and later. `target_parameters` exists from PEFT 0.17 on.

    ## Fix
    `target_parameters` with the experts' parameters, and `lora_dropout` 0, which PEFT needs for
    them. Both change what is learnt and the memory needed, so they are not applied unasked.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD204"
    name = "fused-experts"
    summary = "Fused experts are passed by silently, or refuse lora_dropout."
    depth = "meta"
    symptoms = (
        Symptom(r"ParamWrapper does not work with lora_dropout", "peft>=0.17"),
        Symptom(r"Cannot convert PEFT target\(s\)", "peft>=0.19"),
        Symptom(r"Target module GptOssExperts\(.* is not supported"),
    )
    examples = (
        Example(
            "broken",
            "arch:gpt_oss",
            {"target_modules": "all-linear", "lora_dropout": 0.0},
            requires={"transformers": ">=4.55", "peft": ">=0.17"},
            why="attention only; every expert stays frozen",
        ),
        Example(
            "broken",
            "arch:qwen3_moe",
            {
                "target_modules": [
                    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
                ],
                "lora_dropout": 0.05,
            },
            requires={"transformers": ">=5", "peft": ">=0.21"},
            why="PEFT converts the experts, and ParamWrapper takes no dropout",
        ),
        Example(
            "broken",
            "arch:glm4_moe",
            {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"], "lora_dropout": 0},
            requires={"transformers": ">=5", "peft": ">=0.21"},
            depth="meta",
            why="PEFT converts the experts, and drops the shared expert and the dense block",
        ),
        Example(
            "healthy",
            "arch:qwen3_moe",
            {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.05},
            requires={"transformers": ">=4.53"},
            why="only the attention is asked for",
        ),
        Example("healthy", "arch:mixtral", {"target_modules": ["q_proj", "v_proj"]}),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        structure, recipe = case.structure, case.recipe
        require_lora(recipe)
        experts = [
            group
            for group in structure.groups
            if group.kind == "parameter" and group.role == "experts"
        ]
        if not experts:
            return
        error = structure.injection.error
        if error is not None:
            if "lora_dropout" in error.message and recipe.get("lora_dropout"):
                yield self._dropout(structure, recipe, experts)
            halves = _HALF_OF_A_PAIR.search(error.message)
            if halves:
                yield self._half(structure, recipe, experts, halves)
            return
        passed_by = [group for group in experts if not group.adapted]
        if passed_by and _means_experts(recipe):
            yield self._passed_by(structure, recipe, passed_by)
        lost = _lost(structure)
        if lost:
            yield self._converted_away(structure, recipe, lost)

    def _dropout(self, structure: Structure, recipe: Recipe, experts: list[ModuleGroup]) -> Finding:
        error = structure.injection.error
        assert error is not None
        return self.finding(
            "error",
            f"PEFT puts adapters on the fused experts of {structure.model_class}, which take no "
            f"dropout, and lora_dropout is {recipe.get('lora_dropout')}.",
            location=Location("recipe", "lora_dropout"),
            evidence=(
                Measurement("get_peft_model", f"{error.type}: {error.message}", "installed PEFT"),
                Measurement("fused experts", _shapes(experts), structure.model_class),
                Measurement(
                    "converted by PEFT",
                    quoted(map(str, structure.injection.converted)) or "not read",
                    "installed PEFT",
                ),
            ),
            proof=Proof("executed", "PEFT refused the config on the real class"),
            fixes=(Fix("Train without LoRA dropout.", "unsafe", (Edit("lora_dropout", 0.0),)),),
            explains=("attaches",),
        )

    def _half(
        self,
        structure: Structure,
        recipe: Recipe,
        experts: list[ModuleGroup],
        halves: re.Match[str],
    ) -> Finding:
        """PEFT would convert the names, but they are only a part of a fused parameter."""
        error = structure.injection.error
        assert error is not None
        missing = re.findall(r"\w+", halves["missing"])
        return self.finding(
            "error",
            f"{halves['given']} is one part of the fused {halves['fused']} in "
            f"{structure.model_class}; PEFT adapts it only together with {', '.join(missing)}.",
            location=Location("recipe", "target_modules"),
            evidence=(
                Measurement("get_peft_model", f"{error.type}: {error.message}", "installed PEFT"),
                Measurement("fused experts", _shapes(experts), structure.model_class),
            ),
            proof=Proof("executed", "PEFT refused the config on the real class"),
            fixes=(
                Fix(
                    f"Target the other part too: {', '.join(missing)}.",
                    "unsafe",
                    (Edit("target_modules", [*target_entries(recipe), *missing]),),
                ),
            ),
            explains=("attaches",),
        )

    def _converted_away(
        self, structure: Structure, recipe: Recipe, lost: list[ModuleGroup]
    ) -> Finding:
        """PEFT made parameters of the names; linear layers of the same names are left out."""
        names = sorted({group.leaf for group in lost})
        patterns = quoted([group.pattern for group in lost], 3)
        return self.finding(
            "info" if recipe.origins.get("target_modules") == "proposed" else "warning",
            f"PEFT turns {quoted(names)} into parameters of the experts in {structure.model_class} "
            f"and with that leaves out {sum(group.count for group in lost)} linear layers of the "
            f"same names ({patterns}).",
            location=Location("recipe", "target_modules"),
            evidence=(
                Measurement("converted by PEFT", quoted(map(str, structure.injection.converted)),
                        "installed PEFT"),
                Measurement("linear layers of these names without adapter",
                        quoted([f"{group.count} x {group.pattern}" for group in lost], 6),
                        structure.model_class),
            ),
            proof=Proof("measured", "PEFT was run on the real class and the result was counted"),
            fixes=(
                Fix(
                    "This PEFT adapts either these layers or the experts under these names; to "
                    "train the attention alone, name only its layers.",
                    "manual",
                ),
            ),
            explains=("attaches",),
        )  # fmt: skip

    def _passed_by(
        self, structure: Structure, recipe: Recipe, experts: list[ModuleGroup]
    ) -> Finding:
        adapted = sorted({group.leaf for group in structure.groups if group.adapted})
        left = sum(group.parameters for group in experts)
        share = left / max(structure.total_parameters, 1)
        # What we proposed ourselves is the most that this PEFT can do: told, but no reason to stop.
        proposed = recipe.origins.get("target_modules") == "proposed"
        return self.finding(
            "info" if proposed else "warning",
            f"The experts of {structure.model_class} are fused parameters that the targets pass by:"
            f" {share:.0%} of the model gets no adapter; only {quoted(adapted, 6)} do.",
            location=Location("module", experts[0].pattern),
            evidence=(
                Measurement(
                    "fused experts without adapter", _shapes(experts), structure.model_class
                ),
                Measurement(
                    "their share",
                    f"{left:,} of {structure.total_parameters:,} parameters",
                    "counted on the meta device",
                ),
                Measurement(
                    "target_parameters in this PEFT",
                    "supported" if _supported() else "not supported",
                    "its LoraConfig",
                ),
            ),
            proof=Proof("measured", "PEFT was run on the real class and the result was counted"),
            fixes=_target_parameters(recipe, experts),
            explains=("attaches",),
        )


def _lost(structure: Structure) -> list[ModuleGroup]:
    """Linear layers (dense blocks, shared experts) whose names PEFT has converted away."""
    converted = structure.injection.converted
    names = {name for item in converted for name in names_in(item.entry)}
    return [
        group for group in offered_layers(structure) if group.leaf in names and not group.adapted
    ]


def _means_experts(recipe: Recipe) -> bool:
    """Whether the targets speak of the MLP: a recipe for the attention alone is left in peace."""
    entries = target_entries(recipe)
    if "all-linear" in entries:
        return True
    return any(means_mlp(name) for entry in entries for name in names_in(entry))


def _supported() -> bool:
    return "target_parameters" in (lora_config_fields() or ())


def _target_parameters(recipe: Recipe, experts: list[ModuleGroup]) -> tuple[Fix, ...]:
    if not _supported():
        return (
            Fix("This PEFT cannot adapt fused parameters: upgrade to 0.17 or later.", "manual"),
        )
    names = sorted({suffix(group.pattern) for group in experts})
    present = [name for name in recipe.get("target_parameters") or () if name not in names]
    edits = [Edit("target_parameters", present + names)]
    if recipe.get("lora_dropout"):
        edits.append(Edit("lora_dropout", 0.0))
    return (
        Fix(f"Adapt the experts too: target_parameters {', '.join(names)}.", "unsafe",
            tuple(edits)),
    )  # fmt: skip


def _shapes(groups: list[ModuleGroup]) -> str:
    return quoted([f"{group.count} x {group.pattern} {list(group.shape)}" for group in groups], 4)
