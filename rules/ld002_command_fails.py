"""LD002: the user's own command fails, with the model shrunk and three steps to take."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Location, Measurement, Proof, Rule


class CommandFails(Rule):
    """The training command itself raises an exception in a dry run.

    ## What happens
    `lora-doctor dry-run -- COMMAND` ran the command as it is, with the model shrunk and the data
    cut to a few rows. It raised before it had finished: while loading, while preparing the data, in
    its first three steps, or in what the script does afterwards (saving, merging, evaluating).

    ## Why
    The evidence has the exception, the line of your own file that led to it, and the rules with
    similar error messages. With the real model the same line fails too, unless the message is about
    sizes that shrinking has changed.

    ## Versions
    Any.

    ## Fix
    Correct the line that is named. Where a rule knows the cause, its finding is shown instead of
    this one.

    ## Links
    `lora-doctor explain -` takes a pasted traceback.
    """

    code = "LD002"
    name = "command-fails"
    summary = "The training command itself raises an exception."
    depth = "static"
    examples = (
        Example("broken", "", script="rows = []\nprint(rows[0])\n", why="an IndexError of its own"),
        Example("healthy", "", script="rows = [1]\nprint(rows[0])\n"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        run = case.dry_run
        error = run.error
        if error is None:
            return
        source = "the user's command, dry-run"
        message = f"{error.type}: {error.message}"
        evidence = [Measurement("exception", message, source)]
        if error.raised_in:
            evidence.append(Measurement("raised in", error.raised_in, "its traceback"))
        evidence.append(Measurement("optimizer steps before", error.steps, source))
        pasted = error.traceback or message
        alike = [one for one in case.rules_with_symptom(pasted) if not one.startswith("LD00")]
        if alike:
            evidence.append(
                Measurement("rules with a similar message", ", ".join(alike[:3]), "their symptoms")
            )
        when = f"after {error.steps} optimizer steps" if error.steps else "before its first step"
        yield self.finding(
            "error",
            f"The command fails {when}: {message[:600]}",
            location=(
                Location("file", error.file, error.line)
                if error.file
                else Location("environment", " ".join(run.command)[:200])
            ),
            evidence=tuple(evidence),
            proof=Proof("executed", source),
            fixes=_explained(alike),
        )


def _explained(alike: list[str]) -> tuple[Fix, ...]:
    """What to read about the message, where a rule knows it."""
    if not alike:
        return ()
    code = alike[0].partition(" ")[0]
    return (Fix(f"Run lora-doctor explain {code} for what is known about this message.", "manual"),)
