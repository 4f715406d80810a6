"""LD534: a command in a shell file ends before its last options."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Cut,
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


class ArgumentsCutOff(Rule):
    """A command in a shell file ends before its last options.

    ## What happens
    The training starts without the options below that line, with their defaults instead, or it
    stops because an argument such as `' '` is unknown or a required one is missing. Afterwards the
    shell reports `--learning_rate: command not found`.

    In a file with Windows line ends, a command on one line gets all its options, but its last word
    with a carriage return behind it: `v_proj\\r` is the name of no module, `--bf16\\r` no option.

    ## Why
    A backslash continues a command only as the very last character of its line. The command ends
    at a line without a backslash, at a backslash with a space, a comment or the carriage return
    of a Windows line end behind it, and at an empty line or a comment between two lines.

    ## Versions
    All: these are the rules of the shell. The recipe is read as it was meant, with all options.

    ## Fix
    By hand, as the finding says.

    ## Links
    https://www.gnu.org/software/bash/manual/html_node/Escape-Character.html,
    https://github.com/hiyouga/LlamaFactory/issues/252,
    https://github.com/hiyouga/LlamaFactory/issues/983,
    https://github.com/kivy/python-for-android/pull/1712
    """

    code = "LD534"
    name = "arguments-cut-off"
    summary = "A command in a shell file ends before its last options."
    depth = "static"
    symptoms = (
        Symptom(r"(?:line )?\d+: --[A-Za-z][\w-]*(?:=\S*)?: (?:command )?not found"),
        Symptom(r"command not found: --[A-Za-z]"),
        Symptom(r"(?:not used by the HfArgumentParser|remaining_argv): \['(?: |\\[trn])+'"),
    )
    examples = (
        Example("broken", "tests/set_ups/cut/comment.sh", why="a comment between two lines"),
        Example("broken", "tests/set_ups/cut/no_backslash.sh", why="a line without backslash"),
        Example("broken", "tests/set_ups/cut/space.sh", why="a space behind a backslash"),
        Example("broken", "tests/set_ups/cut/windows.sh", why="a file with Windows line ends"),
        Example("healthy", "tests/set_ups/cut/whole.sh"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("set_up"):
            found = [(case.set_up.files[0], cut) for cut in case.set_up.cuts]
        else:
            found = [(one.place.file, cut) for one in case.launches for cut in one.cuts]
        for file, cut in found:
            yield self._finding(file, cut)

    def _finding(self, file: str, cut: Cut) -> Finding:
        if cut.returned:
            return self.finding(
                "error" if cut.stray else "warning",
                f"Line {cut.line} {cut.why}, which the shell makes part of {cut.options[0]}.",
                location=Location("file", file, cut.line),
                evidence=(Measurement("passed", f"{cut.options[0]}\\r", f"{file}:{cut.line}"),),
                proof=Proof("read", "the shell ends a word at a space, a tab or a line feed"),
                fixes=(Fix(cut.remedy, "manual"),),
            )
        return self.finding(
            "error" if cut.stray else "warning",
            f"Line {cut.line} {cut.why}, so the command ends there and starts without "
            f"{quoted(cut.options, 4)}.",
            location=Location("file", file, cut.line),
            evidence=(Measurement("not passed", ", ".join(cut.options), f"{file}:{cut.line}"),),
            proof=Proof("read", "the shell continues a line only where a backslash ends it"),
            fixes=(Fix(cut.remedy, "manual"),),
        )
