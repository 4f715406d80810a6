"""LD215: an entry of modules_to_save matches more modules than intended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    REMOVE,
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Severity,
    entries_for,
    quoted,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import LooseMatch

_KEY = "modules_to_save"
#: What a copy with adapters in it does to a run: which of these it is, depends on the release.
_EXPLAINS = ("attaches", "forward", "loss-finite", "gradients", "adapters-move", "save-reload")


class SavedModulesMatchedByEnd(Rule):
    """An entry of `modules_to_save` also matches the end of other names, and PEFT trains full
    copies of those modules too: `attn` matches `self_attn`, `norm` matches `input_layernorm`.

    ## What happens
    Modules that were not named are trained and saved in full. Where they contain layers with
    adapters, the run fails: `get_peft_model` raises `TypeError: modules_to_save cannot be applied
    to modules of type ...`, or training runs and the saved adapter cannot be loaded (`KeyError:
    '...lora_A.default.weight'`), or the first forward raises.

    ## Why
    For `modules_to_save` PEFT checks whether the path ends in the entry, without requiring a dot
    before it. For `target_modules`, and when it keeps adapters out of modules that are trained in
    full, it does require the dot. So a module that merely ends in the entry gets both.

    ## Versions
    All versions of PEFT.

    ## Fix
    A longer part of the path, which only the intended modules end in. Where there is none (a
    top-level module), rename the module in the model's class.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD215"
    name = "saved-modules-matched-by-end"
    summary = "An entry of modules_to_save also matches modules whose names merely end in it."
    depth = "meta"
    told_as = ("modules_to_save also trains other modules whose names end in the same word.",)
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], _KEY: ["attn"]},
            why="attn is the end of self_attn, which holds the adapters",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], _KEY: ["embed_tokens", "head"]},
            depth="meta",
            why="head can only be lm_head",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        injection = case.structure.injection
        if injection.error is not None and "attaches" in case.explained:
            return  # LD205 has said which modules both keys name
        for match in injection.loose_matches:
            yield self._finding(case, match)

    def _finding(self, case: Case, match: LooseMatch) -> Finding:
        return self.finding(
            _severity(match),
            _message(match),
            location=Location("recipe", _KEY),
            evidence=tuple(_evidence(case, match)),
            proof=Proof(
                "measured",
                (
                    "PEFT injected the adapters into the full-size model on "
                    "the meta device, and its copies were counted"
                ),
            ),
            fixes=tuple(_fixes(case, match)),
            explains=_EXPLAINS if match.adapted else (),
        )


def _severity(match: LooseMatch) -> Severity:
    """A norm or a head more is often what was meant; whole blocks are not."""
    if match.adapted:
        return "error"
    return "warning" if match.blocks else "info"


def _message(match: LooseMatch) -> str:
    meant = f" beside {quoted(match.meant, 2)}" if match.meant else ""
    start = (
        f"{_KEY} {match.entry} also matches {match.modules} modules whose names merely end "
        f"in it{meant}"
    )
    if match.adapted:
        return (
            f"{start}: {quoted(match.patterns, 3)}, which contain adapters. PEFT cannot train "
            "a module in full and with adapters at once."
        )
    return f"{start}: {quoted(match.patterns, 3)} are trained in full."


def _evidence(case: Case, match: LooseMatch) -> Iterator[Measurement]:
    source = "installed PEFT, meta device"
    yield Measurement(
        f"names that end in {match.entry}",
        f"{match.modules} modules, {match.parameters:,} parameters: {quoted(match.patterns, 6)}",
        source,
    )
    named = f"{quoted(match.meant, 4)}, {match.meant_parameters:,} parameters"
    yield Measurement(f"named {match.entry}", named if match.meant else "none", "module paths")
    if match.adapted:
        yield Measurement("adapters inside", quoted(match.adapted, 6), source)
    error = case.structure.injection.error
    if error is not None:
        yield Measurement("get_peft_model", str(error), source)


def _fixes(case: Case, match: LooseMatch) -> Iterator[Fix]:
    kept = [str(entry) for entry in case.recipe.get(_KEY) or () if str(entry) != match.entry]
    if match.meant and all("*" not in path for path in match.meant):
        names = entries_for(match.meant, case.structure)
        if match.entry not in names:
            yield Fix(
                f"Use {quoted(names, 3)} instead, which no other name ends in.",
                "unsafe",
                (Edit(_KEY, [*kept, *names]),),
            )
        else:
            yield Fix(
                f"Rename {match.entry} in the model's class: every entry for it also matches "
                "other names.",
                "manual",
            )
    elif match.adapted:
        yield Fix(
            f"Remove {match.entry} from {_KEY}: these layers are then trained by adapters.",
            "unsafe",
            (Edit(_KEY, kept or REMOVE),),
        )
    else:
        yield Fix(f"Use more of the path than {match.entry}, if fewer modules are meant.", "manual")
