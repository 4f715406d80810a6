"""LD205: a target is a module that PEFT cannot adapt."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_doctor.case import Case
from lora_doctor.evidence.structure import Structure
from lora_doctor.rule import Edit, Example, Finding, Fix, Location, Measure, Proof, Rule, Symptom
from lora_doctor.targets import cover_of, names_in, offered_layers, quoted, target_entries

_MESSAGE = re.compile(r"Target module (?P<module>.+?) is not supported", re.DOTALL)

#: PEFT knows that some layers of state-space models hand their weight to a kernel.
_BARRED = re.compile(r"Module '(?P<module>[\w.]+)' is incompatible with")


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
    symptoms = (
        Symptom(r"Module '[\w.]+' is incompatible with .{0,80}models", "peft>=0.18"),
        Symptom(r"Target module .{1,2000}? is not supported"),
    )
    examples = (
        Example("broken", "arch:llama", {"target_modules": ["mlp"]}, why="a block, not a layer"),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": r".*layers.*(q_proj|layernorm)"},
            why="the expression also matches the norms",
        ),
        Example(
            "broken",
            "arch:mamba",
            {"target_modules": ["in_proj", "out_proj"]},
            requires={"peft": ">=0.18"},
            why="PEFT refuses a layer whose weight a kernel reads",
        ),
        Example("healthy", "arch:llama", {"target_modules": ["gate_proj", "down_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
        error = structure.injection.error
        if error is None or case.recipe.peft_type != "LORA":
            return
        entries = target_entries(case.recipe)
        barred = _BARRED.search(error.message)
        if barred:
            yield self._barred(structure, entries, barred["module"])
            return
        hit = _MESSAGE.search(error.message)
        if not hit:
            return
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

    def _barred(self, structure: Structure, entries: list[str], module: str) -> Finding:
        """A layer whose weight is read by a fused kernel, so that an adapter would be skipped."""
        error = structure.injection.error
        assert error is not None
        rest = [entry for entry in entries if entry.rpartition(".")[2] != module]
        return self.finding(
            "error",
            f"This PEFT refuses to adapt {module} in {structure.model_class}: its weight is used "
            "without the layer being called.",
            location=Location("recipe", "target_modules"),
            evidence=(
                Measure(
                    "get_peft_model",
                    f"{error.type}: {error.message[:300]}",
                    "installed PEFT, meta device",
                ),
                Measure("other targets", quoted(rest) or "none", "recipe"),
            ),
            proof=Proof("executed", "PEFT refused the config on the real class"),
            fixes=(Fix(f"Leave {module} out.", "safe", (Edit("target_modules", rest),)),)
            if rest
            else (Fix("Name layers that PEFT can adapt.", "manual"),),
            explains=("attaches",),
        )


def _inside(structure: Structure, names: list[str]) -> list[str]:
    """The linear layers in the blocks that the names stand for, such as those in ``mlp``."""
    groups = [
        group
        for group in offered_layers(structure)
        if group.leaf in names or set(names) & set(group.pattern.split("."))
    ]
    return list(dict.fromkeys(group.leaf for group in groups))
