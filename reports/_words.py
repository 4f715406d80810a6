"""The sentences that the formats share: verdict, proof, safety and contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_doctor.reports._text import many, parameters, seconds, visible
from lora_doctor.results.finding import SEVERITIES, Finding, Proof
from lora_doctor.results.fingerprints import with_fingerprints
from lora_doctor.results.fix import Fix
from lora_doctor.results.verification import CHECKS, Check, Verification

if TYPE_CHECKING:
    from lora_doctor.recipe.recipe import Recipe
    from lora_doctor.results.diagnosis import Diagnosis, Skipped
    from lora_doctor.results.dry_run import DryRun
    from lora_doctor.results.processes import Processes

PROOF = {
    "executed": "executed",
    "measured": "measured",
    "read": "read from files, nothing was run",
    "inferred": "may happen: inferred from files, nothing was run",
}
SAFETY = {
    "safe": "the same training, made to work",
    "unproven": "should not change training; lora-doctor fix applies it if a run confirms it",
    "unsafe": "may change the trained result, memory or speed; applied only with --unsafe-fixes",
    "manual": "a manual step",
}


def proof_words(proof: Proof) -> str:
    """``executed: …``; ``may`` only where nothing was run, measured or written down."""
    words = PROOF.get(proof.kind, str(proof.kind))
    return f"{words}: {visible(proof.detail)}" if proof.detail else words


def execution_words(fix: Fix) -> str:
    """``executed at depth tiny: 12 of 12 checks passed``, or why it was not."""
    run = fix.executed
    if run.outcome == "not-executed":
        reason = SAFETY["manual"] if fix.safety == "manual" else visible(run.detail, 600)
        return f"not executed: {reason}"
    how = f"executed at depth {run.depth}" if run.depth != "static" else "read again, not run"
    beside = f" with the fix of {', '.join(map(visible, run.beside))}" if run.beside else ""
    return f"{how}{beside}: {visible(run.detail, 600)}"


def fix_label(fix: Fix) -> str:
    """What to call a fix: how safe it is, or that it was tried in vain. Nothing is called safe that
    was not executed."""
    if fix.executed.outcome == "failed":
        return "does not help"
    proven = fix.safety != "safe" or fix.executed.outcome == "passed"
    return fix.safety if proven else "unproven"


def fix_words(fix: Fix) -> str:
    """What it means to apply a fix; empty where how it ran says that already."""
    if fix.executed.outcome == "failed" or fix.safety == "manual":
        return ""
    return SAFETY[fix_label(fix)]


def offered(finding: Finding) -> list[Fix]:
    """The fixes of a finding, those that were tried in vain at the end."""
    return sorted(finding.fixes, key=lambda fix: fix.executed.outcome == "failed")


def place(finding: Finding, recipe: Recipe) -> str:
    """Where a finding is; a key of the recipe under the name that the user's file has for it, too:
    ``lora_target (target_modules)``."""
    location = finding.location
    name = recipe.names.get(location.path) if location.kind == "recipe" else None
    text = f"{name} ({location.path})" if name else str(location)
    return f"{finding.written}: {text}" if finding.written else text


def accepted_words(finding: Finding, diagnosis: Diagnosis) -> str:
    """Why a finding fails no gate; empty where it does."""
    names = {name for name, one in with_fingerprints(diagnosis.findings) if one is finding}
    item = next((item for item in diagnosis.accepted if item.fingerprint in names), None)
    if item is None:
        return ""
    reason = visible(item.reason, 300)
    if item.by == "baseline":
        return f"known: it is in {reason}"
    where = f" ({visible(item.where, 200)})" if item.where else ""
    return f"ignored: {reason}{where}"


def accepted_count(diagnosis: Diagnosis) -> str:
    """``2 of them ignored, 1 known``; empty where every finding counts."""
    names = {name for name, _ in with_fingerprints(diagnosis.findings)}
    items = {item.fingerprint: item for item in diagnosis.accepted if item.fingerprint in names}
    counts = Counter(item.by for item in items.values())
    words = [f"{counts['ignored']} ignored" if counts["ignored"] else "",
             f"{counts['baseline']} known" if counts["baseline"] else ""]  # fmt: skip
    return ", ".join(filter(None, words))


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first; equals stay in the order of the rules."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def tally(findings: Iterable[Finding]) -> str:
    """``1 error, 2 warnings``; the words are those that stand before each finding."""
    counts = Counter(finding.severity for finding in findings)
    return ", ".join(
        many(counts[name], name, "info" if name == "info" else None)
        for name in SEVERITIES
        if counts[name]
    )


def verdict_words(diagnosis: Diagnosis) -> tuple[str, str]:
    """The verdict as a headline and one sentence that says what it rests on."""
    verdict = diagnosis.verdict
    before = diagnosis.before.as_answer() if diagnosis.before else None
    if verdict == "healthy":
        assert before is not None  # `healthy` is only said of an executed contract
        alone = any(note.kind == "not-asked" for note in diagnosis.notes)
        headline = "The training contract passed" if alone else "Healthy"
        return headline, f"The training contract was executed: {passed_words(before)}."
    environment = diagnosis.model.kind == "environment"
    if verdict == "undetermined" and environment and diagnosis.undetermined is None:
        return "Nothing found", (
            "By their files, the installed packages have the names that they import from each "
            "other, and none refuses the version of another. Nothing was imported."
        )
    if nothing_tried(diagnosis):
        found = "No error or warning" if diagnosis.findings else "Nothing"
        headline = f"{found} found at depth {diagnosis.depth}; training was not tried"
        return headline, why_undetermined(diagnosis)
    if verdict == "undetermined":
        in_part = before is not None and before.obstacle == "not-proven"
        held_open = before is not None and before.outcome == "passed"
        much = (
            "a part of the recipe was not proven" if in_part else
            "the training contract passed, a question is open" if held_open else
            "nothing was proven"
        )  # fmt: skip
        return f"Undetermined: {much}", why_undetermined(diagnosis)
    errors = any(finding.severity == "error" for finding in diagnosis.findings)
    accepted = accepted_count(diagnosis)
    headline = (
        f"{tally(diagnosis.findings)}{f' ({accepted})' if accepted else ''}: "
        + ("these packages do not run together" if environment and errors else
           "packages do not fit each other" if environment else
           "this run would fail or learn nothing" if errors else
           "this run may not train as intended" if before is None else
           "this run would train, but likely not as intended")
    )  # fmt: skip
    return headline, " ".join(filter(None, (after_words(diagnosis), _beside_findings(diagnosis))))


def nothing_tried(diagnosis: Diagnosis) -> bool:
    """Whether the depth that was asked for was reached, nothing was found there, and the training
    contract is not part of it: exit code 0, and no proof either."""
    return (
        diagnosis.verdict == "undetermined"
        and diagnosis.undetermined is None
        and diagnosis.before is None
    )


def open_words(diagnosis: Diagnosis) -> str:
    """What one line says where the training contract proved nothing: ``undetermined: ...``, or that
    nothing was found as deep as was asked for."""
    if not nothing_tried(diagnosis):
        return f"undetermined: {why_undetermined(diagnosis)}"
    headline, explanation = verdict_words(diagnosis)
    return f"{headline[0].lower()}{headline[1:]}. {explanation}"


def _beside_findings(diagnosis: Diagnosis) -> str:
    """Why the question is open beside what was found; empty where it is not, or is told already."""
    told = diagnosis.after.reason if diagnosis.after else ""
    if diagnosis.undetermined is None or diagnosis.undetermined == told:
        return ""
    return f"Still open: {sentence(visible(diagnosis.undetermined))}"


def counted_by_strict(diagnosis: Diagnosis) -> str:
    """Which rules were skipped for a reason that the user can change; empty when none was, or the
    question is open anyway."""
    codes = [visible(item.rule, 60) for item in diagnosis.skipped_with_remedy]
    if not codes or diagnosis.undetermined is not None:
        return ""
    return f"{many(len(codes), 'skipped rule')} that --strict counts: {', '.join(codes[:12])}"


def skip_reason(item: Skipped, limit: int) -> str:
    """Why a rule was skipped, and whether ``--strict`` counts it."""
    reason: str = visible(item.reason, limit)
    return f"{reason} (--strict counts it)" if item.remedy is not None else reason


def stopped_in(diagnosis: Diagnosis, most: int | None = None) -> list[str]:
    """Python's stack of a run that reached its time limit, the innermost frame first."""
    frames = diagnosis.limit.stack.splitlines() if diagnosis.limit else []
    shown_frames = [visible(frame, 300) for frame in frames[:most]]
    rest = len(frames) - len(shown_frames)
    return [*shown_frames, f"… {many(rest, 'frame')} more"] if rest else shown_frames


def after_words(diagnosis: Diagnosis) -> str:
    """What the fixes achieve, as far as it was tried."""
    after = diagnosis.after
    if after is None:
        if not any(finding.fixes for finding in diagnosis.findings):
            return "No fix is known."
        if not diagnosis.applied:
            return _fixes_tried(diagnosis)
        return f"{many(len(diagnosis.applied), 'fix', 'fixes')} chosen; not yet proven by running."
    fixes = many(len(diagnosis.applied), "fix", "fixes")
    left = [item for item in diagnosis.remaining or () if item.severity != "info"]
    rest = f" {tally(left)} {'remains' if len(left) == 1 else 'remain'}." if left else ""
    if after.outcome == "passed":
        return f"With {fixes} the training contract was executed: {passed_words(after)}.{rest}"
    if after.outcome == "failed":
        return f"With {fixes} the training contract still fails ({_failed(after)}).{rest}"
    return f"{fixes} could not be tested: {visible(after.reason)}.{rest}"


def _fixes_tried(diagnosis: Diagnosis) -> str:
    """What came out of running the fixes that are shown."""
    fixes = [fix for finding in diagnosis.findings for fix in finding.fixes]
    counts = Counter(
        "read again" if fix.executed.depth == "static" else fix.executed.outcome for fix in fixes
    )
    words = {
        "passed": "executed, the model trains",
        "removed": "executed, with something still open",
        "failed": "executed, no help",
        "read again": "read again, not run",
        "not-executed": "not executed",
    }
    told = "; ".join(f"{counts[name]} {word}" for name, word in words.items() if counts[name])
    return f"{many(len(fixes), 'fix', 'fixes')} shown: {told}."


def why_undetermined(diagnosis: Diagnosis) -> str:
    """Why a diagnosis without findings is nevertheless no clean bill of health."""
    before = diagnosis.before.as_answer() if diagnosis.before else None
    if diagnosis.undetermined:
        return sentence(visible(diagnosis.undetermined))
    if diagnosis.model.kind == "script":
        return "That is no proof that it trains: the script was read and not run."
    if before is None:
        return (
            "That is no proof that it trains: the training contract was not executed; --depth tiny "
            "executes it."
        )
    if before.outcome == "failed":
        return (
            f"The training contract failed ({_failed(before)}), and no selected rule explains why."
        )
    return sentence(visible(before.reason) or "The training contract could not be executed")


def _failed(run: Verification) -> str:
    names = ", ".join(visible(check.name, 60) for check in run.failed_checks[:12])
    return names or "no check tells where"


def sentence(text: str) -> str:
    """``text`` with a capital at the start and a full stop at the end."""
    text = text.strip()
    if not text:
        return text
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?…" else ".")


def both_passed_words(before: Verification | None, after: Verification | None) -> str:
    """``11 of 12 checks passed``, of both runs where there are two."""
    runs = [("", before)] if after is None else [("before ", before), ("after the fixes ", after)]
    return ", ".join(f"{when}{passed_words(run)}" for when, run in runs if run)


def passed_words(verification: Verification, after: str = " passed") -> str:
    """``11 of 12 checks passed, 1 skipped``; ``after``: what follows the number of checks."""
    counts = Counter(check.status for check in verification.checks)
    run = counts["passed"] + counts["failed"]
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    return f"{counts['passed']} of {many(run, 'check')}{after}{skipped}"


@dataclass(frozen=True)
class ContractRow:
    """A check of the training contract, before and after the fixes."""

    name: str
    meaning: str
    before: Check | None
    after: Check | None


def contract_rows(before: Verification | None, after: Verification | None) -> list[ContractRow]:
    """Every check that either verification reports, in the order of the contract."""
    reported = [check.name for run in (before, after) if run for check in run.checks]
    names = [
        *(name for name in CHECKS if name in reported),
        *(n for n in reported if n not in CHECKS),
    ]
    return [
        ContractRow(
            name,
            CHECKS.get(name, ""),
            before.check(name) if before else None,
            after.check(name) if after else None,
        )
        for name in dict.fromkeys(names)
    ]


#: A shorter message may stand in a text by chance.
_TELLING = 16


def failure_words(verification: Verification | None, quoted: str = "") -> str:
    """The exception that ended a verification, on one line; empty when there was none. A message
    that is in ``quoted`` is not repeated."""
    failure = verification.failure if verification else None
    if failure is None:
        return ""
    place = f" in {visible(failure.module, 120)}" if failure.module else ""
    where = f" ({visible(failure.where, 120)})" if failure.where else ""
    message = " ".join(failure.message.split())
    if message and message in quoted:
        return (
            f"{visible(failure.check)} failed{place}: {visible(failure.type, 80)}, as above{where}"
        )
    message = visible(message, 400)
    return f"{visible(failure.check)} failed{place}: {visible(failure.type, 80)}: {message}{where}"


def subject(diagnosis: Diagnosis) -> str:
    """What was checked: the model, or the script with the model that it names."""
    model = visible(diagnosis.model, 120)
    script = visible(diagnosis.model.script, 200)
    return f"{script} ({model})" if script else model


def conditions(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """Under which conditions all this was found out, as label and value."""
    structure, run = diagnosis.structure, diagnosis.before or diagnosis.after
    rows = [("Model", visible(diagnosis.model, 200))]
    if diagnosis.model.revision:
        rows.append(("Revision", visible(diagnosis.model.revision, 80)))
    if structure:
        rows.append(("Class", visible(structure.model_class, 120)))
        size = f"{parameters(structure.total_parameters)} parameters"
        rows.append(("Model at full size", size))
    elif run and run.model_class:
        rows.append(("Class", visible(run.model_class, 120)))
    reached = diagnosis.reached
    short = diagnosis.undetermined is not None and reached not in (None, diagnosis.depth)
    depth = f"{diagnosis.depth} requested, {reached} reached" if short else diagnosis.depth
    rows.append(("Depth", depth))
    if run and run.device:
        dtype = f", {visible(run.dtype, 40)}" if run.dtype else ""
        rows.append(("Run on", f"{visible(run.device, 60)}{dtype}"))
    rows += _of_dry_run(diagnosis.dry_run)
    rows.append(
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions(diagnosis)))
    )
    rows.append(("Time", seconds(diagnosis.seconds)))
    return [(label, value) for label, value in rows if value]


#: What may be otherwise than it was asked for, without a word of the framework's.
_RAN = ("dtype", "attention", "mixed_precision", "distributed", "world_size")


def _of_dry_run(run: DryRun | None) -> list[tuple[str, str]]:
    """The command, and how far it came."""
    if run is None:
        return []
    # Where the program lies is told elsewhere, and takes three lines here.
    program, *words = run.command
    shown_command = " ".join((program.replace("\\", "/").rpartition("/")[2], *words))
    rows = [("Dry run of", visible(shown_command, 200))]
    if run.steps:
        planned = f" of {run.planned_steps}" if run.planned_steps else ""
        rows.append(("Trained by", f"{visible(run.trained_by, 60)}, {run.steps}{planned} steps"))
    ran = [f"{key} {value}" for key, value in run.ran.items() if key in _RAN]
    if ran:
        rows.append(("Ran with", visible(", ".join(ran), 200)))
    if run.processes is not None:
        rows.append(("Processes", _of_processes(run.processes)))
    return rows


def _of_processes(found: Processes) -> str:
    """What met beside what was asked for."""
    count = f"{found.met} of {found.asked} train together"
    asked = f" ({found.asked_type} was requested)" if found.asked_type else ""
    kind = f", {found.ran_type}{asked}" if found.ran_type else asked
    return visible(f"{count}{kind}{f', {found.backend}' if found.backend else ''}", 200)


def versions(
    diagnosis: Diagnosis, names: Iterable[str] = ("torch", "transformers", "peft")
) -> list[tuple[str, str]]:
    """The versions that decide how a LoRA run behaves, of those that are installed."""
    packages = diagnosis.environment.get("packages")
    packages = packages if isinstance(packages, Mapping) else diagnosis.environment
    return [(name, visible(packages[name], 60)) for name in names if packages.get(name)]


def shapes(inputs: Mapping[str, Iterable[int]]) -> str:
    """The inputs of a batch: ``input_ids 2×16, labels 2×16``."""
    return ", ".join(
        f"{visible(name, 60)} {'×'.join(str(size) for size in shape) or 'scalar'}"
        for name, shape in list(inputs.items())[:20]
    )
