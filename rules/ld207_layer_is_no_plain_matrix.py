"""LD207: a target inherits from nn.Linear but computes something else."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    edits_without,
    quoted,
    require_lora,
)


class LayerIsNoPlainMatrix(Rule):
    """A target is a subclass of `nn.Linear` with a different forward, and PEFT adapts it as if it
    were a plain linear layer.

    ## What happens
    `all-linear` on Llama 4 or Phi-3.5-MoE also adapts the router. The forward raises
    `'tuple' object has no attribute 'dtype'`, or, where the layer applies its matrix in groups,
    `The size of tensor a (…) must match the size of tensor b (…)`.

    ## Why
    PEFT recognises a linear layer by its base class and adds the adapter's output to what the layer
    returns. A router that inherits from `nn.Linear` returns scores and choices together.

    ## Versions
    All versions of PEFT; architectures with such layers came with transformers 4.51 and later.

    ## Fix
    Leave the layer out: with an adapter there, the model does not run.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD207"
    name = "layer-is-no-plain-matrix"
    summary = "A target inherits from nn.Linear but returns something else."
    depth = "tiny"
    symptoms = (
        Symptom(r"'tuple' object has no attribute 'dtype'", raised_in=r"peft[\\/]tuners"),
        Symptom(r"'tuple' object has no attribute 'dtype'\s*$", alone=True),
    )
    examples = (
        Example(
            "broken",
            "arch:llama4_text",
            {"target_modules": "all-linear"},
            requires={"transformers": ">=5"},
            why="the router returns scores and logits",
        ),
        Example(
            "broken",
            "tests.models:linear_in_groups",
            {"target_modules": ["first", "grouped"]},
            why="the matrix is applied group by group, and more comes out than its rows say",
        ),
        Example("healthy", "tests.models:linear_in_groups", {"target_modules": ["first"]}),
        Example("healthy", "arch:llama", {"target_modules": "all-linear"}),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj"], "load_in_4bit": True},
            requires={"bitsandbytes": ">=0.43"},
            why="a weight in 4 bits is packed; its rows are not those that come out",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        require_lora(case.recipe)
        seen = case.verification
        non_linear = seen.observations.non_linear_outputs
        if not non_linear:
            return
        classes = sorted({one.class_name for one in non_linear})
        patterns = {g.pattern for g in case.structure.groups
                    if g.adapted and g.class_name in classes}  # fmt: skip
        source = f"{seen.depth} model, executed"
        evidence = [
            Measurement(
                f"{one.path} ({one.class_name}) returns",
                f"{one.output}; the adapter adds {one.expected}",
                source,
            )
            for one in non_linear[:3]
        ]
        failed = seen.failure is not None and seen.failure.check == "forward"
        if seen.failure is not None and failed:
            error = f"{seen.failure.type}: {seen.failure.message}"
            evidence.append(Measurement("forward", error, source))
        edits = edits_without(case.structure, case.recipe, patterns)
        what = f"Leave out {quoted(sorted(patterns), 3)}"
        yield self.finding(
            "error" if failed else "warning",
            f"{non_linear[0].path} is a {classes[0]}: it returns {non_linear[0].output}, but "
            f"LoRA adds {non_linear[0].expected} to it.",
            location=Location("module", non_linear[0].path),
            evidence=tuple(evidence),
            proof=Proof("executed", "the layer's output was compared with what LoRA adds to it"),
            fixes=(Fix(f"{what}.", "safe", edits) if edits else Fix(f"{what}.", "manual"),),
            explains=("forward",) if failed else (),
        )
