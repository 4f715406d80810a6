"""LD588: ``set_adapter`` switches an adapter off between its forward and the backward pass."""

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
    quoted,
)
from lora_doctor.rules._dry_run_script import ADAPTERS_IN_TURN
from lora_doctor.rules._training_signal import STEPS, signal

#: One loss of both adapters, as a script would have it.
_ONE_LOSS = (
    ADAPTERS_IN_TURN.replace("if p.requires_grad", 'if "lora_" in name')
    .replace("    for name in", "    loss = 0\n    for name in")
    .replace(
        "        model(input_ids=ids, labels=ids).loss.backward()\n",
        "        loss = loss + model(input_ids=ids, labels=ids).loss\n    loss.backward()\n",
    )
)


class SwitchedOffBeforeBackward(Rule):
    """Two adapters are called in turn for one loss, and only the one that was activated last gets
    a gradient.

    ## What happens
    No error is raised and the loss is that of both adapters. The weights of the first one stay as
    they were initialized, whether the optimizer holds them or not.

    ## Why
    `set_adapter` sets `requires_grad` of every other adapter to `False`. `backward()` computes the
    gradients of all weights that the loss was made with, but adds one to `.grad` only where
    `requires_grad` is on at that moment. For an adapter that was switched off after its forward,
    it is dropped.

    A dry run compares which adapter weights a backward pass reaches with those that take the
    gradient.

    ## Versions
    All versions of PEFT, and of transformers' own `set_adapter`.

    ## Fix
    By hand: call `backward()` on the loss of each adapter before the next `set_adapter`
    (gradients of one step add up), or set `requires_grad` of all adapters to `True` again before
    `backward()`. An adapter that is only compared with, such as a reference policy, is called under
    `torch.no_grad()`.

    ## Links
    https://huggingface.co/docs/peft/main/en/package_reference/peft_model
    """

    code = "LD588"
    name = "switched-off-before-backward"
    summary = "set_adapter switches an adapter off between its forward and the backward pass."
    depth = "static"
    descriptions = (
        Symptom(r"\bset_adapter\b.{0,80}\b(?:grad(?:ient)?s? (?:is|are) (?:None|zero)|no grad)"),
    )
    told_as = ("set_adapter freezes the other adapter: two adapters cannot be trained together.",)
    examples = (
        Example("broken", "", script=_ONE_LOSS, why="one backward for the losses of both"),
        Example(
            "healthy",
            "",
            script=_ONE_LOSS.replace(
                "        loss = loss + model(input_ids=ids, labels=ids).loss\n",
                '        with torch.set_grad_enabled(name == "default"):\n'
                "            loss = model(input_ids=ids, labels=ids).loss - loss\n",
            ),
            why="the other adapter is a reference",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen = signal(case).adapters
        for one in seen:
            if one.accumulated:
                continue
            active = [other.adapter for other in seen if other.accumulated]
            held = f"{one.held} of {len(one.tensors)}"
            yield self.finding(
                "warning",
                f"The adapter {one.adapter} is part of the loss, and its gradients are dropped: "
                "set_adapter had switched it off before backward() was called.",
                location=Location("module", one.tensors[0]),
                evidence=(
                    Measurement("reached by a backward pass", quoted(one.tensors, 2), STEPS),
                    Measurement("took a gradient", f"0 of {len(one.tensors)}", STEPS),
                    Measurement("held by an optimizer", held, STEPS),
                    *(Measurement("adapters that take gradients", ", ".join(active), STEPS)
                      for _ in active[:1]),
                ),
                proof=Proof("executed", STEPS),
                fixes=(
                    Fix(
                        "Call backward() for each adapter before the next set_adapter, and create "
                        "the optimizer from the weights of all adapters. If this adapter is only "
                        "compared with, call it under torch.no_grad().",
                        "manual",
                    ),
                ),
            )  # fmt: skip
