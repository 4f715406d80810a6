"""LD109: buffers that a constructor computes and loading leaves without values."""

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
)

_SHOWN = 8


class BuffersWithoutValues(Rule):
    """Code of the model's repository computes buffers in its constructor (the frequencies of a
    rotary embedding, a table of positions, a mask), and `from_pretrained` of the installed
    transformers does not compute them again.

    ## What happens
    Nothing is raised. The buffers hold whatever was in memory: the loss is NaN, or the model trains
    on wrong positions and gives different outputs in every process.

    ## Why
    transformers 5 constructs a model on the meta device and then fills in the tensors of the
    checkpoint. Buffers registered with `persistent=False` are not in the checkpoint. In
    transformers' own classes `_init_weights` computes them again; code written for transformers 4,
    which kept the constructor's values, does not.

    ## Versions
    transformers 5.

    ## Fix
    Install the transformers that the code was written for. Or compute the buffers in
    `_init_weights` (for the module that has them), or in the forward.

    ## Links
    https://github.com/huggingface/transformers/blob/main/MIGRATION_GUIDE_V5.md
    """

    code = "LD109"
    name = "buffers-without-values"
    summary = "Buffers that a constructor computes have no values once the model is loaded."
    depth = "tiny"
    examples = (
        Example(
            "broken",
            "tests/folders/code_with_buffer",
            requires={"transformers": ">=5"},
            trust_remote_code=True,
            why="frequencies of a rotary embedding that only the constructor computes",
        ),
        Example(
            "healthy",
            "tests/folders/code_with_buffer",
            requires={"transformers": "<5"},
            trust_remote_code=True,
        ),
        Example("healthy", "arch:llama"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        result = case.verification
        if not result.empty_buffers:
            return
        version = case.environment.version("transformers") or ""
        count, first = len(result.empty_buffers), result.empty_buffers[0]
        others = f" and {count - 1} other{'s' * (count > 2)}" if count > 1 else ""
        has = "have" if count > 1 else "has"
        written_for = case.static.config.get("transformers_version")
        install = "transformers<5"
        if isinstance(written_for, str) and written_for.startswith("4."):
            install = f"transformers=={written_for}"
        yield self.finding(
            "error",
            f"{first}{others} {has} no values once the model is loaded: the constructor computes "
            f"them, and from_pretrained of transformers {version} does not keep the result.",
            location=Location("environment", f"transformers {version}"),
            evidence=(
                Measurement(
                    "buffers without values",
                    list(result.empty_buffers[:_SHOWN]),
                    "a tiny model of the class, loaded by from_pretrained",
                ),
                Measurement("such buffers in total", count, "the same model"),
            ),
            proof=Proof(
                "executed",
                "the constructor gives them values; after loading they hold uninitialized memory",
            ),
            fixes=(
                Fix(
                    (f"Install the release that the code was written for: pip install '{install}'"),
                    "manual",
                ),
                Fix(
                    "Compute the buffers in _init_weights, or in the forward, of the repository's "
                    "code.",
                    "manual",
                ),
            ),
            explains=("builds",),
        )
