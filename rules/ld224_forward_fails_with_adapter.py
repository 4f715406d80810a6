"""LD224: the forward raises with adapters on some layers, and runs without them."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    edits_without,
    excerpt,
    naming,
    offered_layers,
    quoted,
)
from lora_doctor.rules._ablation import holds, said, tried

_MOST_RUNS = 6


class ForwardFailsWithAdapter(Rule):
    """The model's code uses a layer in a way in which PEFT's layer around it cannot be used.

    ## What happens
    PEFT takes the target, and the first forward raises: `'Conv1d' object has no attribute 'stride'`
    on Whisper's `conv1` and `conv2`, of whose strides the encoder computes the length of its input;
    `embedding(): argument 'indices' must be Tensor, not torch.Size` on the positions of LED, whose
    class is an embedding that is called with a shape.

    ## Why
    PEFT puts a layer of its own around the target. That one has `weight`, `bias` and the two sizes,
    and everything else stays on the layer inside (`base_layer`). And it takes what the usual layer
    of that kind takes: a tensor.

    ## Versions
    Depends on the installed PEFT and on the model's code. The recipe was run with adapters on these
    layers and without.

    ## Fix
    Leave these layers out: with an adapter there, the model does not run. Where the recipe names no
    others, the usual ones, which is another training and unsafe.

    ## Links
    https://github.com/huggingface/peft/issues/1846, https://github.com/huggingface/peft/issues/1524
    """

    code = "LD224"
    name = "forward-fails-with-adapter"
    summary = "The forward raises with adapters on some layers, and runs without them."
    depth = "tiny"
    is_comparison = True
    symptoms = (
        Symptom(
            r"'(?:Conv[123]d|Linear|Embedding)' object has no attribute "
            r"'(?:stride|kernel_size|padding|dilation|groups|in_channels|out_channels|num_embeddings"
            r"|embedding_dim|padding_idx|bias)'",
        ),
        Symptom(
            r"embedding\(\): argument 'indices' \(position 2\) must be Tensor, not torch\.Size"
        ),
    )
    examples = (
        Example(
            "broken",
            "arch:whisper",
            {"target_modules": ["conv1", "q_proj", "v_proj"]},
            requires={"transformers": ">=4.40", "peft": ">=0.15"},
            why="the encoder reads conv1.stride",
        ),
        Example(
            "broken",
            "arch:led",
            {"target_modules": ["query", "embed_positions"]},
            requires={"transformers": ">=5"},
            why="the positions are called with the shape of the input",
        ),
        Example(
            "broken",
            "tests.models:linear_with_own_attribute",
            {"target_modules": ["scaled"]},
            why="the forward reads scaled.factor; no other layer has an adapter",
        ),
        Example("healthy", "tests.models:linear_with_own_attribute", {"target_modules": ["plain"]}),
        Example("healthy", "arch:whisper", {"target_modules": ["q_proj", "v_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        failure = case.verification.failure
        if failure is None or failure.check != "forward" or "forward" in case.explained:
            return
        for patterns in _candidates(case)[:_MOST_RUNS]:
            fix = _without(case, patterns)
            if fix is not None and holds(tried(case, fix.edits), ("forward",)):
                yield self._finding(case, patterns, fix, failure.where)
                return

    def _finding(self, case: Case, patterns: frozenset[str], fix: Fix, where: str) -> Finding:
        seen = case.verification
        source = f"{seen.depth} model, executed"
        layers, what = quoted(sorted(patterns), 3), excerpt(said(seen, "forward"))
        return self.finding(
            "error",
            f"The forward of {case.structure.model_class} raises with adapters on {layers}, and "
            f"runs without them: {what}",
            location=Location("module", sorted(patterns)[0]),
            evidence=(
                Measurement("forward", what, source),
                Measurement("raised at", where, source),
                Measurement("without adapters on these layers", "the forward runs", source),
            ),
            proof=Proof(
                "executed", "the forward was run with adapters on these layers, and without"
            ),
            fixes=(fix,),
            explains=("forward",),
        )


def _candidates(case: Case) -> list[frozenset[str]]:
    """Adapted layers to leave out together: of one class, rare classes first; then of one name."""
    adapted = [group for group in case.structure.groups if group.adapted]
    by_class: dict[str, set[str]] = {}
    by_leaf: dict[str, set[str]] = {}
    for group in adapted:
        by_class.setdefault(group.class_name, set()).add(group.pattern)
        by_leaf.setdefault(group.leaf, set()).add(group.pattern)
    sets = [*sorted(by_class.values(), key=len), *sorted(by_leaf.values(), key=len)]
    return list(dict.fromkeys(map(frozenset, sets)))


def _without(case: Case, patterns: frozenset[str]) -> Fix | None:
    """The recipe without these layers. Where it names no more, the usual others: another training,
    and not what was asked for."""
    if any(one.adapted and one.pattern not in patterns for one in case.structure.groups):
        edits = edits_without(case.structure, case.recipe, patterns)
        return Fix(f"Leave out {quoted(sorted(patterns), 3)}.", "safe", edits) if edits else None
    ends = {pattern.rpartition(".")[2] for pattern in patterns}
    others = [one.leaf for one in offered_layers(case.structure) if one.leaf not in ends]
    names = list(dict.fromkeys(others))
    if not names:
        return None
    edit = Edit("target_modules", naming(case.structure, names))
    return Fix(f"Adapt other layers instead: {quoted(names, 4)}.", "unsafe", (edit,))
