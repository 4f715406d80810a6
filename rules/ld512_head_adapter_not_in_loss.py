"""LD512: an adapter on the output head that the loss bypasses: it reads the head's weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    edits_without,
    quoted,
)
from lora_doctor.static.installed.fused_losses import (
    liger_reads_head,
    liger_version,
    trl_refuses_head,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import ModuleGroup

_LIGER = "use_liger_kernel"
_CUT = "cut_cross_entropy"
#: What puts such a loss into a model, by the names that scripts call.
_CALLS = ("apply_liger_kernel_to_", "_apply_liger_kernel_to_instance")
_LOADER = "AutoLigerKernel"


@dataclass(frozen=True)
class _Loss:
    """``name``: of the loss, for a sentence; ``source``: where it is asked for; ``proof``: the line
    that takes the head's weight, with the file that it stands in."""

    name: str
    source: str
    key: str
    proof: Measurement | None


class HeadAdapterNotInLoss(Rule):
    """The output head has adapters (`lm_head` in `target_modules`), and the loss never calls the
    head: a fused loss multiplies the hidden states with `lm_head.weight` itself.

    ## What happens
    Training runs, and the adapters on the head get no gradient: `lm_head.weight` of an adapted
    layer is the frozen weight below the adapter. Trainers of TRL raise `ValueError: Applying a PEFT
    adapter to lm_head is not supported`: newer ones with or without Liger, older ones with it.

    ## Why
    Liger's fused linear cross entropy, cut cross entropy and TRL's own fused head do not compute
    the logits through the layer. They get the weight as a tensor, while PEFT's layer adds the
    adapter's output in `forward`.

    ## Versions
    Read from the source of the installed Liger kernel and TRL. Adapters on the embeddings are not
    affected, and neither is a head in `modules_to_save`, whose weight is the trained one.

    ## Fix
    Remove the head from the targets, or train it in full (`modules_to_save`), or turn the fused
    loss off (`liger_kernel_config={"fused_linear_cross_entropy": False}`).

    ## Links
    https://github.com/linkedin/Liger-Kernel
    """

    code = "LD512"
    name = "head-adapter-not-in-loss"
    summary = "A fused loss reads the head's weight, so the adapters on the head learn nothing."
    depth = "meta"
    symptoms = (
        Symptom(r"Applying a PEFT adapter to `?lm_head`? is not supported"),
        Symptom(r"incompatible with applying a PEFT adapter to `?lm_head`?"),
        Symptom(r"not supported when `?lm_head`? is wrapped by a PEFT adapter"),
    )
    told_as = ("With Liger or a fused cross entropy the LoRA on lm_head gets no gradient.",)
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "lm_head"], _LIGER: True},
            why="Liger's loss takes lm_head.weight",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], _LIGER: True},
            depth="meta",
            why="the weight of a head that is trained whole is the trained one",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "lm_head"]},
            depth="meta",
            why="transformers' own loss calls the head",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        heads = [
            group
            for group in case.structure.groups
            if group.role == "head" and group.adapted and group.leaf == "lm_head"
        ]
        if not heads:
            return
        refused = _refused(case)
        if refused is not None:
            yield self._raises(case, heads, *refused)
            return
        loss = _loss(case)
        if loss is not None:
            yield self._bypassed(case, heads, loss)

    def _raises(
        self, case: Case, heads: list[ModuleGroup], trainer: str, evidence: Measurement
    ) -> Finding:
        return self.finding(
            "error",
            f"{trainer} raises ValueError: its loss reads the weight of {heads[0].pattern} and "
            "would ignore an adapter on it.",
            location=Location("recipe", "target_modules"),
            evidence=(_adapted(heads), evidence),
            proof=Proof("read", "the installed trainer raises for an adapter on the output head"),
            fixes=tuple(_fixes(case, heads, None)),
        )

    def _bypassed(self, case: Case, heads: list[ModuleGroup], loss: _Loss) -> Finding:
        head = heads[0].pattern
        alone = all(group in heads for group in case.structure.groups if group.adapted)
        evidence = [_adapted(heads), Measurement("the loss", loss.name, loss.source)]
        evidence += [loss.proof] if loss.proof is not None else []
        read = loss.proof is not None
        return self.finding(
            "error" if alone and read else "warning",
            f"The adapters on {head} {('get' if read else 'may get')} no gradient: {loss.name} "
            f"reads {head}.weight, which is the frozen base weight, and never calls the layer.",
            location=Location("recipe", "target_modules"),
            evidence=tuple(evidence),
            proof=Proof("read", "the line of the installed package that computes the loss")
            if read
            else Proof("inferred", "the package is not installed here; its known releases do this"),
            fixes=tuple(_fixes(case, heads, loss)),
        )


def _adapted(heads: list[ModuleGroup]) -> Measurement:
    return Measurement(
        "adapters on the output head",
        quoted(group.pattern for group in heads),
        "installed PEFT, meta device",
    )


def _refused(case: Case) -> tuple[str, Measurement] | None:
    """The trainer of TRL that raises for such an adapter, and where."""
    trainer = _trainer(case)
    refusal = trl_refuses_head(trainer) if trainer else None
    if refusal is None or (refusal.with_liger and not case.recipe.get(_LIGER)):
        return None
    version = case.environment.version("trl") or ""
    return trainer, Measurement(f"{trainer} raises", refusal.message or refusal.place.code,
                                f"trl {version}, {refusal.place}")  # fmt: skip


def _trainer(case: Case) -> str:
    """The trainer of TRL that a script makes, or that TRL's own command does; empty for others."""
    if case.has("program"):
        call = case.program.roles.trainer
        if call is not None and call.name.startswith("trl."):
            return call.method
        return ""
    if case.has("set_up") and case.set_up.format == "TRL":
        return "SFTTrainer"
    return ""


def _loss(case: Case) -> _Loss | None:
    """The fused loss that the recipe, or a call in the script, asks for."""
    if case.recipe.get(_CUT):
        return _Loss("cut cross entropy", f"{_CUT} in the recipe", _CUT, None)
    source = f"{_LIGER} in the recipe" if case.recipe.get(_LIGER) else _called(case)
    options = case.recipe.get("liger_kernel_config") or {}
    if not source or options.get("fused_linear_cross_entropy") is False:
        return None
    installed = liger_version()
    line = liger_reads_head(case.structure.model_type or "")
    if line is None and installed:
        return None  # this Liger has no fused loss for the model
    proof = None
    if line is not None:
        where = f"liger-kernel {installed}, {line}"
        proof = Measurement("the weight is read in", line.code, where)
    key = _LIGER if case.recipe.get(_LIGER) else ""
    return _Loss("Liger's fused linear cross entropy", source, key, proof)


def _called(case: Case) -> str:
    """Where a script calls Liger itself; empty where it does not, or turns the fused loss off."""
    if not case.has("program"):
        return ""
    for call in case.program.program.calls:
        if call.certain and (call.method.startswith(_CALLS) or _LOADER in call.name):
            off = call.value("fused_linear_cross_entropy")
            if getattr(off, "value", None) is not False:
                return str(call.place)
    return ""


def _fixes(case: Case, heads: list[ModuleGroup], loss: _Loss | None) -> Iterator[Fix]:
    edits = edits_without(case.structure, case.recipe, [group.pattern for group in heads])
    words = "Remove the output head from target_modules."
    yield Fix(words, "unsafe", edits) if edits else Fix(words, "manual")
    if loss is not None and loss.key == _CUT:
        yield Fix(f"Or turn the fused loss off: {_CUT}.", "unsafe", (Edit(_CUT, False),))
    elif loss is not None:
        yield Fix(
            'Or turn the fused loss off: liger_kernel_config={"fused_linear_cross_entropy": '
            "False}, which takes more memory.",
            "manual",
        )
