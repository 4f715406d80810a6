"""LD627: a saved adapter that the installed PEFT cannot load."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Rule, Symptom, quoted
from lora_doctor.rules._peft_config import CONFIG_CLASS
from lora_doctor.rules._saved_adapter import LOADED, base_class, config_file, loaded

if TYPE_CHECKING:
    from lora_doctor.rule_api import AdapterLoading, ErrorReport

#: The one file of weights that PEFT looks for.
_WEIGHTS = "adapter_model.safetensors"
#: Entries that PEFT from 0.8 on writes into every ``adapter_config.json``, asked for or not.
_NEWER = (
    r"use_rslora|use_dora|layer_replication|lora_bias|eva_config|corda_config|exclude_modules|"
    r"trainable_token_indices|target_parameters|qalora_group_size|use_qalora|arrow_config|"
    r"ensure_weight_tying|alora_invocation_tokens|megatron_\w+|loftq_config|rank_pattern|"
    r"alpha_pattern|peft_version"
)


class AdapterRefusedByPeft(Rule):
    """The installed PEFT raises when it loads the adapter, and renaming the tensors does not help.

    ## What happens
    `PeftModel.from_pretrained` raises.

    ## Why
    The message names the cause: the target modules are not in this model, a module of
    `modules_to_save` is not in the file, or the config has an entry that this release does not know
    or no longer accepts. For weights in several files (`adapter_model-00001-of-00002.safetensors`,
    with an index) the message is misleading: PEFT looks for a single file, and then for a hub id.

    ## Versions
    All.

    ## Fix
    Use the base model that it was trained on, and the release of PEFT that the config names
    (`peft_version`) or a newer one. Several files have to be combined into one.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD627"
    name = "adapter-refused-by-peft"
    summary = "The installed PEFT cannot load a saved adapter onto this model."
    depth = "meta"
    about_saved_adapter = True
    symptoms = (
        Symptom(
            rf"{CONFIG_CLASS}\.__init__\(\) got an unexpected keyword argument",
            "an adapter of a newer PEFT, or of one before 0.3",
        ),
        Symptom(r"config that is trying to be loaded is (?:missing required keys|not a valid)"),
        Symptom(
            r"Trying to load old OFT checkpoint|OFT has been updated since PEFT 0\.14",
            "PEFT 0.16 and later",
        ),
        Symptom(r"Specified to load .{1,60}? from state dictionary however they were not present"),
        Symptom(
            r"\b(?:Value|Type)Error: \S",
            raised_in=r"peft[\\/](?:tuners[\\/](?:\w+[\\/])?)?config\.py",
            context=r"\bin (?:from_pretrained|load_adapter|from_peft_type)\b",
            unless=r"Can't find ",
            weight=-1,
        ),
        Symptom(
            r"KeyError: '[A-Z][A-Z0-9_]*'|'[A-Z][A-Z0-9_]*' is not a valid PeftType",
            "a kind of adapter that this PEFT does not have",
            raised_in=r"peft[\\/](?:config|mapping\w*|peft_model)\.py|[\\/]enum\.py",
            context=r"peft[\\/](?:config|mapping|peft_model)",
        ),
        Symptom(r"KeyError: 'peft_type'", "an adapter_config.json without a kind of adapter"),
        Symptom(
            r"__init__\(\) got an unexpected keyword argument",
            "Python before 3.10",
            raised_in=r"peft[\\/](?:utils[\\/])?config\.py",
        ),
        Symptom(
            r"(?:\b\w+Config\.)?__init__\(\) got an unexpected keyword argument "
            rf"'(?:{_NEWER}|enable_lora|merge_weights)'",
            "an adapter of a newer PEFT, or of one before 0.3",
            alone=True,
            weight=2,
        ),
    )
    examples = (
        Example(
            "broken",
            "tests.saved_adapters:of_another_architecture",
            loaded=True,
            depth="meta",
            why="GPT-2's c_attn is in no Llama",
        ),
        Example("healthy", "tests.saved_adapters:lora", loaded=True, depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        loading = case.adapter_loading
        error = loading.landing.error
        if error is None or loading.renaming is not None:
            return
        if case.adapter.weights_name not in case.adapter.weights.files:
            yield self._in_shards(case, loading)
            return
        version = case.adapter.config.get("peft_version")
        wrote = f" (it was written by PEFT {version})" if isinstance(version, str) else ""
        yield self.finding(
            "error",
            f"PEFT cannot load the adapter: {error.type}: {error.message[:200]}",
            location=config_file(case),
            evidence=(
                Measurement("what PEFT raises", str(error)[:500], LOADED),
                base_class(loading),
            ),
            proof=loaded(loading),
            fixes=(
                _without_head(case, error)
                or _without_saved(case, error)
                or Fix(
                    "Load it onto the base model that it was trained on, with the PEFT that "
                    f"saved it{wrote} or a newer one.",
                    "manual",
                ),
            ),
        )

    def _in_shards(self, case: Case, loading: AdapterLoading) -> Finding:
        files = case.adapter.weights.files
        return self.finding(
            "error",
            f"The weights of the adapter are in {len(files)} files, and PEFT looks only for "
            f"{_WEIGHTS}.",
            location=config_file(case),
            evidence=(
                Measurement("files of the index", quoted(files, 4), case.adapter.place),
                Measurement("what PEFT raises", str(loading.landing.error)[:500], LOADED),
            ),
            proof=loaded(loading),
            fixes=(
                Fix(
                    "Combine them into one file: read each with safetensors.torch.load_file "
                    f"and write all tensors with save_file as {_WEIGHTS}.",
                    "manual",
                ),
            ),
        )


def _without_head(case: Case, error: ErrorReport) -> Fix | None:
    """Where PEFT looks for a head that its wrapper keeps for this task type, and the file has
    none: `model.add_adapter` has saved it."""
    task = case.adapter.config.get("task_type")
    if error.type != "KeyError" or task not in ("SEQ_CLS", "TOKEN_CLS"):
        return None
    if case.adapter.config.get("modules_to_save"):
        return None
    return Fix(
        f"The file has no head, which PEFT saves with every {task} adapter: it was added by "
        "model.add_adapter. model.load_adapter(DIR) of transformers can load it, but the head "
        "was not trained and is not in the file. Train again with the head in modules_to_save.",
        "manual",
    )


def _without_saved(case: Case, error: ErrorReport) -> Fix | None:
    """Where the config lists a module in `modules_to_save` that the file has no values for."""
    named = case.adapter.config.get("modules_to_save") or ()
    if error.type != "KeyError" or isinstance(named, str):
        return None
    lost = [str(name) for name in named if f".{name}." in error.message]
    if not lost:
        return None
    return Fix(
        f"The config has {quoted(lost, 3)} in modules_to_save, and the file has no values for it. "
        "Save the adapter again from the model that was trained; without it, take the entry out "
        "of the config, and the module is the base model's.",
        "manual",
    )
