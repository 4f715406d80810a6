"""LD620: a saved adapter whose tensor names match no parameter of the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Rule, Symptom, quoted
from lora_doctor.rules._saved_adapter import LOADED, base_class, header_of, loaded, weights_file

if TYPE_CHECKING:
    from lora_doctor.rule_api import AdapterLoading


class AdapterKeysLandNowhere(Rule):
    """Tensors of a saved adapter have names that match no parameter of the model.

    ## What happens
    Loading the adapter warns about missing adapter keys, or not even that, and continues: tensors
    without a match are dropped, those adapters start at zero, and the model answers like the base
    model. Or PEFT finds none of the target modules and raises.

    ## Why
    The file was saved from a wrapped model (`module.` of DistributedDataParallel, `_orig_mod.` of
    torch.compile) or without PEFT's own functions, or the model's layers have new names:
    transformers 4.52 moved the text model of vision-language models, transformers 5 renamed layers
    of many models (ViT's `query` is `q_proj`). lora-doctor tries other names on the modules of the
    full-size class, and loads the renamed adapter with the installed PEFT.

    ## Versions
    All.

    ## Fix
    Write the adapter with the new names into a new folder: `lora-doctor fix BASE --adapter DIR
    --apply`. The weights stay the same byte for byte. Or load it with the release of transformers
    that it was saved with.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD620"
    name = "adapter-keys-land-nowhere"
    summary = "Tensors of a saved adapter have names that match no parameter of the model."
    depth = "meta"
    about_saved_adapter = True
    symptoms = (
        Symptom(r"Found missing adapter keys( while loading the checkpoint)?", "PEFT 0.14+"),
        Symptom(
            r"Some weights of the adapter checkpoint .* were not used|"
            r"Loading adapter weights from .* led to (unexpected|missing) keys",
            "transformers' load_adapter",
        ),
        Symptom(
            r"KeyError: '[\w.]*\.lora_\w+\.[\w.]*weight'",
            "PEFT before 0.7",
            raised_in=r"peft[\\/](?:utils|peft_model)",
        ),
    )
    descriptions = (
        Symptom(
            r"\badapter keys?\b.{0,80}\b(?:renamed|(?:do|does|did)(?: not|n.t) match"
            r"|match(?:es)? nothing|unexpected|missing)\b"
        ),
        Symptom(
            r"\b(?:load\w*|adapter)\b.{0,60}\b(?:outputs?|answers?|predictions?|results?|respo"
            r"nds?|behaves?)\b.{0,40}\b(?:identical to|same as|exactly like)\b.{0,15}\bbase\b"
        ),
        Symptom(
            r"\A(?=.*\bload\w*)(?=.*\b(?:adapter|lora)\b)(?=.*\b(?:identical|the same|no (?:ef"
            r"fect|difference))\b.{0,40}\b(?:base|original|untrained)\b).+"
        ),
    )
    told_as = (
        "After loading the adapter the outputs are the same as those of the base model.",
        "Applying the trained LoRA has no effect, nothing changes in the output.",
        "The keys of the adapter file do not match the model, and no error is raised.",
        "There is no difference between the outputs of the base model and the LoRA model.",
        "The fine-tuned model gives the same results as the base model.",
        "The loaded adapter does nothing at inference.",
        "The model answers as before, as if no training happened.",
    )
    examples = (
        Example(
            "broken",
            "tests.saved_adapters:of_a_distributed_model",
            loaded=True,
            depth="meta",
            why="`module.` of DistributedDataParallel in every name",
        ),
        Example(
            "broken",
            "tests.saved_adapters:vit_of_before_transformers_5",
            loaded=True,
            depth="meta",
            requires={"transformers": ">=5"},
            why="`query` and `value` of a ViT are `q_proj` and `v_proj`",
        ),
        Example("healthy", "tests.saved_adapters:lora", loaded=True, depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        loading = case.adapter_loading
        landing, renaming = loading.landing, loading.renaming
        if landing.other_shapes or not (landing.nowhere or renaming):
            return
        lost = len(landing.nowhere) if landing.error is None else landing.tensors
        yield self.finding(
            "error",
            f"{lost} of {landing.tensors} tensors of the adapter match no parameter of "
            f"{loading.model_class}{_because(loading)}.",
            location=weights_file(case),
            evidence=(*_measured(loading, header_of(case)), base_class(loading)),
            proof=loaded(loading),
            fixes=(_fix(case, loading),),
        )


def _because(loading: AdapterLoading) -> str:
    if loading.renaming is not None:
        return f": {loading.renaming.cause}"
    if _renamed_by_peft(loading):
        return ": PEFT renames them while loading, to names that the model does not have"
    return ": it has no parameters with these names"


def _renamed_by_peft(loading: AdapterLoading) -> bool:
    """Whether PEFT looks for tensors under other names than those in the file."""
    pairs = zip(loading.landing.nowhere, loading.landing.looked_for, strict=True)
    return any(looked.replace(".default", "", 1) != name for name, looked in pairs)


def _measured(loading: AdapterLoading, header: str) -> Iterator[Measurement]:
    landing, renaming = loading.landing, loading.renaming
    if landing.error is not None:
        yield Measurement("what PEFT raises", str(landing.error)[:300], LOADED)
    if landing.nowhere:
        yield Measurement("in the file", quoted(landing.nowhere, 3), header)
        yield Measurement("name that PEFT looks for", quoted(landing.looked_for, 3), LOADED)
    if landing.without_value:
        yield Measurement(
            "parameters of the adapter that keep their initial values",
            f"{len(landing.without_value)} of {landing.parameters}",
            LOADED,
        )
    if renaming is None:
        return
    yield Measurement(
        "under other names",
        f"{renaming.example.saved} -> {renaming.example.looked_for}",
        "modules of the model",
    )
    yield Measurement(
        "tensors that match a parameter",
        f"{renaming.fitted} unchanged, {renaming.fits} renamed, of {landing.tensors}",
        "modules of the model",
    )
    again = renaming.landing
    if again is not None:
        yield Measurement(
            "renamed and loaded again", "complete" if again.complete else "not complete", LOADED
        )


def _fix(case: Case, loading: AdapterLoading) -> Fix:
    renaming = loading.renaming
    if renaming is not None and renaming.proven:
        snapshot = case.adapter.snapshot
        folder = case.adapter.folder if snapshot is None else "DIR"
        fetch = f"hf download {snapshot.model_id} --local-dir DIR, and " if snapshot else ""
        return Fix(
            f"Write the adapter with the new names into a new folder: {fetch}lora-doctor fix "
            f"{case.source} --adapter {folder} --apply. PEFT then loads it completely.",
            "manual",
            writes_adapter=True,
        )
    if renaming is None and _renamed_by_peft(loading):
        return Fix(
            "If these are the names of this model, the patch saved_names_stay keeps them when "
            "the adapter is loaded: see lora-doctor explain LD603.",
            "manual",
        )
    return Fix(
        "Load it with the model class and the transformers release that it was saved with.",
        "manual",
    )
