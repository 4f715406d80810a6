"""LD628: the model's own `add_adapter` leaves the head of a classifier frozen and unsaved."""

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
    quoted,
)


class HeadLeftOutByAddAdapter(Rule):
    """An adapter with a `task_type` for classification was put on by `model.add_adapter`, or by
    `inject_adapter_in_model`, and the head is neither trained nor saved.

    ## What happens
    Nothing is raised. The adapters train around a head that stays as it was made. Where the
    checkpoint has no weights for it, that is at random, and at random again after every loading:
    the saved adapter was trained for another head.

    ## Why
    It is `get_peft_model` that makes `classifier` and `score` part of `modules_to_save` for
    `SEQ_CLS` and `TOKEN_CLS`, in the class of its wrapper. transformers' `add_adapter` puts the
    layers in without a wrapper and does not look at the task type.

    ## Versions
    All of transformers that have `add_adapter`, and all of PEFT.

    ## Fix
    Name the head: `LoraConfig(..., modules_to_save=["classifier"])`. Or `get_peft_model`. A head
    that is trained already, and in the checkpoint, may stay as it is.

    ## Links
    https://huggingface.co/docs/transformers/peft
    """

    code = "LD628"
    name = "head-left-out-by-add-adapter"
    summary = "add_adapter leaves the head of a classifier frozen, and it is not saved."
    depth = "meta"
    examples = (
        Example(
            "broken",
            "tests.models:classifier_with_injected_adapter",
            loaded=True,
            why="SEQ_CLS means nothing to inject_adapter_in_model",
        ),
        Example(
            "healthy",
            "tests.models:classifier_with_saved_head",
            loaded=True,
            why="the head is in modules_to_save",
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        heads = case.structure.left_out_heads
        if not heads:
            return
        names = sorted({path.rpartition(".")[2] for path in heads})
        yield self.finding(
            "warning",
            f"{quoted(heads, 3)} is frozen and not saved with the adapter, put on without "
            "get_peft_model: unless the checkpoint has it, it is at random after every loading.",
            location=Location("module", heads[0]),
            evidence=(
                Measurement("trained", f"no parameter of {quoted(heads, 3)}",
                            f"requires_grad in {case.structure.model_class}"),
                Measurement("get_peft_model", f"trains and saves {quoted(names, 3)} for this task "
                            "type", "installed PEFT, its wrapper asked"),
            ),
            proof=Proof("measured", "requires_grad and the adapter's config were read off the "
                        "model"),
            fixes=(
                Fix(f"Name it in the adapter config: modules_to_save={names!r}. Or "
                    "get_peft_model(model, config), which does so by itself.", "manual"),
            ),
        )  # fmt: skip
