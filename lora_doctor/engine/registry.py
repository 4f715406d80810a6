"""The rules that there are: those of this package, of installed packages and of folders."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from lora_doctor.discovery import find_modules
from lora_doctor.engine.rule import Rule
from lora_doctor.errors import InputError
from lora_doctor.results.depth import DEPTHS

ENTRY_POINTS = "lora_doctor.rules"
#: The package of our own rules.
_OWN = "lora_doctor.rules"


@dataclass(frozen=True)
class RuleSelection:
    """Which rules are asked: ``--select`` and ``--ignore``, codes or prefixes of codes.
    ``unfixed``: codes of which ``fix`` leaves what is found as it is."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    unfixed: tuple[str, ...] = ()

    def __contains__(self, rule: object) -> bool:
        code = getattr(rule, "code", "")
        selected = not self.select or any(code.startswith(prefix) for prefix in self.select)
        return selected and not any(code.startswith(prefix) for prefix in self.ignore)


def find_rules(folders: Iterable[Path] = ()) -> list[type[Rule]]:
    """All rules, sorted by code: our own, those of installed packages (entry points of the group
    ``lora_doctor.rules``, each a module), and files of ``folders`` (``--rules DIR``).

    Raises:
        InputError: a rule file cannot be imported, or two rules have one code.
    """
    # By its place: the engine knows no rule, and rules know the engine's interface only.
    modules = find_modules(_OWN, ENTRY_POINTS)
    modules += [_module_of(path) for folder in folders for path in _rule_files(folder)]
    rules: dict[str, type[Rule]] = {}
    for module in modules:
        for rule in vars(module).values():
            # Its own first: to ask an abstract class for its subclasses asks all of them in turn.
            is_own = isinstance(rule, type) and rule.__module__ == module.__name__
            if not is_own or not issubclass(rule, Rule) or rule is Rule:
                continue
            _check_rule(rule)
            if not module.__name__.startswith(f"{_OWN}."):
                check_symptoms(rule)
            other = rules.setdefault(rule.code, rule)
            if other is not rule:
                raise InputError(
                    f"rule {rule.code}: is in {other.__module__} and {module.__name__}; "
                    "change one of them"
                )
    return [rules[code] for code in sorted(rules)]


def check_selection(selection: RuleSelection, rules: Sequence[type[Rule]]) -> None:
    """Raises InputError when ``--select`` or ``--ignore`` names no rule, or no rule is left."""
    for prefix in (*selection.select, *selection.ignore):
        if not any(rule.code.startswith(prefix) for rule in rules):
            raise InputError(f"rule {prefix!r}: matches no rule; see `lora-doctor rules`")
    if not any(rule in selection for rule in rules):
        raise InputError("--select and --ignore leave no rule; give other codes")


def _check_rule(rule: type[Rule]) -> None:
    """Raises InputError for a rule that lacks what every rule says about itself."""
    where = f"rule {rule.__name__} in {rule.__module__}"
    for key in ("code", "name", "summary", "depth"):
        if not isinstance(getattr(rule, key, None), str):
            raise InputError(f"{where}: has no {key}; copy rules/ld201_no_target_matches.py")
    if rule.depth not in DEPTHS:
        raise InputError(f"{where}: depth {rule.depth!r} is none of {', '.join(DEPTHS)}")


def check_symptoms(rule: type[Rule]) -> None:
    """Raises InputError for a symptom that is no regular expression. To compile those of our own
    rules takes a tenth of a run at depth ``static``; the tests do."""
    try:
        for symptom in (*rule.symptoms, *rule.descriptions):
            re.compile(symptom.pattern)
    except (TypeError, AttributeError, re.error) as error:
        raise InputError(
            f"rule {rule.__name__} in {rule.__module__}: a symptom is not a regular expression: "
            f"{error}; see Symptom"
        ) from error


def _rule_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"--rules {str(folder)!r}: no such folder")
    return sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))


def _module_of(path: Path) -> ModuleType:
    name = f"lora_doctor_rules_of_{abs(hash(path.parent.resolve()))}.{path.stem}".replace(".", "_")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"--rules: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a rule file of the user's may raise anything
        raise InputError(
            f"--rules: {path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return module
