"""LD507: a training script puts adapters on after the optimizer was made, or twice."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Location, Measurement, Proof, Rule


class AdaptersInWrongOrder(Rule):
    """In the training script `get_peft_model` comes after the optimizer was made of the same model,
    or comes twice.

    ## What happens
    Nothing is raised. The optimizer holds the base weights, which `get_peft_model` has frozen, and
    none of the adapters: no step changes anything. Called twice, the second call freezes or renames
    what the first one put in, and it is not loaded again.

    ## Why
    `get_peft_model` replaces layers inside the model that it is given. What was made of the model
    before does not know them, and a second call finds a model that is no plain one any more.

    ## Versions
    All of PEFT.

    ## Fix
    Model, then adapters once, then the optimizer of `[p for p in model.parameters() if
    p.requires_grad]`. Only statements that follow one another in the same block are compared; a
    loaded model is judged by what is in it (LD503, LD505).

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD507"
    name = "adapters-in-wrong-order"
    summary = "A training script puts adapters on after the optimizer was made, or twice."
    depth = "static"
    examples = (
        Example(
            "broken",
            "tests/scripts/adapters_too_late.py",
            depth="static",
            why="the optimizer is made first; and get_peft_model is called twice",
        ),
        Example("healthy", "tests/scripts/adapters_first.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        script = case.script
        path = str(script.path)
        proof = Proof("inferred", "read in the source, which was not run")
        for early in script.order.early_optimizers:
            source = f"{script.path.name}, line {early.line}"
            yield self.finding(
                "error",
                f"The optimizer is made of {early.model}.parameters() before get_peft_model in "
                f"line {early.wrapped_line}: it holds no adapter, and what it holds is frozen.",
                location=Location("file", path, early.line),
                evidence=(
                    Measurement("the line", early.code, source),
                    Measurement(
                        "adapters are put on in line", early.wrapped_line, script.path.name
                    ),
                ),
                proof=proof,
                fixes=(Fix("Make the optimizer after get_peft_model.", "manual"),),
            )
        for twice in script.order.wrapped_twice:
            source = f"{script.path.name}, line {twice.line}"
            yield self.finding(
                "error",
                f"get_peft_model is called on {twice.model}, which carries adapters since line "
                f"{twice.first_line}: the first ones are frozen, replaced or not saved.",
                location=Location("file", path, twice.line),
                evidence=(
                    Measurement("the line", twice.code, source),
                    Measurement("called before in line", twice.first_line, script.path.name),
                ),
                proof=proof,
                fixes=(
                    Fix("Keep one of the two, add_adapter(name, config) for a second one of the "
                        "same method, or merge_and_unload() in between.", "manual"),
                ),
            )  # fmt: skip
