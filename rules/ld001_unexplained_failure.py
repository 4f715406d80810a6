"""LD001: the training contract fails and no rule explains it."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    CHECKS,
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
)
from lora_doctor.rules._ablation import judged
from lora_doctor.rules._peft_config import says_why


class UnexplainedFailure(Rule):
    """A short training run of this recipe failed, and no rule explains why.

    ## What happens
    The training contract (adapters attach, the loss is finite, gradients arrive, A and B move,
    frozen weights stay, the loss falls, saving and merging keep the logits) was executed and one of
    its checks failed. At depth `meta` nothing is trained: there, and where the tiny model took the
    adapters without an error, it was `get_peft_model` that refused the recipe on the full-size
    class.

    ## Why
    Not known. The finding names the check, the exception, the first module that it was seen in, and
    the rules with similar error messages.

    ## Versions
    Any.

    ## Fix
    None, because the cause is not known. Please open an issue with the JSON report
    (`--output-format json`), so that a rule can be written for it.

    ## Links
    `lora-doctor verify MODEL` runs the contract alone.
    """

    code = "LD001"
    name = "unexplained-failure"
    summary = "The training contract fails and no rule explains it."
    depth = "meta"
    is_fallback = True
    examples = (
        Example(
            "broken",
            "tests.models:forward_raises",
            {"target_modules": ["proj"]},
            why="a forward that raises only once adapters are in the model",
        ),
        Example("healthy", "arch:llama"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.has("structure"):
            yield from self._not_built(case)
        elif not case.reaches("tiny"):
            yield from self._refused(case)
        else:
            yield from self._failed(case)

    def _failed(self, case: Case) -> Iterator[Finding]:
        """A check of the training contract that no finding accounts for."""
        verification = case.verification
        unexplained = case.unexplained
        if not unexplained:
            # What the shrunk model takes, the real class may not.
            refused = list(self._refused(case)) if verification.depth == "tiny" else []
            if not refused:
                judged(case)
            yield from refused
            return
        check = verification.check(unexplained[0])
        assert check is not None
        source = f"training contract, {verification.depth} model on {verification.device}"
        evidence = [
            Measurement(
                f"check {check.name}", f"{check.status}: {check.detail or check.value}", source
            )
        ]
        if check.expected:
            evidence.append(Measurement("expected", check.expected, "training contract"))
        message = check.detail
        failure = verification.failure
        if failure:
            evidence.append(Measurement("exception", f"{failure.type}: {failure.message}", source))
            message = f"{failure.type}: {failure.message}"
            if failure.module:
                evidence.append(Measurement("first bad module", failure.module, source))
            if failure.where:
                evidence.append(Measurement("raised in", failure.where, source))
        if len(unexplained) > 1:
            evidence.append(Measurement("other failed checks", ", ".join(unexplained[1:]), source))
        alike = [
            name for name in case.rules_with_symptom(message) if not name.startswith(self.code)
        ]
        if alike:
            evidence.append(
                Measurement(
                    "rules with a similar message", ", ".join(alike[:3]), "symptoms of the rules"
                )
            )
        explained = check.name == "attaches" and failure and says_why(failure.traceback)
        yield self.finding(
            "error",
            f"PEFT refuses this recipe: {_shorten(message)}"
            if explained
            else "Training fails, and no rule that was run explains why: "
            f"{CHECKS.get(check.name, check.name)}: {_shorten(message) or check.value}",
            location=Location("module", failure.module if failure and failure.module else "model"),
            evidence=tuple(evidence),
            proof=Proof("executed", source),
            explains=unexplained,
        )

    def _not_built(self, case: Case) -> Iterator[Finding]:
        """A factory that raises is told apart from bad input by a message that a rule knows."""
        cause = case.cause_of("structure")
        alike = [
            name
            for name in (case.rules_with_symptom(str(cause)) if cause is not None else ())
            if not name.startswith(self.code)
        ]
        if case.source.kind != "factory" or not alike or "builds" in case.explained:
            _ = case.structure  # raises: why there is no model
            return
        yield self.finding(
            "error",
            f"{case.source} cannot build its model: {_shorten(str(cause))}. See {alike[0]}, "
            "which has this message.",
            location=Location("module", case.source.name),
            evidence=(
                Measurement("the factory raised", str(cause), "called in a child process"),
                Measurement(
                    "rules with a similar message", ", ".join(alike[:3]), "symptoms of the rules"
                ),
            ),
            proof=Proof("executed", "the factory was called and raised this"),
            fixes=(Fix(f"lora-doctor explain {alike[0].partition(' ')[0]}", "manual"),),
            explains=("builds",),
        )

    def _refused(self, case: Case) -> Iterator[Finding]:
        """What PEFT said on the meta device, about the class at full size."""
        error = case.structure.injection.error
        if error is None:
            _ = case.verification  # raises: nothing is trained at this depth
            return
        if "attaches" in case.explained:
            return
        message = f"{error.type}: {error.message}"
        unexplained = "" if says_why(error.traceback) else ", and no rule that was run explains why"
        yield self.finding(
            "error",
            f"PEFT refuses this recipe{unexplained}: {_shorten(message)}",
            location=Location("module", "model"),
            evidence=(
                Measurement("get_peft_model", message, "installed PEFT, meta device"),
                Measurement("raised in", error.where or "not known", "its traceback"),
            ),
            proof=Proof(
                "executed", ("PEFT refused the config on the full-size model, on the meta device")
            ),
            explains=("attaches",),
        )


def _shorten(message: str, limit: int = 240) -> str:
    return message if len(message) <= limit else message[: limit - 3] + "..."
