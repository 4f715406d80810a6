"""LD574: FSDP is configured to wrap a class that the model does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_doctor.rule_api import (
    Case,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    quoted,
)
from lora_doctor.static.installed.layer_classes import has_class, layers_of, sources_of

_POLICY, _BY_NAME = "fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"
_KEYS = ("fsdp_transformer_layer_cls_to_wrap", "transformer_layer_cls_to_wrap")


class FsdpWrapsAbsentClass(Rule):
    """`fsdp_transformer_layer_cls_to_wrap` names a class that the model does not have.

    ## What happens
    `Could not find the transformer layer class to wrap in the model` when the model is prepared.

    ## Why
    The config of accelerate was written for another architecture: a Mistral or a Qwen model has no
    `LlamaDecoderLayer`.

    The name is searched in the code of the installed transformers for the architectures that the
    model's `config.json` names; models with code of their own are not judged.

    ## Versions
    All versions of accelerate.

    ## Fix
    By hand: the class of the model's layers, or leave the entry out; accelerate then takes
    `_no_split_modules` of the model.

    ## Links
    https://huggingface.co/docs/accelerate/usage_guides/fsdp
    """

    code = "LD574"
    name = "fsdp-wraps-absent-class"
    summary = "FSDP is configured to wrap a class that the model does not have."
    depth = "static"
    symptoms = (
        Symptom(r"Could not find the transformer layer class"),
        Symptom(r"Transformer layer .{0,60}not found in .{0,40}model"),
    )
    examples = (
        Example(
            "broken",
            "tests/launched/wraps_mistral/train.py",
            depth="static",
            why="a config of accelerate for Mistral, and a Llama model",
        ),
        Example("healthy", "tests/launched/wraps_llama/train.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        wanted = _wanted(case)
        if not wanted:
            return
        static = case.static
        if static.config.get("auto_map"):
            raise EvidenceError("the model has code of its own")
        types = _model_types(static.config)
        sources = sources_of(types) if types else None
        if sources is None:
            raise EvidenceError("the installed transformers has no code for this architecture")
        absent = [(one, missing) for one in wanted if (missing := one.absent_from(sources))]
        if case.has("program") and len(absent) < len(wanted):
            return  # the other commands are for other models
        layers = layers_of(sources)
        for one, missing in absent:
            yield self.finding(
                "error" if one.certain else "warning",
                f"FSDP is configured to wrap {quoted(missing)}, which {quoted(types)} does not "
                "have.",
                location=Location("file", one.file, one.line),
                evidence=(
                    Measurement("class to wrap", quoted(missing), one.file),
                    Measurement("layers of the model", quoted(layers), "installed transformers"),
                ),
                proof=Proof("read", "the code of the installed transformers for this architecture"),
                fixes=(Fix(f"Wrap {quoted(layers)}, or leave the entry out.", "manual"),),
            )


@dataclass(frozen=True)
class _Wanted:
    """The classes that one command or entry has FSDP wrap, and where it does."""

    names: list[str]
    file: str
    line: int | None
    #: Whether it is no comment and no file that only lies there.
    certain: bool = True

    def absent_from(self, sources: str) -> list[str]:
        return [name for name in self.names if not has_class(sources, name)]


def _wanted(case: Case) -> list[_Wanted]:
    if case.has("program"):
        return list(_of_launches(case))
    set_up, files = case.set_up, case.side_files
    found = []
    if files.fsdp and files.accelerate is not None:
        names = _named(files.accelerate.get("fsdp_config"))
        found.append(_Wanted(names, files.accelerate_file, 1))
    for key in ("fsdp_config", *_KEYS):
        value = set_up.entries.get(key)
        names = _named(value if isinstance(value, Mapping) else {key: value})
        place = set_up.places.get(key)
        if place is not None and set_up.entries.get("fsdp"):
            found.append(_Wanted(names, place.file, place.line))
    return [one for one in found if one.names]


def _of_launches(case: Case) -> Iterator[_Wanted]:
    """What starts a program. accelerate itself takes the names under one policy only; a Trainer has
    PEFT make the policy of them, whatever is asked for."""
    for launch in case.launches:
        config = launch.config.get("fsdp_config") if launch.fsdp else None
        policy = str(config.get(_POLICY, "")) if isinstance(config, Mapping) else ""
        taken = case.program.roles.trainer is not None or policy.upper() == _BY_NAME
        names = _named(config) if taken else []
        if names:
            yield _Wanted(names, launch.place.file, launch.place.line, launch.certain)


def _named(config: Any) -> list[str]:
    values = [config.get(key) for key in _KEYS] if isinstance(config, Mapping) else []
    listed = [one for value in values if value for one in
              (value if isinstance(value, list) else str(value).split(","))]  # fmt: skip
    return [str(one).strip() for one in listed if str(one).strip().isidentifier()]


def _model_types(config: Mapping[str, Any]) -> list[str]:
    """The architectures in a config; empty where a part of it does not say which it is."""
    parts = [value for key, value in config.items()
             if key.endswith("_config") and isinstance(value, Mapping)
             and key not in ("quantization_config", "generation_config")]  # fmt: skip
    types = [part.get("model_type") for part in (config, *parts)]
    return [str(one) for one in types] if all(isinstance(one, str) for one in types) else []
