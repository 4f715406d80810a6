"""LD602: what is saved, loaded or merged is not what was trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
from lora_doctor.errors import EvidenceError
from lora_doctor.results.round_trip import AutoLoading, Saving, TiedPart, Vocabulary
from lora_doctor.results.verification import Verification
from lora_doctor.rules._ablation import judged, with_edits
from lora_doctor.static.installed.environment import lora_config_fields
from lora_doctor.text import quoted

_TIE = "ensure_weight_tying"
_UNQUANTIZED = (Edit("load_in_4bit", False), Edit("load_in_8bit", False))


class SavedIsNotTrained(Rule):
    """The model that is loaded or merged later is not the one that was trained, and nothing says
    so while training.

    ## What happens
    The loss falls and everything is saved without an error. Then a trained head is back at its
    first values, a merged model answers nonsense while the adapter on the base answers well,
    tokens that were added are gone, or `AutoPeftModelForCausalLM` refuses the folder.

    ## Why
    An adapter folder holds the adapters and what `modules_to_save` names, nothing else: a head
    that was unfrozen by hand, that stands beside the `PeftModel`, or that the checkpoint does not
    have (a classifier on a base checkpoint) is not in it. And with tied embeddings
    (`tie_word_embeddings`) input and output are one matrix: an adapter on one of them is merged
    into both; a copy that `modules_to_save` trains parts from its twin, and when the merged
    model is saved under a config that still says "tied", loading ties them again and drops one.
    `AutoPeftModelFor...` loads the base with the auto class of the `task_type`, which need not be
    the class that was trained.

    ## Versions
    An adapter on a tied layer: all of PEFT (0.13 and later warn). `ensure_weight_tying` came with
    0.18 for `modules_to_save`; on an adapter it makes things worse. Since PEFT 0.19 merging sets
    `tie_word_embeddings=False` where a copy was trained; before, the saved merged model is wrong.
    Resized embeddings are saved by PEFT 0.9 and later, where it finds the base config.

    ## Fix
    Name whole modules in `modules_to_save`. Leave a tied layer out of the adapters, or train it
    whole; the edits offered have been run. `untie, then train` needs code: clone the weight of the
    output layer and set `tie_word_embeddings=False` before PEFT.

    ## Links
    https://github.com/huggingface/peft/issues/2018, https://github.com/huggingface/peft/issues/2777
    """

    code = "LD602"
    name = "saved-is-not-trained"
    summary = "What is saved, loaded or merged is not what was trained."
    depth = "tiny"
    symptoms = (
        Symptom(
            r"`?tie_word_embeddings=True`? and the tied_target_modules=", "PEFT 0.13 and later"
        ),
        Symptom(r"tied layer is part of the adapter, but `?ensure_weight_tying`? is not set"),
        Symptom(r"will assume that the vocabulary was not modified"),
        Symptom(
            r"Unrecognized configuration class .* for this kind of AutoModel: "
            r"AutoModelFor(CausalLM|Seq2SeqLM)"
        ),
        Symptom(r"Some weights of \w+ were not initialized from the model checkpoint"),
        Symptom(r"Expected target PEFT class: PeftModelFor\w+, but you have asked for"),
    )
    examples = (
        Example(
            "broken",
            "arch:gpt2",
            {"target_modules": ["c_attn", "lm_head"]},
            why="the head's weight is also the embedding's",
        ),
        Example(
            "broken",
            "tests.models:detector_with_frozen_base",
            {"target_modules": ["q_proj", "v_proj"]},
            why="the one part that was left trainable is frozen by PEFT and not saved",
        ),
        Example(
            "broken",
            "tests.models:detector_beside_a_peft_model",
            why="the head stands beside the PeftModel whose folder is saved",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "lm_head"]},
            why="not tied: the head has a matrix of its own",
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
            "tests.models:detector_with_frozen_base",
            {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["detection_head"]},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen = judged(case)
        saving = seen.saving
        if saving is None:
            raise EvidenceError("the training contract stopped before it saved anything")
        # What is trained by mistake is lost by right: another rule has said that it is trained.
        if saving.lost and not saving.lost_elsewhere and "save-reload" not in case.explained:
            yield self._lost(seen, saving)
        if saving.frozen and case.structure.built_in is None:
            yield self._frozen(case, seen, saving)
        if saving.new_heads:
            yield self._new_heads(case, seen, saving)
        if any(part.how == "adapter" for part in saving.tied):
            yield from self._merged_into_twins(case, seen, saving)
        elif saving.merged_reload is not None and saving.merged_reload > _tolerance(seen):
            yield self._tied_again(case, seen, saving)
        if saving.vocabulary is not None and not saving.vocabulary.saved:
            yield self._vocabulary(seen, saving.vocabulary)
        if saving.auto is not None:
            yield self._auto(case, seen, saving.auto)

    # -- modules that are not in the folder -------------------------------------------------------

    def _lost(self, seen: Verification, saving: Saving) -> Finding:
        names = quoted(saving.lost, 4)
        check = seen.check("save-reload")
        place = f"the PeftModel at {saving.wrapped!r}" if saving.wrapped else "the PeftModel"
        if saving.wrapped:
            advice = (
                f"It stands outside {place}: save its state_dict() beside the adapter and load it "
                "again, or wrap the whole model with get_peft_model and name it in modules_to_save."
            )
        else:
            advice = (
                f"Name it in the adapter config, modules_to_save={list(saving.lost)!r}, instead of "
                "making it trainable by hand: PEFT then trains and saves it."
            )
        return self.finding(
            "error",
            f"Trained, but not saved: {names}. After loading the adapter folder it has the values "
            f"from before the training ({saving.lost_parameters:,} parameters).",
            location=Location("module", saving.lost[0]),
            evidence=(
                Measurement(
                    "trained, not in the adapter folder", names, _source(seen, "saved, loaded")
                ),
                Measurement(
                    "parameters lost", saving.lost_parameters, _source(seen, "saved, loaded")
                ),
                *_difference(seen, "save-reload", "logits after loading"),
            ),
            proof=Proof("executed", f"{place} was saved and loaded onto a fresh base"),
            fixes=(Fix(advice, "manual"),),
            explains=("attaches", "save-reload") if check else ("attaches",),
        )

    def _frozen(self, case: Case, seen: Verification, saving: Saving) -> Finding:
        names = quoted(saving.frozen, 4)
        kept = list(case.recipe.get("modules_to_save") or ())
        added = [*kept, *(path for path in saving.frozen if path not in kept)]
        possible = all("*" not in path for path in saving.frozen)
        edit = Fix(
            f"Train and save it with the adapters: modules_to_save: {added}.",
            "unsafe",
            (Edit("modules_to_save", added),),
        )
        words = Fix(
            "Name the modules in modules_to_save, by a common end of their paths.", "manual"
        )
        source = "requires_grad before and after get_peft_model"
        return self.finding(
            "error",
            f"Neither trained nor saved: {names}, which is trainable in the model as it comes and "
            f"which PEFT freezes ({saving.frozen_parameters:,} parameters).",
            location=Location("recipe", "modules_to_save"),
            evidence=(
                Measurement("trainable before the adapters", names, source),
                Measurement("frozen since", f"{saving.frozen_parameters:,} parameters", source),
                Measurement("modules_to_save", quoted(kept) or "not set", "recipe"),
            ),
            proof=Proof("executed", "the adapters were put on, trained and saved"),
            fixes=(edit if possible else words,),
        )

    def _new_heads(self, case: Case, seen: Verification, saving: Saving) -> Finding:
        names = quoted(saving.new_heads, 4)
        kept = list(case.recipe.get("modules_to_save") or ())
        added = [*kept, *(path for path in saving.new_heads if path not in kept)]
        edits: tuple[Edit, ...] = (Edit("modules_to_save", added),)
        targets = case.recipe.get("target_modules")
        if isinstance(targets, list):
            left = [x for x in targets if not any(_named(path, x) for path in saving.new_heads)]
            edits = (Edit("target_modules", left), *edits) if left != targets and left else edits
        return self.finding(
            "error",
            f"The checkpoint has no weights for {names}: they are made at random at every loading, "
            "and the adapter folder will not have them.",
            location=Location("recipe", "modules_to_save"),
            evidence=(
                Measurement("not in the checkpoint", names, "names of its tensors"),
                Measurement("frozen and not saved", f"{saving.new_head_parameters:,} parameters",
                        "requires_grad and modules_to_save after get_peft_model"),
                *_difference(seen, "save-reload", "logits after loading, with a new head"),
            ),
            proof=Proof("executed", "the adapters were saved and loaded onto a base whose head is "
                        "new, as from_pretrained makes it"),
            fixes=(Fix(f"Train and save {names} with the adapters (modules_to_save).",
                       "unsafe", edits),),
            explains=("save-reload",),
        )  # fmt: skip

    # -- tied weights -----------------------------------------------------------------------------

    def _merged_into_twins(
        self, case: Case, seen: Verification, saving: Saving
    ) -> Iterator[Finding]:
        merge = seen.check("merge")
        if merge is not None and merge.status == "skipped" and case.recipe.quantized:
            # Merging is done on the unquantized model later: tried there.
            seen = with_edits(case, _UNQUANTIZED)
            merge = seen.check("merge")
        if merge is None or merge.status != "failed":
            return
        parts = [part for part in saving.tied if part.how == "adapter"]
        names = quoted([part.path for part in parts], 3)
        reload = seen.check("save-reload")
        unloadable = (
            bool(case.recipe.get(_TIE)) and reload is not None and reload.status == "failed"
        )
        yield self.finding(
            "error" if unloadable else "warning",
            f"Merging will change the model: {names} shares its weight with "
            f"{quoted([part.shares_with for part in parts], 3)}, so that the adapter is merged "
            "into both." + (" The adapter does not even load again." if unloadable else ""),
            location=Location("recipe", "target_modules"),
            evidence=(
                *(
                    Measurement(
                        f"weight of {part.path}", f"also {part.shares_with}", "tied parameters"
                    )
                    for part in parts
                ),
                *_difference(seen, "merge", "logits after merging"),
                *_difference(seen, "save-reload", "logits after saving and loading the adapter"),
            ),
            proof=Proof("executed", "the adapters were merged and the logits compared"),
            fixes=tuple(_without_twins(case, parts)),
            explains=("merge", "save-reload") if unloadable else ("merge",),
        )

    def _tied_again(self, case: Case, seen: Verification, saving: Saving) -> Finding:
        parts = [part for part in saving.tied if part.how == "modules_to_save"]
        names = quoted([part.path for part in parts], 3)
        source = _source(seen, "merged, saved, loaded")
        return self.finding(
            "warning",
            f"The merged model, saved and loaded, will not be the trained one: {names} was trained "
            "as a copy, and loading ties it again to the weight that it shared.",
            location=Location("recipe", "modules_to_save"),
            evidence=(
                *(
                    Measurement(
                        f"weight of {part.path}", f"also {part.shares_with}", "tied parameters"
                    )
                    for part in parts
                ),
                *_difference(seen, "merge", "logits after merging, in memory"),
                Measurement(
                    "logits of the merged model after saving and loading",
                    f"relative difference {saving.merged_reload:.3g}",
                    source,
                ),
            ),
            proof=Proof("executed", "the merged model was saved, loaded and run"),
            fixes=(
                *_tied_copies(case, parts),
                Fix(
                    "Before merged.save_pretrained(...) set merged.config.tie_word_embeddings = "
                    "False. Or do not merge: the adapter folder itself loads right.",
                    "manual",
                ),
            ),
        )

    # -- what loading makes of it -----------------------------------------------------------------

    def _vocabulary(self, seen: Verification, found: Vocabulary) -> Finding:
        source = _source(seen, "saved, loaded onto the checkpoint")
        return self.finding(
            "error",
            f"The embeddings were resized from {found.checkpoint_rows} to {found.rows} rows, and "
            "the adapter folder will not have them: the new tokens are lost.",
            location=Location("module", found.module),
            evidence=(
                Measurement("rows of the embeddings", found.rows, f"{seen.model_class}, in memory"),
                Measurement("rows in the checkpoint", found.checkpoint_rows, found.checkpoint),
                Measurement("embeddings in the adapter folder", found.saved, source),
                Measurement("loading it onto the checkpoint", found.outcome, source),
            ),
            proof=Proof("executed", "the adapter was saved and loaded onto the checkpoint"),
            fixes=(
                Fix("Train and save the embeddings with the adapters (takes their memory).",
                    "unsafe", (Edit("modules_to_save", [found.module]),)),
                Fix("Or model.save_pretrained(DIR, save_embedding_layers=True). Either way resize "
                    "the base model before the adapter is loaded.", "manual"),
            ),
        )  # fmt: skip

    def _auto(self, case: Case, seen: Verification, found: AutoLoading) -> Finding:
        what = f"loads {found.loaded}" if found.loaded else f"fails: {found.error}"
        return self.finding(
            "info",
            f"{found.auto_class} will not load this adapter folder as {found.model_class}: it "
            + (f"loads {found.loaded}." if found.loaded else "fails."),
            location=Location("recipe", "task_type"),
            evidence=(
                Measurement("class that was trained", found.model_class, case.structure.loaded_by),
                Measurement(f"{found.auto_class}.from_pretrained", what,
                        _source(seen, "saved, loaded")),
            ),
            proof=Proof("executed", "base and adapters were saved and loaded by that class"),
            fixes=(
                Fix("Load it in two steps: the base with "
                    f"{case.structure.loaded_by}.from_pretrained(...), then "
                    "PeftModel.from_pretrained(base, DIR).", "manual"),
            ),
        )  # fmt: skip


def _without_twins(case: Case, parts: list[TiedPart]) -> Iterator[Fix]:
    """Edits with which merging keeps the logits; each was run."""
    paths = [part.path for part in parts]
    twins = [part.shares_with for part in parts]
    off = _off_targets(case, paths)
    kept = list(case.recipe.get("modules_to_save") or ())
    names = quoted(paths, 3)
    if off and _round_trips(case, off):
        yield Fix(f"No adapter on {names}: it is then not trained.", "unsafe", off)
    if off and case.settings.depth == "tiny":
        tie = (Edit(_TIE, True),)
        if _TIE in (lora_config_fields() or ()):
            candidates: list[tuple[Edit, ...]] = [
                (*off, Edit("modules_to_save", [*kept, *paths])),
                (*off, Edit("modules_to_save", [*kept, *paths]), *tie),
                (*off, Edit("modules_to_save", [*kept, *twins]), *tie),
            ]
        else:
            candidates = [(*off, Edit("modules_to_save", [*kept, *paths]))]
        for edits in candidates:
            if _round_trips(case, edits):
                text = f"Train {names} whole instead (modules_to_save): takes its memory"
                text += ", and keeps it tied." if edits[-1].key == _TIE else "."
                yield Fix(text, "unsafe", edits)
                break
    yield Fix(
        "To keep the adapter there, untie before get_peft_model: give the output layer a clone of "
        "its weight and set config.tie_word_embeddings = False. Or do not merge.",
        "manual",
    )


def _tied_copies(case: Case, parts: list[TiedPart]) -> Iterator[Fix]:
    """PEFT's own tying of the copies, where it has one that works; each was run."""
    if _TIE not in (lora_config_fields() or ()) or case.settings.depth != "tiny":
        return
    kept = list(case.recipe.get("modules_to_save") or ())
    paths = {part.path for part in parts}
    twins = [part.shares_with for part in parts if part.shares_with not in paths]
    others = [entry for entry in kept if not any(_named(path, entry) for path in paths)]
    for edits in (
        (Edit(_TIE, True),),
        (Edit("modules_to_save", [*others, *twins]), Edit(_TIE, True)),
    ):
        if edits[0].value and _round_trips(case, edits):
            yield Fix("Keep the trained copies tied: ensure_weight_tying.", "unsafe", edits)
            return


def _off_targets(case: Case, paths: list[str]) -> tuple[Edit, ...]:
    """The recipe without adapters on these paths; empty when the keys cannot say it."""
    targets: Any = case.recipe.get("target_modules")
    if isinstance(targets, list):
        left = [entry for entry in targets if not any(_named(path, entry) for path in paths)]
        return (Edit("target_modules", left),) if left else ()
    if "exclude_modules" not in (lora_config_fields() or ()):
        return ()
    excluded: Any = case.recipe.get("exclude_modules") or []
    if not isinstance(excluded, list):
        return ()
    return (Edit("exclude_modules", [*excluded, *paths]),)


def _named(path: str, entry: str) -> bool:
    return path == entry or path.endswith(f".{entry}")


def _round_trips(case: Case, edits: tuple[Edit, ...]) -> bool:
    """Whether everything comes back after these edits, run."""
    again = case.again(case.recipe_in_full().edit(edits), case.patches)
    if not again.has("verification"):
        return False
    other = again.verification
    if other.outcome != "passed" or other.saving is None:
        return False
    reloaded = other.saving.merged_reload
    return reloaded is None or reloaded <= _tolerance(other)


def _tolerance(seen: Verification) -> float:
    from lora_doctor.contract.round_trip import MERGE_TOLERANCE

    return MERGE_TOLERANCE.get(seen.dtype, 1e-4)


def _difference(seen: Verification, name: str, what: str) -> tuple[Measurement, ...]:
    """A check of the contract as a line of evidence."""
    check = seen.check(name)
    if check is None or check.status == "skipped":
        return ()
    value = check.detail
    if isinstance(check.value, float):
        value = f"relative difference {check.value:.3g}, {check.expected}"
    return (Measurement(what, value, _source(seen, "executed")),)


def _source(seen: Verification, how: str) -> str:
    return f"{seen.depth} model, {how}"
