"""LD209: entries of modules_to_save or target_parameters name nothing in the model."""

from __future__ import annotations

from collections.abc import Iterator

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
    Structure,
    Symptom,
    quoted,
    require_lora,
    unmatched_entries,
)

_KEYS = ("target_parameters", "modules_to_save")


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
    All of PEFT; `target_parameters` exists from 0.17 on.

    ## Fix
    The entries taken out, which changes nothing: they had no effect. Whoever meant a module of the
    model puts its name there.

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
        rest = [entry for entry in recipe.get(key) or () if entry not in entries]
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
