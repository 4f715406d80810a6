"""The project's configuration: ``lora-doctor.toml``, or ``[tool.lora-doctor]`` of
``pyproject.toml``.

Keys are the long options of the commands. The command line wins over the environment
(``LORA_DOCTOR_CHECK_DEPTH``), which wins over the file.
"""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_doctor.errors import InputError
from lora_doctor.results.depth import DEPTHS

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

#: Where the configuration is kept while a command runs (``click.Context.meta``).
META = "lora_doctor.project"
#: The diagnoses of a run over several set-ups, as they were reported (``click.Context.meta``).
REPORTED = "lora_doctor.reported"
_COMMANDS = ("check", "fix", "verify", "dry-run")
#: The set-up that is checked, where there are several (``click.Context.meta``).
SET_UP = "lora_doctor.set_up"
_OWN_KEYS = ("ignore", "severity", "set-ups", "budgets")
_CODE = re.compile(r"[A-Z]+\d+")
#: Options that a file cannot give: they belong to one invocation, or allow what only the user may
#: allow, who may stand in a folder that was downloaded.
_NOT_SHARED = ("output", "output-file", "help", "apply", "diff", "trust-remote-code", "rules")


@dataclass(frozen=True)
class SetUp:
    """One run that the project keeps in order. ``model`` or ``command`` is given; ``options`` by
    the long options of their command, without dashes."""

    name: str
    model: str = ""
    command: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    budgets: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Project:
    """``ignore``: code to the reason why it is accepted. ``severity``: code to another severity.
    ``budgets``: what is asserted of numbers, of every set-up; its own win."""

    file: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    ignore: Mapping[str, str] = field(default_factory=dict)
    severity: Mapping[str, str] = field(default_factory=dict)
    set_ups: tuple[SetUp, ...] = ()
    budgets: Mapping[str, Any] = field(default_factory=dict)


def find_project(group: click.Group, start: Path) -> Project | None:
    """The configuration of the nearest folder, from ``start`` upwards, that has one.

    Raises:
        InputError: it cannot be read, or a key or value is none of ours.
    """
    for folder in (start, *start.parents):
        for name, path in (("lora-doctor.toml", ()), ("pyproject.toml", ("tool", "lora-doctor"))):
            file = folder / name
            if not file.is_file():
                continue
            table: Any = _read(file)
            for key in path:
                table = table.get(key) if isinstance(table, Mapping) else None
            if table is not None:
                return _project(file, table, group)
    return None


def defaults(project: Project, group: click.Group) -> dict[str, dict[str, Any]]:
    """What click takes for options that are neither given nor in the environment."""
    return {
        name: _parameters(command, project.options) for name, command in _commands(group).items()
    }


def for_set_up(
    project: Project, set_up: SetUp, command: click.Command, shared: Mapping[str, Any]
) -> dict[str, Any]:
    """The defaults of one set-up: the project's, its own, and what this invocation was given."""
    known = {parameter.name for parameter in command.params}
    given = {name: value for name, value in shared.items() if name in known}
    found = {
        **_parameters(command, project.options),
        **_parameters(command, set_up.options),
        **given,
    }
    if found.get("depth") == "static":  # which reads no data: a file that names some asks for more
        return {name: value for name, value in found.items()
                if name not in ("data", "eval_data") or name in given}  # fmt: skip
    return found


def budgets_of(meta: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The budgets of what is checked: the project's, and those of the set-up before them."""
    project, set_up = meta.get(META), meta.get(SET_UP)
    if project is None:
        return None
    return {**project.budgets, **(set_up.budgets if set_up is not None else {})} or None


def codes_ignored(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Codes that the project ignores: what they find is shown, and not fixed."""
    project = meta.get(META)
    return () if project is None else tuple(project.ignore)


def settled(diagnosis: Diagnosis, project: Project) -> Diagnosis:
    """The diagnosis with the project's severities, and what it ignores accepted."""
    from lora_doctor.results.diagnosis import Accepted
    from lora_doctor.results.fingerprints import with_fingerprints

    def changed(findings: Any) -> Any:
        return tuple(
            replace(finding, severity=project.severity.get(finding.rule, finding.severity))
            for finding in findings
        )

    findings = changed(diagnosis.findings)
    remaining = None if diagnosis.remaining is None else changed(diagnosis.remaining)
    ignored: dict[str, Accepted] = {}
    for listed in (findings, remaining or ()):
        for name, finding in with_fingerprints(listed):
            if finding.rule in project.ignore:
                ignored[name] = Accepted(name, "ignored", project.ignore[finding.rule])
    return replace(
        diagnosis,
        findings=findings,
        remaining=remaining,
        accepted=(*diagnosis.accepted, *ignored.values()),
    )


def unused_ignores(
    project: Project, diagnoses: Sequence[Diagnosis], rule_folders: Sequence[str] = ()
) -> list[str]:
    """A sentence for each code that no rule has, and for each that the project ignores and that
    nothing was found for; not for rules that were not asked, or could not answer, somewhere."""
    unknown = _unknown_codes(project, diagnoses, rule_folders)
    return [
        *(f"{project.file.name}: {place}: there is no such rule" for place in unknown),
        *(
            f"{project.file.name}: ignore.{code} ignores nothing: {code} finds nothing any more"
            for code in project.ignore
            if diagnoses and all(code in diagnosis.passed for diagnosis in diagnoses)
        ),
    ]


def _unknown_codes(
    project: Project, diagnoses: Sequence[Diagnosis], rule_folders: Sequence[str]
) -> list[str]:
    """Where the project names a code of this package that no rule has; other codes may belong to
    rules that this invocation was not given."""
    places = {f"{key}.{code}": code for key in ("ignore", "severity")
              for code in getattr(project, key) if code.startswith("LD")}  # fmt: skip
    for diagnosis in diagnoses:
        seen = {*diagnosis.passed, *(item.rule for item in diagnosis.skipped),
                *(finding.rule for finding in diagnosis.findings)}  # fmt: skip
        places = {place: code for place, code in places.items() if code not in seen}
    if not places:
        return []
    from lora_doctor.engine.registry import find_rules

    known = {rule.code for rule in find_rules(Path(folder) for folder in rule_folders)}
    return [place for place, code in places.items() if code not in known]


# --- reading ----------------------------------------------------------------------------------


def _read(file: Path) -> Mapping[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found: Mapping[str, Any] = tomllib.loads(file.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: is not TOML: {error}") from None
    return found


def _project(file: Path, table: Any, group: click.Group) -> Project:
    if not isinstance(table, Mapping):
        raise InputError(f"{file}: tool.lora-doctor is not a table")
    known = {name for command in _commands(group).values() for name in _options(command)}
    options = {key: value for key, value in table.items() if key not in _OWN_KEYS}
    _check_keys(file, options, known, _OWN_KEYS)
    set_ups = table.get("set-ups", {})
    if not isinstance(set_ups, Mapping):
        raise InputError(f"{file}: set-ups is not a table; write [tool.lora-doctor.set-ups.NAME]")
    return Project(
        file,
        options,
        dict(_texts(file, "ignore", table, "the reason why it is accepted")),
        dict(_severities(file, table)),
        tuple(_set_up(file, name, value, known) for name, value in set_ups.items()),
        _budgets(file, table),
    )


def _budgets(file: Path, table: Mapping[str, Any], at: str = "") -> Mapping[str, Any]:
    """As they stand in the file, once they are known to be right."""
    given = table.get("budgets", {})
    if given != {}:
        from lora_doctor.results.budget import read_budgets

        read_budgets(given, f"{file}{at}")
    return dict(given)


def _set_up(file: Path, name: str, table: Any, known: set[str]) -> SetUp:
    where = f"set-ups.{name}"
    if not isinstance(table, Mapping):
        raise InputError(f"{file}: {where} is not a table")
    own = ("model", "command", "budgets")
    options = {key: value for key, value in table.items() if key not in own}
    _check_keys(file, options, known, own, f"{where}.")
    model, command = (table.get(key, "") for key in ("model", "command"))
    if not (isinstance(model, str) and isinstance(command, str)) or bool(model) == bool(command):
        raise InputError(
            f"{file}: {where} needs either model (to check) or command (to dry-run), a string"
        )
    try:
        shlex.split(command)
    except ValueError as error:
        raise InputError(f"{file}: {where}.command: {error}") from None
    return SetUp(name, model, command, options, _budgets(file, table, f": {where}"))


def _check_keys(
    file: Path, given: Mapping[str, Any], known: set[str], own: tuple[str, ...], at: str = ""
) -> None:
    for key in given:
        if key in _NOT_SHARED:
            raise InputError(f"{file}: {at + key!r} can be given on the command line only")
        if key not in known:
            near = difflib.get_close_matches(key, sorted({*known, *own}), 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{file}: unknown key {at + key!r}{meant}")


def _texts(
    file: Path, key: str, table: Mapping[str, Any], meaning: str
) -> Iterator[tuple[str, str]]:
    values = table.get(key, {})
    if not isinstance(values, Mapping):
        raise InputError(
            f"{file}: {key} is not a table of codes, such as {key} = {{LD208 = '...'}}"
        )
    for code, value in values.items():
        if not _CODE.fullmatch(code):
            raise InputError(f"{file}: {key}.{code}: is not the code of a rule, such as LD208")
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{file}: {key}.{code}: give {meaning}")
        yield code, value


def _severities(file: Path, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from lora_doctor.results.finding import SEVERITIES

    for code, value in _texts(file, "severity", table, "a severity"):
        if value not in SEVERITIES:
            raise InputError(f"{file}: severity.{code}: expected one of {', '.join(SEVERITIES)}")
        yield code, value


# --- options ----------------------------------------------------------------------------------


def _commands(group: click.Group) -> dict[str, click.Command]:
    return {name: group.commands[name] for name in _COMMANDS}


def _options(command: click.Command) -> dict[str, click.Option]:
    """Long options without dashes; ``no-x`` of a flag is ``x = false``."""
    return {
        name.lstrip("-"): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in parameter.opts
        if name.startswith("--") and name.lstrip("-") not in _NOT_SHARED
    }


def _parameters(command: click.Command, given: Mapping[str, Any]) -> dict[str, Any]:
    """By click's names of the parameters; lists as the command line would write them."""
    options = _options(command)
    found = {}
    for key, value in given.items():
        parameter = options.get(key)
        if parameter is None or parameter.name is None or _is_of_other_command(parameter, value):
            continue
        several = isinstance(value, list) and not parameter.multiple
        found[parameter.name] = ",".join(map(str, value)) if several else value
    return found


def _is_of_other_command(parameter: click.Option, value: Any) -> bool:
    """``depth = "static"`` or ``"meta"``, of which ``fix`` and ``verify`` have nothing: they run
    something at least. A value that no command has is refused by ``check``."""
    choice = parameter.type
    return isinstance(choice, click.Choice) and value in DEPTHS and value not in choice.choices
