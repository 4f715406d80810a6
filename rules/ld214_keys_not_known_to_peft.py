"""LD214: the adapter config has keys that the installed PEFT does not know."""

from __future__ import annotations

import difflib
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
    adapter_config_fields,
    quoted,
)
from lora_doctor.rules._peft_config import CONFIG_CLASS

#: One or two letters of a key.
_NEAR = 0.8


class KeysNotKnownToPeft(Rule):
    """An `adapter_config.json` has keys that the installed PEFT's config class does not have.

    ## What happens
    Newer releases of PEFT warn and ignore the key; older ones raise `TypeError:
    LoraConfig.__init__() got an unexpected keyword argument`.

    ## Why
    The key is mistyped, or was written by a newer PEFT. A mistyped `lora_alfa` leaves `lora_alpha`
    at its default, and the run trains with another scaling than the file says.

    ## Versions
    All versions of PEFT: the keys are compared with the fields of the config class that is
    installed.

    ## Fix
    The key that was meant; for a key of a newer release, that release of PEFT.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD214"
    name = "keys-not-known-to-peft"
    summary = "The adapter config has keys that the installed PEFT does not know."
    depth = "static"
    symptoms = (
        Symptom(r"Unexpected keyword arguments \[.{1,500}?\] for class \w+, these are ignored"),
        Symptom(
            rf"{CONFIG_CLASS}\.__init__\(\) got an unexpected keyword argument '\w+'",
            unless=r"in from_pretrained\b|peft[\\/]config\.py",
            weight=1,
        ),
    )
    told_as = ("The adapter config has keys that my version of PEFT does not know.",)
    examples = (
        Example(
            "broken",
            "tests.saved_adapters:with_a_mistyped_key",
            loaded=True,
            depth="static",
            why="lora_alpha was meant",
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj"]}, depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        # Every release writes all of its keys: what is empty asks for nothing.
        unknown = {key: value for key, value in case.recipe.unknown.items() if value}
        known = adapter_config_fields(case.recipe.peft_type) if unknown else None
        if known is None:
            return
        meant = {
            key: near[0]
            for key in unknown
            if (near := difflib.get_close_matches(key, sorted(known), n=1, cutoff=_NEAR))
        }
        if meant:
            yield self._finding(case, {key: unknown[key] for key in meant}, meant)
        others = {key: value for key, value in unknown.items() if key not in meant}
        if others:
            yield self._finding(case, others, {})

    def _finding(self, case: Case, keys: dict[str, object], meant: dict[str, str]) -> Finding:
        version = case.environment.version("peft") or "that is installed"
        said = f"; did you mean {quoted(meant.values())}?" if meant else "."
        evidence = [
            Measurement("not known", quoted(f"{key}: {value!r}" for key, value in keys.items()),
                        "adapter config"),
            Measurement("PEFT", version, "installed package"),
        ]  # fmt: skip
        written = case.asked.get("peft_version")
        if written:
            evidence.append(Measurement("written by PEFT", str(written), "adapter config"))
        if meant:
            fix = Fix(
                "Write " + quoted(f"{name} for {key}" for key, name in meant.items()) + ".",
                "manual",
            )
        else:
            fix = Fix(
                f"Remove {quoted(keys)}, or install the PEFT that wrote the config"
                + (f" ({written})." if written else "."),
                "manual",
            )
        return self.finding(
            "warning" if meant else "info",
            f"PEFT {version} does not know {quoted(keys)} in the adapter config{said}",
            location=Location("recipe", next(iter(keys))),
            evidence=tuple(evidence),
            proof=Proof(
                "inferred", "the keys were compared with the fields of PEFT's config class"
            ),
            fixes=(fix,),
        )
