"""LD574: FSDP is to wrap a class that the model does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

_KEYS = ("fsdp_transformer_layer_cls_to_wrap", "transformer_layer_cls_to_wrap")


class FsdpWrapsAbsentClass(Rule):
    """`fsdp_transformer_layer_cls_to_wrap` names a class that the model does not have.

    ## What happens
    `Could not find the transformer layer class to wrap in the model` when the model is prepared.

    ## Why
    The config of accelerate was written for another architecture: `LlamaDecoderLayer` is no class
    of a Mistral or a Qwen model.

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
    summary = "FSDP is to wrap a class that the model does not have."
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
        for name, (file, line) in wanted.items():
            if has_class(sources, name):
                continue
            layers = layers_of(sources)
            yield self.finding(
                "error",
                f"FSDP is to wrap {name}, which is no class of {quoted(types)}.",
                location=Location("file", file, line),
                evidence=(
                    Measurement("class to wrap", name, file),
                    Measurement("layers of the model", quoted(layers), "installed transformers"),
                ),
                proof=Proof("read", "the code of the installed transformers for this architecture"),
                fixes=(
                    Fix(f"Wrap {quoted(layers)}, or leave the entry out.", "manual"),
                ),
            )  # fmt: skip


def _wanted(case: Case) -> dict[str, tuple[str, int | None]]:
    """The classes that FSDP is to wrap, each with the file and line that asks for it."""
    found: dict[str, tuple[str, int | None]] = {}
    if case.has("program"):
        for launch in case.launches:
            if launch.fsdp:
                names, start = _named(launch.config.get("fsdp_config")), launch.place
                found.update(dict.fromkeys(names, (start.file, start.line)))
        return found
    set_up, files = case.set_up, case.side_files
    if files.fsdp and files.accelerate is not None:
        names = _named(files.accelerate.get("fsdp_config"))
        found.update(dict.fromkeys(names, (files.accelerate_file, 1)))
    for key in ("fsdp_config", *_KEYS):
        value = set_up.entries.get(key)
        names = _named(value if isinstance(value, Mapping) else {key: value})
        place = set_up.places.get(key)
        if place is not None and set_up.entries.get("fsdp"):
            found.update(dict.fromkeys(names, (place.file, place.line)))
    return found


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
