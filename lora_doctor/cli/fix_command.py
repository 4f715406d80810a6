"""``lora-doctor fix -- COMMAND``: the file that a command trains from is fixed, by what is read and
run of it here, and then by what the command itself shows when it is dry-run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_doctor.cli import streams
from lora_doctor.cli.given_command import file_of
from lora_doctor.cli.output import FINDINGS, exit_code, report, with_progress
from lora_doctor.cli.project import codes_ignored
from lora_doctor.errors import InputError

if TYPE_CHECKING:
    from lora_doctor.recipe.edit import Edit
    from lora_doctor.recipe.recipe import Recipe
    from lora_doctor.results.diagnosis import AppliedFix, Diagnosis

#: A fix may uncover the next finding; the command is run once more for each round.
_MOST_ROUNDS = 3


def fix_command(
    options: dict[str, Any], command: Sequence[str], fix: Callable[[dict[str, Any]], int]
) -> int:
    """Fix the file of a command with ``fix``, dry-run the command as it is then, and write the
    fixes of what only that run has found; the exit code."""
    file, words = file_of(command)
    given = {**options, "model": file, "script_arguments": words}
    code = fix(given)
    if not options["write"]:
        return code
    streams.tell(f"runs: {' '.join(command)}")
    ran = _run(command, given)
    for _ in range(_MOST_ROUNDS):
        better = _fixed(Path(file), words, ran, command, given)
        if better is None:
            break
        ran = better
    told = _report(ran, given)
    return FINDINGS if FINDINGS in (code, told) else told


def after_dry_run(diagnosis: Diagnosis, options: Mapping[str, Any]) -> Diagnosis:
    """With the command that fixes the file of the training command where a fix of a finding has a
    place in it, else with the one that explains the worst finding: a dry run edits no file."""
    from lora_doctor.results.finding import SEVERITIES

    findings = [finding for finding in diagnosis.findings if finding.severity != "info"]
    if not findings:
        return diagnosis
    worst = min(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    words = ["explain", worst.rule]
    command = _typed_or_chosen(options["command"])
    for unsafe in (False, True):
        if command and _fixes_in_file(diagnosis, command, unsafe_fixes=unsafe):
            words = ["fix", *(["--unsafe-fixes"] if unsafe else []), "--apply", "--", *command]
            break
    return replace(diagnosis, next_command=shlex.join(["lora-doctor", *words]))


def _typed_or_chosen(words: Sequence[str]) -> tuple[str, ...]:
    """The command of a dry run as it was typed; the one that was run for a file alone."""
    from lora_doctor.dry_run.command import command_of

    return command_of(words).words if len(words) == 1 else tuple(words)


def _fixes_in_file(ran: Diagnosis, command: Sequence[str], *, unsafe_fixes: bool) -> bool:
    """Whether the file of a command that was dry-run has a place for a fix of what was found.
    Nothing is written."""
    chosen = _fixes(ran, unsafe_fixes=unsafe_fixes)
    if not chosen:
        return False
    try:
        file, words = file_of(command)
        return bool(_texts(Path(file), words, chosen, None)[0])
    except InputError:
        return False


def _run(command: Sequence[str], options: Mapping[str, Any]) -> Diagnosis:
    from lora_doctor.cli.arguments import dry_run_options
    from lora_doctor.dry_run.judge import DryRunOptions, dry_run

    limits = {"rows": DryRunOptions.rows, "time_limit": None, "memory_limit": None,
              "synthetic_data": False, "check_resume": False}  # fmt: skip
    asked = dry_run_options({**options, **limits})
    return with_progress(lambda tell: dry_run(command, asked, tell))


def _report(ran: Diagnosis, options: Mapping[str, Any]) -> int:
    if options["output_format"] == "full" and not options["only_diff"]:
        # The files that were asked for hold the report of the fix.
        return report(ran, {**options, "outputs": (), "output_file": None})
    found = ", ".join(dict.fromkeys(finding.rule for finding in ran.findings))
    streams.tell(f"dry run of the command: {ran.verdict}{f': {found}' if found else ''}")
    return exit_code(ran, options["fail_on"])


def _fixed(
    file: Path,
    words: tuple[str, ...],
    ran: Diagnosis,
    command: Sequence[str],
    options: Mapping[str, Any],
) -> Diagnosis | None:
    """The dry run of the command after the fixes of what the last one found; ``None``, and the file
    as it was, where there are none or they did not help."""
    chosen = _fixes(ran, unsafe_fixes=options["unsafe_fixes"])
    try:
        texts, placed = _texts(file, words, chosen, options["format_name"])
    except InputError as error:
        streams.tell(f"lora-doctor: not written: {error}")
        return None
    if not texts:
        return None
    titles = "; ".join(f"{item.rule}: {item.fix.title}" for item in placed)
    with _written(texts) as keep:
        streams.tell(f"tries: {titles}")
        again = _run(command, options)
        if not _helped(ran, again, placed):
            streams.tell(f"did not help, {file} is as it was: {titles}")
            return None
        keep()
    for path in texts:
        streams.tell(f"wrote {path}")
    return again


def _fixes(ran: Diagnosis, *, unsafe_fixes: bool) -> list[AppliedFix]:
    """The first allowed fix of each finding that is an edit of the recipe, one for each key."""
    from lora_doctor.results.diagnosis import AppliedFix
    from lora_doctor.results.finding import first_fix

    left = codes_ignored(click.get_current_context().meta)
    chosen: list[AppliedFix] = []
    touched: set[str] = set()
    for finding in ran.not_accepted(ran.findings):
        # A dry run tries no fix by itself: what is not known to be safe yet is tried here.
        offered = [fix for fix in finding.fixes if fix.edits and fix.patch is None]
        fix = first_fix(finding, unsafe_fixes) or next(
            (one for one in offered if one.safety in ("safe", "unproven")), None
        )
        if fix is None or fix not in offered or finding.rule in left or finding.severity == "info":
            continue
        keys = {edit.key for edit in fix.edits}
        if not keys & touched:
            touched |= keys
            chosen.append(AppliedFix(finding.rule, fix))
    return chosen


def _texts(
    file: Path, words: tuple[str, ...], fixes: Sequence[AppliedFix], format: str | None
) -> tuple[dict[Path, bytes], list[AppliedFix]]:
    """The files after those of the fixes that they have a place for, and these fixes.

    Raises:
        InputError: a file cannot be read, or holds no set-up.
    """
    from lora_doctor.recipe.files.read_write import edited_files, held_files, holds_edit
    from lora_doctor.recipe.program.edits import program_holds

    program = _of_program(file, words, format)
    if program is not None:
        placed = _with_place(fixes, lambda edit: program_holds(program, edit))
        return _program_texts(program, _edits(placed)), placed
    held = held_files(file, format)
    placed = _with_place(fixes, lambda edit: holds_edit(file, held, edit, format))
    texts = edited_files(file, held, _edits(placed), format)
    return {path: text.encode(text.text) for path, text in texts.items()}, placed


def _of_program(file: Path, words: tuple[str, ...], format: str | None) -> Recipe | None:
    """What a script or notebook says, or the script that a shell file starts; ``None`` for the file
    of a framework."""
    from lora_doctor.engine.set_up import script_of
    from lora_doctor.recipe.program.read_setup import read_setup
    from lora_doctor.recipe.program.setup import is_program

    if is_program(file):
        return read_setup(file, None, words).recipe
    started = script_of(file) if format is None else None
    if started is None:
        return None
    return read_setup(started.script, None, started.arguments, started.start).recipe


def _program_texts(recipe: Recipe, edits: list[Edit]) -> dict[Path, bytes]:
    """The script after the edits, the files that it imports and the shell file that starts it,
    where they change."""
    from lora_doctor.recipe.program.edits import edited_program

    before, after = recipe.written, edited_program(recipe, edits).written
    assert recipe.file is not None and before is not None and after is not None
    texts: dict[Path, bytes] = {}
    if after.data is not None and after.data != before.data:
        texts[recipe.file] = after.data
    texts |= {path: data for path, data in after.beside.items() if data != before.beside.get(path)}
    old = before.start.data if before.start is not None else None
    if after.start is not None and after.start.data != old:
        texts[Path(after.start.place.file)] = after.start.data
    return texts


def _with_place(fixes: Sequence[AppliedFix], holds: Callable[[Edit], bool]) -> list[AppliedFix]:
    return [item for item in fixes if all(holds(edit) for edit in item.fix.edits)]


def _edits(fixes: Sequence[AppliedFix]) -> list[Edit]:
    return [edit for item in fixes for edit in item.fix.edits]


def _helped(before: Diagnosis, after: Diagnosis, fixes: Sequence[AppliedFix]) -> bool:
    """Whether what was fixed is not found any more, and nothing else is found instead; a command
    that comes further than before may show what it did not come to."""
    found = {finding.rule for finding in after.findings if finding.severity != "info"}
    known = {finding.rule for finding in before.findings if finding.severity != "info"}
    if after.verdict == "undetermined" and before.verdict != "undetermined":
        return False
    further = _fails(before) and not _fails(after)
    return not found & {item.rule for item in fixes} and (further or found <= known)


def _fails(ran: Diagnosis) -> bool:
    return ran.dry_run is not None and ran.dry_run.error is not None


@contextmanager
def _written(texts: Mapping[Path, bytes]) -> Iterator[Callable[[], None]]:
    """The files with these contents, and as they were again afterwards unless they are kept."""
    from lora_doctor.files import Change, replace_files

    old = {path: path.read_bytes() for path in texts}
    there = {path: set(path.parent.iterdir()) for path in texts}
    backups = replace_files([Change(path, data) for path, data in texts.items()])
    kept: list[bool] = []
    try:
        yield lambda: kept.append(True)
    finally:
        if not kept:
            replace_files([Change(path, data, backup=False) for path, data in old.items()])
            for path, backup in backups.items():
                if backup is not None and backup not in there[path]:
                    backup.unlink(missing_ok=True)
