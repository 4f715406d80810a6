"""LD707: an installed package refuses the version of another while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from lora_doctor.static.installed.refused_versions import RefusedVersion


class VersionRefused(Rule):
    """An installed package, which may not be used at all, has a version that transformers or PEFT
    refuses with an exception.

    ## What happens
    `get_peft_model` on any model: `ImportError: Found an incompatible version of torchao. Found
    version 0.9.0, but only versions above 0.16.0 are supported`, although nothing is quantized.
    `import transformers`: `tokenizers>=0.23.1,<0.24.0 is required for a normal functioning of this
    module`. `TrainingArguments(...)`: ``Using the `Trainer` with `PyTorch` requires
    `accelerate>=1.1.0` ``.

    ## Why
    For each layer PEFT calls all of its dispatchers, and some first check their library's version
    and raise if it is too old. transformers checks the packages in its dependency table when it is
    imported, and treats an accelerate that is too old as not installed.

    ## Versions
    The limits are read from the sources of the installed packages.

    ## Fix
    Install the required version; a package that is not used (torchao, gptqmodel) can be uninstalled
    instead.

    ## Links
    https://huggingface.co/docs/peft/install
    """

    code = "LD707"
    name = "version-refused"
    summary = "transformers or PEFT refuses the version of another installed package."
    depth = "static"
    about_environment = True
    symptoms = (
        Symptom(r"Found an incompatible version of [\w-]+\. Found version"),
        Symptom(r"is required for a normal functioning of this module, but found"),
        Symptom(r"Using the `Trainer` with `PyTorch` requires `?accelerate"),
        Symptom(
            r"(?i)make sure (?:that )?you have (?:installed )?(?:the latest version of )?"
            r"`?(?:pip install )?'?[\w-]+ ?>= ?\d"
        ),
        Symptom(r"requires Accelerate: `pip install"),
        Symptom(
            r"(?:requires?|only supported for) "
            r"`?(?:peft|transformers|accelerate|trl|bitsandbytes)`? ?"
            r"(?:version )?(?:>=? ?)?v?\d+\.\d+",
            weight=-1,
        ),
        Symptom(r"gptqmodel requires optimum version"),
        Symptom(r"transformers version is too old, please upgrade it to"),
        Symptom(r"requires at least accelerate version|requires accelerate ?>="),
    )

    told_as = ("The installed version of peft is too old for transformers.",)
    examples = (
        Example(
            "broken",
            "",
            installed="tests/installed/older_torchao",
            requires={"peft": ">=0.16"},
            depth="static",
        ),
        Example("healthy", "arch:llama", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        from lora_doctor.static.installed.refused_versions import LORA, TRAINER, refused_versions

        seen: set[str] = set()
        for refused in refused_versions():
            if refused.package in seen:
                continue  # told with the statement that comes first
            if refused.by == TRAINER and "builds" in case.explained:
                continue  # nothing comes as far as that
            if refused.by == LORA and _was_injected(case):
                continue
            seen.add(refused.package)
            yield self._finding(refused, trainer=refused.by == TRAINER)

    def _finding(self, refused: RefusedVersion, *, trainer: bool) -> Finding:
        fixes = [Fix(f"pip install '{refused.wanted}'", "manual")]
        if refused.asker == "peft":
            fixes.append(Fix(f"If nothing uses it: pip uninstall {refused.package}", "manual"))
        return self.finding(
            "warning" if trainer else "error",
            f"{refused.by} refuses {refused.package} {refused.installed}: {refused.asker} "
            f"requires {refused.wanted}.",
            location=Location("environment", f"{refused.package} {refused.installed}"),
            evidence=(
                Measurement(refused.package, refused.installed, "package metadata"),
                Measurement(f"{refused.asker} takes", refused.wanted,
                            f"{refused.file}:{refused.line}"),
            ),
            proof=Proof("measured", "both versions were read from the installed packages"),
            fixes=tuple(fixes),
            explains=() if trainer else ("builds", "attaches"),
        )  # fmt: skip


def _was_injected(case: Case) -> bool:
    """Whether PEFT has put adapters on layers here, past all of its dispatchers."""
    return (
        case.source.kind != "environment"
        and case.reaches("meta")
        and case.has("structure")
        and case.structure.injection.ok
        and case.structure.injection.adapter_parameters > 0
    )
