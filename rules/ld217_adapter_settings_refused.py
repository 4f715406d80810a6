"""LD217: PEFT refuses the adapter config: settings contradict, or a number does not suit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lora_doctor.rule_api import (
    REMOVE,
    Case,
    Edit,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Recipe,
    Rule,
    Symptom,
    adapter_config_fields,
    names_in,
    target_entries,
    written_values,
)
from lora_doctor.rules._peft_config import says_why

if TYPE_CHECKING:
    from lora_doctor.rule_api import Structure, Verification

#: Keys that say which layers are meant, and which kind of adapter: rules of their own are about
#: these.
_NOT_TRIED = frozenset({"peft_type", "task_type", "target_modules", "modules_to_save"})
#: How many keys are tried.
_MOST = 6
#: What PEFT raises for a setting that it refuses; it raises others for other things, too.
_ABOUT_SETTINGS = ("ValueError", "TypeError")
_REFUSALS = (*_ABOUT_SETTINGS, "NotImplementedError")
_NOT_ABOUT_SETTINGS = ("ImportError", "ModuleNotFoundError")

#: What PEFT says where it does not find a size of the model for a prompt (LD506).
_SIZE_OF_MODEL = re.compile(r"Please specify `\w+` in `peft_config`")


class AdapterSettingsRefused(Rule):
    """Settings of the adapter contradict each other, one is missing, or a number does not suit the
    sizes of the model's layers, and PEFT raises.

    ## What happens
    The config class or `get_peft_model` raises a `ValueError` or a `NotImplementedError`: AdaLoRA
    without `total_step` or with a schedule longer than it, a mistyped `bias` or
    `init_lora_weights`, both `r` and `oft_block_size` in OFT, `lora_bias` with `use_dora`, a
    `block_size` of C3A or a `vector_length` of VB-LoRA that does not divide the width of a layer.
    Where PEFT does not look at a number itself, torch raises: a dropout above 1, a size below 0.

    ## Why
    Each method has limits of its own. Several depend on the widths of the layers, so a config that
    works on one model is refused on another.

    ## Versions
    Depends on the installed PEFT, which is asked.

    ## Fix
    The key without which PEFT accepts the config is removed, or gets the nearest number that it
    accepts. Both change what is trained, so they are applied only with `--unsafe-fixes`.

    ## Links
    https://huggingface.co/docs/peft/package_reference/peft_types
    """

    code = "LD217"
    name = "adapter-settings-refused"
    summary = "PEFT refuses the adapter's settings."
    depth = "meta"
    symptoms = (
        Symptom(r"AdaLoRA does not work when `total_step` is None"),
        Symptom(r"schedule values don't allow for a budgeting phase"),
        Symptom(r"You can only specify either \w+ \(\d+\) or \w+ \(\d+\), but not both"),
        Symptom(r"Either `\w+` or `\w+` must be non-zero\. Currently"),
        Symptom(r"`feedforward_modules` should be a subset of `target_modules`"),
        Symptom(r"`layers_(?:to_transform|pattern)` cannot be used when `target_modules` is a str"),
        Symptom(r"When `layers_pattern` is specified, `layers_to_transform` must also be"),
        Symptom(r"lora_bias=True is (?:only|not) supported"),
        Symptom(r"PeftType\.\w+ does not support DoRA|does not work with use_dora=True"),
        Symptom(r"[Tt]he block size should be a factor of the (?:in|out)put size"),
        Symptom(r"(?:in|out)_features`?(?: \(?\d+\)?)? (?:must|should) be divisible by"),
        Symptom(r"`n_frequency` should be less than or equal to the product"),
        Symptom(r"r should be divisible by gralora_k"),
        Symptom(r"`r` \(\d+\) must be less than or equal to (?:min\()?in_features"),
        Symptom(
            r"`\w+` should be a (?:positive|non-negative) integer(?: value| or 0),? but the value"
            r"|`(?:r|u|topk)` (?:\S+ )?(?:should|must) be a positive integer"
        ),
        Symptom(r"\b(?:ADALORA|AdaLora|DoRA) does not support (?:DoRA|LOFTQ|megatron_core)"),
        Symptom(r"`loftq_config` must be specified when|`?lora_ga_config`? must be provided when"),
        Symptom(
            r"Unknown initialization (?:init_(?:lora_)?weights=|`?init_)"
            r"|init_lora_weights should be 'pissa'"
            r"|Orthogonal initialization requires the LoRA rank to be even"
            r"|`eigens` attribute not found for layer"
        ),
        Symptom(
            r"\bdoes not support (?:DoRA|VeLoRA|KaSA|aLoRA|lora_bias|target_conv_1d_layer)\b"
            r".{0,12}?, (?:please )?set "
        ),
        Symptom(r"\blora\.\w+ does not work with (?!lora_dropout)\w"),
        Symptom(r"(?:MiCA|KaSA) requires `r`|\bDoes not support fan_in_fan_out"),
        Symptom(
            r"must be fully divisible into \[r, r\] blocks|mini_r is divided along the out_features"
            r"|divisible by (?:boft_block_(?:num|size)|'qalora_group_size')"
            r"|The out_features of the base layer must be divisible by group_size"
            r"|The group_size must be divisible by|Invalid combination of boft_n_butterfly_factor"
            r"|\bboft_block_\w+ \(\d+\) must be an? (?:even|multiple)"
            r"|must specify either boft_block"
        ),
        Symptom(
            r"Multiple target layers with different dimensions were specified\. VeRA only"
            r"|results in more shira params than|Please specify `feedforward_modules` in"
            r"|Config specifies more adapter layers|Unsupported model type for adaption prompt"
        ),
        Symptom(
            r"embedding layer is already marked to be trained fully, either specify"
            r"|Cannot ensure weight tying when different token indices are specified"
        ),
        Symptom(r"When prompt_tuning_init='TEXT', \w+ can't be None"),
        Symptom(
            r"dropout probability has to be between 0 and 1, but got",
            context=r"peft[\\/]tuners",
        ),
        # Whatever else PEFT refuses while it reads a config or puts adapters into a model.
        Symptom(
            r"\b(?:Value|Type)Error: \S",
            raised_in=r"peft[\\/]tuners[\\/](?:\w+[\\/])?config\.py",
            unless=r"\bin (?:from_pretrained|load_adapter|from_peft_type)\b",
            weight=-1,
        ),
        Symptom(
            r"\b(?:Value|Type)Error: \S",
            raised_in=r"peft[\\/](?:tuners[\\/]|utils[\\/]other\.py)",
            context=r"\bin (?:get_peft_model|inject_adapter\w*|_?create_and_replace"
            r"|update_layer)\b",
            unless=r"\bin (?:from_pretrained|load_adapter|forward|_?merge\w*|_unload\w*"
            r"|add_weighted_adapter|_check_new_adapter_config|_create_new_module)\b",
            weight=-1,
        ),
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"peft_type": "ADALORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"],
             "init_r": 12, "target_r": 8},
            {"peft": ">=0.15"},
            depth="meta",
            why="the schedule of the ranks needs the number of steps",
        ),
        Example(
            "broken",
            "arch:bert",
            {"peft_type": "C3A", "target_modules": ["query"], "block_size": 100},
            {"peft": ">=0.15"},
            why="768 is no multiple of 100; of 96 it is",
        ),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj"], "bias": "al", "task_type": "CAUSAL_LM"},
            why="bias is none, all or lora_only",
        ),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj"], "init_lora_weights": "gausian"},
            {"peft": ">=0.9"},
            why="PEFT reads the name when it sets the first numbers of the weights",
        ),
        Example(
            "broken",
            "arch:llama",
            {"peft_type": "VERA", "target_modules": ["q_proj"], "vera_dropout": 2.0},
            {"peft": ">=0.12"},
            why="PEFT hands it to torch, which refuses it",
        ),
        Example(
            "healthy",
            "arch:bert",
            {"peft_type": "C3A", "target_modules": ["query"], "block_size": 96},
            {"peft": ">=0.15"},
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj"], "use_dora": True},
                {"peft": ">=0.9"}, depth="meta"),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        if "attaches" in case.explained:
            return
        injection = case.structure.injection
        refused = None if injection.error else _refused_with_numbers(case)
        error = injection.error or (None if refused is None else refused.failure)
        if error is None:
            return
        by_peft = error.type in _REFUSALS and says_why(error.traceback)
        if any(one.key == "target_modules" for one in injection.unmatched):
            return  # what is refused then is a name
        if _SIZE_OF_MODEL.search(error.message) or error.type in _NOT_ABOUT_SETTINGS:
            return  # what is missing then is a size in the model's config, or a package
        named = _named(case, error.message)
        fixes = tuple(_fixes(case, named, set() if by_peft else _of_other_rules(case)))
        if not fixes and not (by_peft and error.type in _ABOUT_SETTINGS):
            return  # no setting is the reason
        kind = f"this {case.recipe.peft_type} adapter"
        if by_peft:
            what = f"PEFT refuses the settings of {kind}: {error.message[:240]}"
        else:
            key = fixes[0].edits[0].key
            value = f"{case.recipe.get(key)!r:.60}"
            what = f"PEFT fails with {key}: {value} in {kind}, and not without: {str(error)[:240]}"
        where = "the class at full size" if injection.error else "a tiny model of the class"
        keys = [fix.edits[0].key for fix in fixes] or named or ["peft_type"]
        yield self.finding(
            "error",
            what,
            location=Location("recipe", keys[0]),
            evidence=(
                Measurement("get_peft_model", f"{error.type}: {error.message[:300]}",
                            f"installed PEFT, {where}"),
                *(Measurement(f"accepted with {fix.edits[0].key}", _value(fix.edits[0]),
                              "installed PEFT, asked again") for fix in fixes),
            ),
            proof=Proof("executed", f"PEFT was given the config on {where}"),
            fixes=fixes or (Fix(_by_hand(case, named), "manual"),),
            explains=("attaches",),
        )  # fmt: skip


def _by_hand(case: Case, named: list[str]) -> str:
    missing = [key for key in named if key not in case.recipe]
    if missing:
        return f"Set {missing[0]} in the adapter config."
    return "Change the settings that the message names."


def _value(edit: Edit) -> Any:
    return "its default" if edit.value is REMOVE else edit.value


def _named(case: Case, message: str) -> list[str]:
    """Keys of this kind of adapter that the message names."""
    fields = adapter_config_fields(case.recipe.peft_type) or ()
    words = re.findall(r"\w+", message.replace("block size", "block_size"))
    return [word for word in dict.fromkeys(words) if word in fields and word not in _NOT_TRIED]


def _of_other_rules(case: Case) -> set[str]:
    """Token ids without a row, which LD630 tells, and keys with a value of another type than is
    declared, which LD223 tells."""
    keys = {"trainable_token_indices"}
    if not case.has("misused_values"):
        return keys
    values = written_values(case)
    return keys | {values[one.number].recipe_key for one in case.misused_values.found}


def _fixes(case: Case, named: list[str], others: set[str]) -> Iterator[Fix]:
    """One edit each with which PEFT takes the config at full size, as far as that can be tried.
    ``others``: keys that are another rule's."""
    own = [key for key in case.recipe.adapter_values() if key not in _NOT_TRIED | others]
    number = next((key for key in named if type(case.recipe.get(key)) is int), None)
    sizes = _sizes(case.structure, case.recipe, int(case.recipe.get(number))) if number else []
    edits = [Edit(str(number), size) for size in sizes]
    edits += [Edit(key, REMOVE) for key in sorted(own, key=lambda key: key not in named)[:_MOST]]
    for edit in edits:
        try:
            accepted = _accepted(case, edit)
        except EvidenceError:
            return  # a limit struck, and would again
        if accepted and edit.value is not REMOVE:
            yield Fix(f"Set {edit.key} to {edit.value}, which suits these layers.", "unsafe",
                      (edit,))  # fmt: skip
            return
        if accepted:
            yield Fix(f"Remove {edit.key}: PEFT then uses its default.", "unsafe", (edit,))


def _sizes(structure: Structure, recipe: Recipe, value: int) -> list[int]:
    """Smaller numbers that may suit the targets: the largest that divides every width, and the
    smallest width."""
    targets = {name for entry in target_entries(recipe) for name in names_in(entry)}
    widths = [
        int(width)
        for group in structure.groups
        if group.leaf in targets and len(group.shape) == 2
        for width in group.shape
    ]
    if not widths:
        return []
    common = math.gcd(*widths)
    divisors = [size for size in range(min(value, common), 1, -1) if common % size == 0]
    return [size for size in dict.fromkeys([*divisors[:1], min(widths)]) if size < value]


def _refused_with_numbers(case: Case) -> Verification | None:
    """The training contract where PEFT ended it while it put the adapters in: some settings are
    read only where the weights of an adapter get their first numbers. With quantized weights that
    is the method's failure, not the setting's."""
    if case.recipe.quantized is not None or not case.has("verification"):
        return None
    failure = case.verification.failure
    return case.verification if failure is not None and failure.check == "attaches" else None


def _accepted(case: Case, edit: Edit) -> bool:
    again = case.again(case.recipe.edit((edit,)), case.patches)
    if not again.structure.injection.ok:
        return False
    return case.structure.injection.error is not None or _refused_with_numbers(again) is None
