"""LD608: a trained copy of a tied weight is lost when the merged model is saved and loaded."""

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
    lora_config_fields,
    quoted,
)
from lora_doctor.rules._round_trip import (
    TIE,
    comes_back,
    difference,
    matches,
    round_trip,
    sharing,
    source,
    tolerance,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import Saving, TiedPart, Verification


class TrainedCopyTiedAgain(Rule):
    """`modules_to_save` trains a copy of a tied weight, and loading the merged model ties the
    weights again.

    ## What happens
    The adapter loads correctly, and the merged model works while it is in memory. After saving and
    loading the merged model, its head (or its input embeddings) is the untrained one, without an
    error.

    ## Why
    With tied embeddings (`tie_word_embeddings`) input and output are one matrix. The copy that
    `modules_to_save` trains is no longer tied, and merging puts it into the model. If the config
    still says `tie_word_embeddings: true`, loading gives both modules the weight that it finds
    first.

    ## Versions
    PEFT before 0.19; from then on merging sets `tie_word_embeddings=False` where a copy was
    trained. `ensure_weight_tying` came with 0.18.

    ## Fix
    `ensure_weight_tying`, where the installed PEFT has it and a run shows that it helps. Otherwise
    by hand: set `merged.config.tie_word_embeddings = False` before saving the merged model, or keep
    the adapter folder, which loads correctly.

    ## Links
    https://github.com/huggingface/peft/issues/2018, https://github.com/huggingface/peft/issues/2777
    """

    code = "LD608"
    name = "trained-copy-tied-again"
    summary = "Loading the merged model ties a weight again that was trained as a separate copy."
    depth = "tiny"
    descriptions = (
        Symptom(
            r"\b(?:it |which |re-?load\w* )?ties (?:\w+ )*?(?:embedding|weights?"
            r"|lm.?head|the head)"
        ),
        Symptom(r"\bbreak\w* (?:the )?(?:weight )?tying\b"),
        Symptom(r"\btie_word_embeddings\b.{0,80}\b(?:overwrit|lost|again|nonsens|reload)"),
        Symptom(
            r"\A(?=.*\b(?:tie_word_embeddings|tied)\b)(?=.*\bmodules_to_save\b)(?=.*\b(?:embed"
            r"_tokens|lm_head|head)\b).+"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests.models:tied_llama",
            {
                "target_modules": ["q_proj"],
                "modules_to_save": ["lm_head"],
                "task_type": "CAUSAL_LM",
            },
            requires={"peft": "<0.19"},
            why="a copy of the tied head, under a config that still says tied",
        ),
        Example(
            "healthy",
            "arch:gpt2",
            {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
            requires={"peft": ">=0.19"},
            why="a copy of a tied head, which merging unties",
        ),
        Example(
            "healthy",
            "tests.models:untied_llama",
            {
                "target_modules": ["q_proj"],
                "modules_to_save": ["lm_head"],
                "task_type": "CAUSAL_LM",
            },
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen, saving = round_trip(case)
        if any(part.how == "adapter" for part in saving.tied):
            return  # merged into both: another matter, and the reason for this difference too
        if saving.merged_reload is not None and saving.merged_reload > tolerance(seen):
            yield self._tied_again(case, seen, saving)

    def _tied_again(self, case: Case, seen: Verification, saving: Saving) -> Finding:
        parts = [part for part in saving.tied if part.how == "modules_to_save"]
        names = quoted([part.path for part in parts], 3)
        return self.finding(
            "warning",
            f"The merged model, saved and loaded, will not be the trained one: {names} was "
            "trained as a separate copy, and loading ties it to the shared weight again.",
            location=Location("recipe", "modules_to_save"),
            evidence=(
                *sharing(parts),
                *difference(seen, "merge", "logits after merging, in memory"),
                Measurement(
                    "logits of the merged model after saving and loading",
                    f"relative difference {saving.merged_reload:.3g}",
                    source(seen, "merged, saved, loaded"),
                ),
            ),
            proof=Proof("executed", "the merged model was saved, loaded and run"),
            fixes=(
                *_kept_tied(case, parts),
                Fix(
                    "Before merged.save_pretrained(...) set merged.config.tie_word_embeddings "
                    "= False. Or do not merge: the adapter folder itself loads correctly.",
                    "manual",
                ),
            ),
        )


def _kept_tied(case: Case, parts: list[TiedPart]) -> Iterator[Fix]:
    """PEFT's own tying of the copies, where it has one that works; each was run."""
    if TIE not in (lora_config_fields() or ()) or case.settings.depth != "tiny":
        return
    kept = list(case.recipe.get("modules_to_save") or ())
    paths = {part.path for part in parts}
    twins = [part.shares_with for part in parts if part.shares_with not in paths]
    others = [entry for entry in kept if not any(matches(path, entry) for path in paths)]
    for edits in (
        (Edit(TIE, True),),
        (Edit("modules_to_save", [*others, *twins]), Edit(TIE, True)),
    ):
        if edits[0].value and comes_back(case, edits):
            yield Fix("Keep the trained copies tied: ensure_weight_tying.", "unsafe", edits)
            return
