"""LD205: a target is a module that PEFT cannot adapt."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_doctor.case import Case
from lora_doctor.evidence.structure import Structure
from lora_doctor.rule import Edit, Example, Finding, Fix, Location, Measure, Proof, Rule, Symptom
from lora_doctor.targets import cover_of, names_in, offered_layers, quoted, target_entries

_MESSAGE = re.compile(r"Target module (?P<module>.+?) is not supported", re.DOTALL)


class UnsupportedTarget(Rule):
    """A target matches a module that PEFT has no adapter for: a container, a norm, a dropout, a
    convolution of the wrong kind, or a class of the model's own.

    ## What happens
    `get_peft_model` raises `Target module ... is not supported. Currently, only ...`.

    ## Why
    The entry names a block instead of the linear layers in it (`mlp`, `self_attn`), or a regular
    expression is open at its end and also matches the dropout or the norm beside the layer.

    ## Versions
    All of PEFT; the list of supported modules grows with each release.

    ## Fix
    The linear layers of the model for the same roles, by name.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD205"
    name = "unsupported-target-module"
    summary = "A target is a module that PEFT cannot adapt."
    depth = "meta"
    symptoms = (Symptom(r"Target module .{1,2000}? is not supported"),)
    examples = (
        Example("broken", "arch:llama", {"target_modules": ["mlp"]}, why="a block, not a layer"),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": r".*layers.*(q_proj|layernorm)"},
            why="the expression also matches the norms",
        ),
        Example("healthy", "arch:llama", {"target_modules": ["gate_proj", "down_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
        error = structure.injection.error
        if error is None or case.recipe.peft_type != "LORA":
            return
        hit = _MESSAGE.search(error.message)
        if not hit:
            return
        entries = target_entries(case.recipe)
        module = hit["module"].split("(")[0].strip()
        names = [name for entry in entries for name in names_in(entry)]
        cover = _inside(structure, names) or cover_of(structure, names)
        yield self.finding(
            "error",
            f"target_modules {quoted(entries, 6)} match a {module}, which this PEFT cannot adapt.",
            location=Location("recipe", "target_modules"),
            evidence=(
                Measure("get_peft_model", f"{error.type}: {error.message[:300]}",
                        "installed PEFT, meta device"),
                Measure("linear layers for these roles", quoted(cover), structure.model_class),
            ),
            proof=Proof("executed", "PEFT refused the config on the real class"),
            fixes=(
                Fix(
                    f"Target the linear layers themselves: {', '.join(cover)}.",
                    "safe",
                    (Edit("target_modules", cover),),
                ),
            )
            if cover
            else (Fix("Name the linear layers inside it.", "manual"),),
            explains=("attaches",),
        )  # fmt: skip


def _inside(structure: Structure, names: list[str]) -> list[str]:
    """The linear layers in the blocks that the names stand for, such as those in ``mlp``."""
    groups = [
        group
        for group in offered_layers(structure)
        if group.leaf in names or set(names) & set(group.pattern.split("."))
    ]
    return list(dict.fromkeys(group.leaf for group in groups))
