"""LD708: two distributions install the same package."""

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
)


class PackageInstalledTwice(Rule):
    """A fork that installs the same package was installed next to the original, and the files of
    both are mixed.

    ## What happens
    `ImportError: cannot import name 'check_peft_version' from 'transformers.utils'`, or any other
    name, though the versions that `pip list` shows fit each other.

    ## Why
    `adapter-transformers` and `transformers` both install a folder `transformers`: whichever was
    installed last has overwritten files of the other, and pip does not check this.

    ## Versions
    Any. Read from the metadata of every installed distribution.

    ## Fix
    Uninstall both, then install the one you need: uninstalling only one also removes files of the
    other.

    ## Links
    https://github.com/huggingface/transformers/issues/26465
    """

    code = "LD708"
    name = "package-installed-twice"
    summary = "Two installed distributions contain the same package."
    depth = "static"
    about_environment = True
    symptoms = (
        Symptom(
            r"cannot import name '\w+' from 'transformers[\w.]*'",
            raised_in=r"^(?!.*transformers_modules).*[\\/]transformers[\\/]",
            weight=2,
        ),
        Symptom(r"cannot import name '\w+' from 'transformers[\w.]*'", alone=True, weight=-2),
    )

    told_as = ("The same package is installed twice.",)
    examples = (
        Example(
            "broken",
            "",
            installed="tests/installed/fork_of_transformers",
            depth="static",
        ),
        Example("healthy", "arch:llama", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        from lora_doctor.static.installed.shared_folders import shared_folders

        for shared in shared_folders():
            names = [one.split()[0] for one in shared.distributions]
            yield self.finding(
                "error",
                f"{' and '.join(shared.distributions)} both install the package {shared.package}: "
                "files of one have overwritten files of the other.",
                location=Location("environment", ", ".join(shared.distributions)),
                evidence=tuple(
                    Measurement(one, f"brings {shared.package}", "its top_level.txt")
                    for one in shared.distributions
                ),
                proof=Proof("measured", "the metadata of the installed packages was read"),
                fixes=(
                    Fix(
                        f"pip uninstall -y {' '.join(names)} && pip install {shared.package}",
                        "manual",
                    ),
                ),
            )
