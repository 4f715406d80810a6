"""LD216: target_modules names layers inside a module of modules_to_save."""

from __future__ import annotations

from collections.abc import Iterator

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
    quoted,
    target_entries,
)
from lora_doctor.rules._round_trip import matches

_EXPLAINS = ("attaches", "forward", "loss-finite", "gradients", "adapters-move", "save-reload")


class TargetsInSavedModules(Rule):
    """An entry of `target_modules` matches only layers inside a module of `modules_to_save`
    (`down_proj` beside `modules_to_save=["mlp"]`), or that module (`embed_tokens` in both).

    ## What happens
    The module is trained in full as a copy, and its layers get no adapters; PEFT does not warn.
    Where no other target is left, `get_peft_model` raises that no modules were targeted. Older
    releases put adapters into the copy, and the first forward raises `AttributeError:
    ModulesToSaveWrapper has no attribute ...`.

    ## Why
    A layer is trained either in full or by an adapter, not both. Newer releases of PEFT keep
    adapters out of the modules of `modules_to_save`, older ones do not.

    ## Versions
    All versions of PEFT.

    ## Fix
    Keep one of the two: remove the target, which changes nothing where it had no adapters; or
    remove the module from `modules_to_save`.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD216"
    name = "targets-in-saved-modules"
    summary = "A target matches only layers inside a module of modules_to_save."
    depth = "meta"
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["mlp"]},
            why="mlp is trained whole, and down_proj is in it",
        ),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["embed_tokens"]},
            why="embed_tokens is trained whole, and has no adapter",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["mlp"]},
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        targets = case.recipe.get("target_modules")
        saved = case.recipe.get("modules_to_save") or ()
        if isinstance(targets, str) or not isinstance(saved, list):
            return
        holders: dict[str, str] = {}
        for entry in target_entries(case.recipe):
            patterns = [g.pattern for g in case.structure.groups if matches(g.pattern, str(entry))]
            whole = {_holder(pattern, saved) for pattern in patterns}
            if whole and None not in whole:
                holders[str(entry)] = quoted(sorted(filter(None, whole)))
        if holders:
            yield self._finding(case, holders)

    def _finding(self, case: Case, holders: dict[str, str]) -> Finding:
        entries = list(holders)
        injection = case.structure.injection
        adapted = sum(
            group.adapted
            for group in case.structure.groups
            if any(matches(group.pattern, entry) for entry in entries)
        )
        is_lost = injection.ok and not adapted
        return self.finding(
            "warning" if is_lost else "error",
            _message(holders, is_lost),
            location=Location("recipe", "target_modules"),
            evidence=(
                Measurement("only in modules that are trained in full", quoted(entries, 6),
                            "module paths"),
                Measurement("adapters on these layers", adapted, "installed PEFT, meta device"),
                Measurement("get_peft_model", str(injection.error or "no exception"),
                            "installed PEFT, meta device"),
            ),
            proof=Proof("measured", ("PEFT injected the adapters into the full-size model on "
                                    "the meta device, and they were counted")),
            fixes=tuple(_fixes(case, entries, is_lost)),
            explains=_EXPLAINS,
        )  # fmt: skip


def _message(holders: dict[str, str], is_lost: bool) -> str:
    names = quoted(holders, 4)
    if all(entry == holder for entry, holder in holders.items()):
        effect = "it is trained in full, without adapters" if is_lost else "it cannot be both"
        return f"target_modules and modules_to_save name the same module, {names}: {effect}."
    effect = "get no adapter" if is_lost else "cannot have adapters as well"
    where = f"inside {quoted(dict.fromkeys(holders.values()))}"
    return f"The layers {names} {effect}: they are {where}, which modules_to_save trains in full."


def _holder(pattern: str, saved: list[str]) -> str | None:
    """The entry of ``modules_to_save`` that names a module around this one, or itself."""
    parts = pattern.split(".")
    around = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return next(
        (str(entry) for entry in saved if any(matches(path, str(entry)) for path in around)), None
    )


def _fixes(case: Case, entries: list[str], is_lost: bool) -> Iterator[Fix]:
    left = [entry for entry in target_entries(case.recipe) if str(entry) not in entries]
    if left:
        yield Fix(
            f"Remove {quoted(entries, 4)} from target_modules"
            + ("; training does not change." if is_lost else ": they are trained in full."),
            "safe" if is_lost else "unsafe",
            (Edit("target_modules", left),),
        )
    saved = [str(entry) for entry in case.recipe.get("modules_to_save") or ()]
    paths = [
        group.pattern
        for group in case.structure.groups
        if any(matches(group.pattern, entry) for entry in entries)
    ]
    taken = {_holder(path, saved) for path in paths}
    kept = [entry for entry in saved if entry not in taken]
    yield Fix(
        f"Or remove {quoted(sorted(filter(None, taken)))} from modules_to_save: these layers "
        "are then trained by adapters.",
        "unsafe",
        (Edit("modules_to_save", kept or REMOVE),),
    )
