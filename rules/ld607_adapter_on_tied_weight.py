"""LD607: an adapter on a tied layer is also merged into the layer it is tied to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Proof,
    Rule,
    Symptom,
    lora_config_fields,
    quoted,
)
from lora_doctor.rules._ablation import with_edits
from lora_doctor.rules._round_trip import (
    TIE,
    comes_back,
    difference,
    matches,
    round_trip,
    sharing,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import TiedPart, Verification

_UNQUANTIZED = (Edit("load_in_4bit", False), Edit("load_in_8bit", False))


class AdapterOnTiedWeight(Rule):
    """An adapter is on a layer that shares its weight with another module, and merging changes
    both.

    ## What happens
    The loss falls, and the base model with the adapter works well. The merged model outputs
    nonsense. Nothing is raised.

    ## Why
    With tied embeddings (`tie_word_embeddings`) the input embeddings and the output layer are one
    matrix. An unmerged adapter on one of them changes only that one; merging adds its product to
    the shared matrix, and so to the other one too. Some models tie whole stacks of layers.

    ## Versions
    All versions of PEFT (0.13 and later warn). `ensure_weight_tying` came with 0.18 and is meant
    for `modules_to_save`; with an adapter it makes things worse.

    ## Fix
    Do not adapt the tied layer, or train it in full with `modules_to_save`; the offered edits were
    executed. Untying before training needs code: clone the weight of the output layer and set
    `tie_word_embeddings=False` before `get_peft_model`. If you do not merge, there is nothing to
    fix.

    ## Links
    https://github.com/huggingface/peft/issues/2018, https://github.com/huggingface/peft/issues/2777
    """

    code = "LD607"
    name = "adapter-on-tied-weight"
    summary = "Merging an adapter on a tied layer also changes the layer it is tied to."
    depth = "tiny"
    symptoms = (
        Symptom(
            r"`?tie_word_embeddings=True`? and the tied_target_modules=", "PEFT 0.13 and later"
        ),
        Symptom(
            r"tied layer is part of the adapter, but (?:`?ensure_weight_tying`? is not set"
            r"|no implementation exists to tie)"
        ),
    )
    descriptions = (
        Symptom(r"\bmerg\w*\b.{0,60}\btied\b"),
        Symptom(
            r"\bafter merging\b.{0,60}\b(?:model|output|generat\w*)\b.{0,40}"
            r"\b(?:unusable|nonsense|garbage|gibberish|broken)"
        ),
        Symptom(
            r"\A(?=.*\b(?:after|when) merging\b)(?=.*\b(?:quality|worse|degrad\w*|decrease\w*|"
            r"ruin\w*)\b).+",
            weight=-1,
        ),
    )
    told_as = (
        "After merging the adapter the model is worse.",
        "The merged model gives different outputs than the adapter.",
        "After merging, the output is not the same as with the adapter loaded.",
    )
    examples = (
        Example(
            "broken",
            "arch:gpt2",
            {"target_modules": ["c_attn", "lm_head"]},
            why="the head's weight is also the embedding's",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "lm_head"]},
            why="not tied: the head has a matrix of its own",
        ),
        Example(
            "healthy",
            "tests.models:untied_llama",
            {"target_modules": ["q_proj", "lm_head"], "task_type": "CAUSAL_LM"},
            why="untied by hand before the adapters, which is what the fix says",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen, saving = round_trip(case)
        parts = [part for part in saving.tied if part.how == "adapter"]
        if not parts:
            return
        merge = seen.check("merge")
        if merge is not None and merge.status == "skipped" and case.recipe.quantized:
            # Merging is done on the unquantized model later: tried there.
            seen = with_edits(case, _UNQUANTIZED)
            merge = seen.check("merge")
        if merge is not None and merge.status == "failed":
            yield self._merged_into_twins(case, seen, parts)

    def _merged_into_twins(self, case: Case, seen: Verification, parts: list[TiedPart]) -> Finding:
        names = quoted([part.path for part in parts], 3)
        reload = seen.check("save-reload")
        unloadable = bool(case.recipe.get(TIE)) and reload is not None and reload.status == "failed"
        return self.finding(
            "error" if unloadable else "warning",
            f"Merging will change the model: {names} shares its weight with "
            f"{quoted([part.shares_with for part in parts], 3)}, so the adapter is merged into "
            "both." + (" Loading the saved adapter fails as well." if unloadable else ""),
            location=Location("recipe", "target_modules"),
            evidence=(
                *sharing(parts),
                *difference(seen, "merge", "logits after merging"),
                *difference(seen, "save-reload", "logits after saving and loading the adapter"),
            ),
            proof=Proof("executed", "the adapters were merged and the logits compared"),
            fixes=tuple(_without_twins(case, parts)),
            explains=("merge", "save-reload") if unloadable else ("merge",),
        )


def _without_twins(case: Case, parts: list[TiedPart]) -> Iterator[Fix]:
    """Edits with which merging keeps the logits; each was run."""
    paths = [part.path for part in parts]
    off = _off_targets(case, paths)
    names = quoted(paths, 3)
    if off and comes_back(case, off):
        yield Fix(f"Do not adapt {names}: it is then not trained.", "unsafe", off)
    if off and case.settings.depth == "tiny":
        for whole in _whole(case, parts):
            edits = (*off, *whole)
            if comes_back(case, edits):
                text = f"Train {names} in full instead (modules_to_save): takes more memory"
                text += ", and keeps it tied." if edits[-1].key == TIE else "."
                yield Fix(text, "unsafe", edits)
                break
    yield Fix(
        "To keep the adapter, untie before get_peft_model: give the output layer a clone of "
        "its weight and set config.tie_word_embeddings = False. Or do not merge.",
        "manual",
    )


def _whole(case: Case, parts: list[TiedPart]) -> list[tuple[Edit, ...]]:
    """Ways to train the tied layers whole, the plain one first."""
    kept = list(case.recipe.get("modules_to_save") or ())
    own = Edit("modules_to_save", [*kept, *(part.path for part in parts)])
    if TIE not in (lora_config_fields() or ()):
        return [(own,)]
    twins = Edit("modules_to_save", [*kept, *(part.shares_with for part in parts)])
    tie = Edit(TIE, True)
    return [(own,), (own, tie), (twins, tie)]


def _off_targets(case: Case, paths: list[str]) -> tuple[Edit, ...]:
    """The recipe without adapters on these paths; empty when the keys cannot say it."""
    targets: Any = case.recipe.get("target_modules")
    if isinstance(targets, list):
        left = [entry for entry in targets if not any(matches(path, entry) for path in paths)]
        return (Edit("target_modules", left),) if left else ()
    if "exclude_modules" not in (lora_config_fields() or ()):
        return ()
    excluded: Any = case.recipe.get("exclude_modules") or []
    if not isinstance(excluded, list):
        return ()
    return (Edit("exclude_modules", [*excluded, *paths]),)
