"""LD628: the model's own `add_adapter` leaves the classification head frozen and unsaved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

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
    adds_without_wrapper,
    quoted,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import Structure


class HeadLeftOutByAddAdapter(Rule):
    """An adapter with a classification `task_type` was added by `model.add_adapter` or
    `inject_adapter_in_model`, and the head is neither trained nor saved.

    ## What happens
    Nothing is raised. The adapters are trained with a head that keeps its initial values. If the
    checkpoint has no weights for it, these are random, and random again after every loading: the
    saved adapter was trained for another head.

    ## Why
    Adding `classifier` and `score` to `modules_to_save` for `SEQ_CLS` and `TOKEN_CLS` is done by
    `get_peft_model`, in its wrapper class. transformers' `add_adapter` injects the layers without a
    wrapper and ignores the task type.

    ## Versions
    All versions of transformers that have `add_adapter`, and all of PEFT.

    ## Fix
    Name the head: `LoraConfig(..., modules_to_save=["classifier"])`. Or `get_peft_model`. A head
    that is already trained and in the checkpoint may stay as it is.

    ## Links
    https://huggingface.co/docs/transformers/peft
    """

    code = "LD628"
    name = "head-left-out-by-add-adapter"
    summary = "add_adapter leaves the classification head frozen, and it is not saved."
    depth = "meta"
    descriptions = (
        Symptom(
            r"\badd_adapter\b.{0,80}\b(?:head|classifier|score)\b.{0,40}"
            r"\b(?:not trained|frozen|untrained|not saved|never trained)"
        ),
    )
    told_as = ("The classification head is not trained with LoRA.",)
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
        if case.has("program"):
            yield from self._in_script(case)
        heads = case.structure.left_out_heads
        if not heads:
            return
        names = sorted({path.rpartition(".")[2] for path in heads})
        yield self.finding(
            "warning",
            f"{quoted(heads, 3)} is frozen and not saved with the adapter, which was added "
            "without get_peft_model: unless the checkpoint has it, it is random after every "
            "loading.",
            location=Location("module", heads[0]),
            evidence=(
                Measurement("trained", f"no parameter of {quoted(heads, 3)}",
                            f"requires_grad in {case.structure.model_class}"),
                Measurement("get_peft_model", f"trains and saves {quoted(names, 3)} for this task "
                            "type", "installed PEFT, its wrapper class"),
            ),
            proof=Proof("measured", "requires_grad and the adapter's config were read from the "
                                    "model"),
            fixes=(
                Fix(f"Name it in the adapter config: modules_to_save={names!r}. Or "
                    "get_peft_model(model, config), which does this automatically.", "manual"),
            ),
        )  # fmt: skip

    def _in_script(self, case: Case) -> Iterator[Finding]:
        """The script is not run: which heads PEFT's wrapper would keep is asked of it."""
        call = adds_without_wrapper(case.program.roles)
        saved = case.recipe.get("modules_to_save") or ()
        kept = case.structure.wrapper_keeps
        heads = [name for name in _heads(case.structure, kept) if not _is_saved(name, saved)]
        if call is None or not heads:
            return
        missing = _not_in_checkpoint(case, heads)
        fate = (
            "the checkpoint has no weights for it, so it is random after every loading"
            if missing
            else "unless the checkpoint has it, it is random after every loading"
        )
        argument = f"modules_to_save={sorted(heads)!r}"
        yield self.finding(
            "error" if missing else "warning",
            f"{quoted(heads, 3)} stays frozen and is not saved: {call.method} of transformers "
            f"ignores the task type, and {fate}.",
            location=Location("file", call.place.file, call.place.line),
            evidence=(
                Measurement("the call", " ".join(call.span.text.split())[:120], str(call.place)),
                Measurement("get_peft_model", f"trains and saves {quoted(sorted(heads), 3)} for "
                            f"{case.recipe.get('task_type')}", "installed PEFT, its wrapper class"),
                *(Measurement("not in the checkpoint", name, "names of the checkpoint's weights")
                  for name in missing[:3]),
            ),
            proof=Proof("read", "the calls were followed in the order in which the script makes "
                        "them"),
            fixes=(
                Fix(f"Name it in the adapter config: {argument}.", "unsafe",
                    (Edit("modules_to_save", [*saved, *sorted(heads)]),)),
                Fix("Or use get_peft_model(model, config) instead, which does this automatically.",
                    "manual"),
            ),
        )  # fmt: skip


def _heads(structure: Structure, kept: tuple[str, ...]) -> list[str]:
    """The names among ``kept`` that a module of the model has."""
    names = {part for group in structure.groups for part in group.pattern.split(".")}
    return [name for name in kept if name in names]


def _is_saved(name: str, saved: Sequence[str]) -> bool:
    """As PEFT compares: the end of the path is the entry."""
    return any(name.endswith(str(entry)) for entry in saved)


def _not_in_checkpoint(case: Case, heads: list[str]) -> list[str]:
    """Patterns of these heads' weights that loading makes at random."""
    if case.source.kind not in ("folder", "hub") or not case.has("loading"):
        return []
    return [
        weight.pattern
        for weight in case.loading.missing
        if weight.drawn and set(weight.pattern.split(".")) & set(heads)
    ]
