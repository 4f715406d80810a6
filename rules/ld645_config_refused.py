"""LD645: the installed transformers refuses the model's config.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    ConfigError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import StaticEvidence

_QUANTIZATION = "quantization_config"


class ConfigRefused(Rule):
    """`AutoConfig.from_pretrained` raises for the model's `config.json`: nothing of the model can
    be loaded.

    ## What happens
    Loading the model ends in the exception that is quoted, before any weight is read.

    ## Why
    The file was written by hand, by another release, or by a program that writes every key:
    transformers 4 takes `"quantization_config": null` for a quantization (`'NoneType' object has no
    attribute 'to_dict'`), and transformers 5 checks the types and the sizes of what it reads.

    A missing package is not reported here.

    ## Versions
    Asked of the installed transformers.

    ## Fix
    Remove or correct the entry in a copy of the folder; for a config of another release, install
    the release that wrote it (`transformers_version`).

    ## Links
    https://huggingface.co/docs/transformers/main_classes/configuration
    """

    code = "LD645"
    name = "config-refused"
    summary = "The installed transformers refuses the model's config.json."
    depth = "meta"
    symptoms = (
        Symptom(r"'NoneType' object has no attribute 'to_dict'", "transformers<5"),
        Symptom(
            r"\b(?:Value|StrictDataclass\w*)Error: \S",
            raised_in=r"transformers[\\/](?:models[\\/](?!auto\b)\w+[\\/]configuration_\w+"
            r"|configuration_utils|modeling_rope_utils)\.py",
            weight=-1,
        ),
        Symptom(r"`rope_scaling`(?:'s \w+ field)? must be (?:a dictionary|one of|a float)"),
    )
    examples = (
        Example(
            "broken",
            "tests.refused_configs:without_quantization",
            {"target_modules": ["q_proj"]},
            requires={"transformers": "<5"},
            loaded=True,
            depth="meta",
            why="quantization_config is null",
        ),
        Example(
            "broken",
            "tests.refused_configs:with_unknown_layers",
            {"target_modules": ["q_proj"]},
            requires={"transformers": ">=5"},
            loaded=True,
            depth="meta",
            why="layer_types names a kind of layer that there is not",
        ),
        Example(
            "healthy",
            "tests.refused_configs:without_quantization",
            {"target_modules": ["q_proj"]},
            requires={"transformers": ">=5"},
            loaded=True,
            depth="meta",
            why="transformers 5 takes null for no quantization",
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj"]}, depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("structure"):
            return
        error = case.store.error("structure")
        if not isinstance(error, ConfigError) or error.remedy is not None or error.cause is None:
            return
        null = _QUANTIZATION in case.static.config and case.static.quantization_config is None
        version = case.environment.version("transformers") or "the installed release"
        yield self.finding(
            "error",
            f"transformers {version} refuses config.json: {str(error.cause)[:300]}.",
            location=Location("file", "config.json"),
            evidence=(
                Measurement("exception", str(error.cause)[:500], "AutoConfig.from_pretrained"),
                Measurement(
                    "written by transformers",
                    str(case.static.config.get("transformers_version") or "not stated"),
                    "config.json",
                ),
            ),
            proof=Proof("executed", "AutoConfig.from_pretrained was called"),
            fixes=(Fix(_what_to_do(case.static, null), "manual"),),
        )


def _what_to_do(static: StaticEvidence, null: bool) -> str:
    if null:
        return f"Remove {_QUANTIZATION}, which is null, from config.json of a copy of the folder."
    if static.auto_map and not any(one.auto_class == "AutoConfig" for one in static.auto_map):
        return (
            "Name the class of the config in auto_map of config.json, as AutoConfig: it names "
            "other classes of the repository only."
        )
    return "Correct config.json in a copy of the folder, or install the transformers that wrote it."
