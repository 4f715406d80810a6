"""LD205: a target is a module that PEFT cannot adapt."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Edit,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    cover_of,
    names_in,
    naming,
    offered_layers,
    quoted,
    require_named_layers,
    target_entries,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import Structure

_MESSAGE = re.compile(r"Target module (?P<module>.+?) is not supported", re.DOTALL)
#: PEFT knows that some layers of state-space models hand their weight to a kernel.
_BARRED = re.compile(r"Module '(?P<module>[\w.]+)' is incompatible with")
_ALL_BARRED = re.compile(r"Incompatible modules: \{(?P<names>[^}]*)\}")
#: Kinds of modules that every kind of adapter for layers is made for.
_MATRICES = ("linear", "conv1d")
_SAVED_TOO = re.compile(r"\bcannot be applied to modules of type")
#: PEFT's wrappers for these put a new head into modules_to_save by themselves.
_SAVED_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


class UnsupportedTargetModule(Rule):
    """A target matches a module that PEFT cannot adapt: a container, a norm, a dropout, an
    unsupported convolution, a class defined by the model, a layer whose weight is read by a kernel,
    or a module that is already trained in full.

    ## What happens
    `get_peft_model` raises `Target module ... is not supported. Currently, only ...`, or
    `Module 'out_proj' is incompatible with Mamba-based models`, or
    `modules_to_save cannot be applied to modules of type ...`.

    ## Why
    The entry names a block instead of the linear layers in it (`mlp`, `self_attn`), or a regular
    expression is not anchored at its end and also matches the dropout or the norm next to the
    layer. Mamba uses the weights of `out_proj` and `conv1d` without calling the layers. Or a head
    is in `modules_to_save`, where the `SEQ_CLS` wrapper adds it automatically, and is also matched
    as a target, as with `all-linear`.

    ## Versions
    All versions of PEFT; the list of supported modules grows with each release.

    ## Fix
    The names of the model's linear layers for the same roles.

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
        Symptom(r"is not supported\. Currently, only (the following modules|`?torch\.nn\.Linear)"),
        Symptom(r"modules_to_save cannot be applied to modules of type"),
        Symptom(r"Only same embed for query/key/value is supported"),
        Symptom(
            r"Trying to wrap an `?nn\.Parameter`? of layer .{1,200}? which is not a valid target"
        ),
        Symptom(r"Targeting a Conv\dd with groups=\d+ and rank \d+", "PEFT 0.15+"),
        Symptom(r"Only same dim for query/key/value is supported"),
        Symptom(r"was initialized with \d+ dimensional Parameter, but only 2d and 3d"),
        Symptom(r"ModulesToSaveWrapper has no attribute `\d+`", "PEFT before 0.10"),
        Symptom(r"Target module of type .{1,200}? not supported, currently only adapters for"),
        Symptom(r"is not implemented for base layers of type"),
        Symptom(r"does not support \w+ layers with groups > 1"),
        Symptom(r"\b(?:aLoRA|VeLoRA) does not support adapting conv layers"),
        Symptom(r"does not support target modules of type|does not support this layer type"),
        Symptom(
            r"\b(?:Only nn\.Linear layers supported currently"
            r"|Unsupported layer type '?<class '[\w.]+'>)",
            unless=r"proceed at your own risk",
        ),
        Symptom(r"\b(?:trainable_token_indices|\w+Wrapper) cannot be applied to modules of type"),
        Symptom(r"trying to target a module with .{1,200}? that is a child of"),
        Symptom(r"TrainableTokensLayer wraps an unknown layer type"),
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
        Example(
            "broken",
            "arch:distilbert",
            {"target_modules": "all-linear", "task_type": "SEQ_CLS"},
            requires={"peft": ">=0.18"},
            why="the classifier is a target and is trained as a whole",
        ),
        Example(
            "broken",
            "arch:llama",
            {"peft_type": "LILY", "target_modules": ["input_layernorm"], "task_type": "CAUSAL_LM"},
            requires={"peft": ">=0.21"},
            why="each kind of adapter has its own words for it",
        ),
        Example("healthy", "arch:llama", {"target_modules": ["gate_proj", "down_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
        error = structure.injection.error
        require_named_layers(case.recipe)
        if error is None:
            return
        entries = target_entries(case.recipe)
        names = [name for entry in entries for name in names_in(entry)]
        match = "matches" if len(entries) == 1 else "match"
        other_layers = False
        hit, barred = _MESSAGE.search(error.message), _BARRED.search(error.message)
        if hit:
            module = hit["module"].lstrip("( ").split("(")[0].strip()
            what = f"{match} a {module}, which the installed PEFT cannot adapt"
            cover = _inside(structure, names) or cover_of(structure, names)
        elif barred:
            every = _ALL_BARRED.search(error.message)
            refused = re.findall(r"[\w.]+", every["names"]) if every else [barred["module"]]
            what = f"{match} {barred['module']}, whose weight is used without calling the layer"
            cover = _without(structure, names, refused)
        elif _SAVED_TOO.search(error.message):
            recipe = case.recipe
            heads = _SAVED_HEADS.get(str(recipe.get("task_type")), ())
            saved = [*(recipe.get("modules_to_save") or ()), *heads]
            what = f"and modules_to_save ({quoted(saved, 6)}) match the same module"
            if error.message.startswith("trainable_token_indices"):
                saved = [str(structure.input_embeddings).rpartition(".")[2]]
                what = f"and trainable_token_indices both adapt the embeddings ({saved[0]})"
            cover = _without(structure, names, saved)
        else:
            # LoRA says by its own words, above, what it has no layer for.
            other = case.recipe.peft_type != "LORA"
            classes = _no_matrices(structure, names) if other else {}
            unfit = tuple(classes)
            rest = _without(structure, names, unfit) or _without(structure, [], unfit)
            cover = _accepted(case, rest) if classes else []
            if not cover:
                return
            what = f"{match} {quoted(dict.fromkeys(classes.values()), 3)}, for which PEFT has no "
            what += case.recipe.peft_type
            other_layers = True  # whoever names a norm does not mean the layers beside it
        yield self.finding(
            "error",
            f"target_modules {quoted(entries, 6)} {what}.",
            location=Location("recipe", "target_modules"),
            evidence=(
                Measurement("get_peft_model", f"{error.type}: {error.message[:300]}",
                        "installed PEFT, meta device"),
                Measurement("layers that can be adapted", quoted(cover), structure.model_class),
            ),
            proof=Proof("executed", ("PEFT refused the config on the full-size model, on the "
                                    "meta device")),
            fixes=(
                Fix(
                    f"Use layers that can be adapted: {', '.join(cover)}.",
                    "unsafe" if other_layers else "safe",
                    (Edit("target_modules", naming(structure, cover)),),
                ),
            )
            if cover
            else (Fix("Set target_modules to layers that PEFT can adapt.", "manual"),),
            explains=("attaches",),
        )  # fmt: skip


def _no_matrices(structure: Structure, names: list[str]) -> dict[str, str]:
    """The targets that name no linear layer at all, each with the class of what it names."""
    found = {}
    for name in names:
        groups = [group for group in structure.groups if group.leaf == name]
        if groups and all(group.kind not in _MATRICES for group in groups):
            found[name] = groups[0].class_name
    return found


def _accepted(case: Case, names: list[str]) -> list[str]:
    """These names, or that of the embeddings, which are all that some kinds of adapter are for:
    what PEFT takes in place of the targets; empty where that is neither, or cannot be tried."""
    structure = case.structure
    embeddings = str(structure.input_embeddings).rpartition(".")[2]
    for cover in (names, [embeddings]):
        edit = Edit("target_modules", naming(structure, cover))
        try:
            if cover and case.again(case.recipe.edit((edit,)), case.patches).structure.injection.ok:
                return cover
        except EvidenceError:
            return []  # a limit struck, and would again
    return []


def _without(structure: Structure, names: list[str], out: Sequence[str]) -> list[str]:
    """The targets without what cannot be one; of the usual layers where none is listed by name
    (``all-linear``, an expression). PEFT compares the ends of paths."""
    leaves = {group.leaf for group in structure.groups}
    named = [name for name in names if name in leaves]
    if not named:
        named = list(dict.fromkeys(group.leaf for group in offered_layers(structure)))
    return [name for name in named if not any(name.endswith(end) for end in out)]


def _inside(structure: Structure, names: list[str]) -> list[str]:
    """The linear layers in the blocks that the names stand for, such as those in ``mlp``."""
    groups = [
        group
        for group in offered_layers(structure)
        if group.leaf in names or set(names) & set(group.pattern.split("."))
    ]
    return list(dict.fromkeys(group.leaf for group in groups))
