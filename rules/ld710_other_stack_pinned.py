"""LD710: the package versions pinned by the set-up are not the installed ones."""

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
    quoted,
)


class OtherStackPinned(Rule):
    """The package versions pinned by the set-up are not the installed ones.

    ## What happens
    This diagnosis was made with the installed packages. If the set-up trains with others, the
    result may differ: keys are renamed between releases, and classes behave differently.

    ## Why
    `requirements.txt`, `pyproject.toml` or a lock file next to the set-up requires other versions
    than the installed ones.

    ## Versions
    All.

    ## Fix
    Run the check in the environment you train in.

    ## Links
    https://packaging.python.org/en/latest/specifications/version-specifiers/
    """

    code = "LD710"
    name = "other-stack-pinned"
    summary = "The package versions pinned by the set-up are not the installed ones."
    depth = "static"
    examples = (
        Example("broken", "tests/set_ups/pinned/trl.yaml", depth="static"),
        Example("healthy", "tests/set_ups/trl.yaml", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        others = []
        for pin in case.side_files.pins:
            installed = case.environment.version(pin.package)
            try:
                fits = installed is None or installed in SpecifierSet(pin.specifier, True)
            except InvalidSpecifier:
                continue
            if not fits:
                others.append((pin, installed))
        if not others:
            return
        first = others[0][0].place
        named = [f"{pin.package}{pin.specifier}" for pin, _ in others]
        yield self.finding(
            "info",
            f"The set-up pins {quoted(named)}, but another release is installed here.",
            location=Location("file", first.file, first.line),
            evidence=tuple(
                Measurement(f"{pin.package} {pin.specifier}", f"{installed} is installed",
                            str(pin.place))
                for pin, installed in others
            ),
            proof=Proof("read", "the pins were compared with the installed packages"),
            fixes=(Fix("Run the check in the environment you train in.", "manual"),),
        )  # fmt: skip
