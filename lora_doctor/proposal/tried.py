"""The proposal tried: values for the open keys of a recipe that the installed PEFT takes.

``default_recipe`` says what a careful engineer would take, PEFT is asked whether it can. Runs in a
child process with torch, transformers and PEFT.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_doctor.model.injection import inject
from lora_doctor.model.module_path import pattern_of
from lora_doctor.model.wrapper import wrapper_call
from lora_doctor.proposal.defaults import (
    ALPHA,
    DROPOUT,
    RANK,
    bare_weights,
    default_groups,
    default_recipe,
    name_groups,
    suffix,
    target_forms,
    task_type,
    wrapper_fits,
)
from lora_doctor.proposal.targets import side_towers
from lora_doctor.proposal.task_heads import task_heads
from lora_doctor.results.note import Note
from lora_doctor.text import quoted

if TYPE_CHECKING:
    from lora_doctor.model.injection import Injected
    from lora_doctor.recipe.recipe import Recipe
    from lora_doctor.results.structure import ModuleGroup, Structure

#: The share of a model from which on we say that it gets no adapter.
_MUCH = 0.05
_OPEN_KEYS = (
    "task_type", "target_modules", "target_parameters", "modules_to_save", "r",
    "lora_alpha", "lora_dropout", "dtype",
)  # fmt: skip


class Proposal:
    """Finds values for the open keys that the installed PEFT accepts for this model.

    Only what is proposed gives way; what the user set is injected as it is, and may fail.
    """

    def __init__(self, found: Structure, model: Any, asked: Recipe) -> None:
        self.found = _without_odd_convolutions(found, model)
        self.model = model
        self.asked = asked
        self.open = [key for key in _OPEN_KEYS if key not in asked]
        if asked.peft_type != "LORA":
            self.open = [key for key in self.open if key in ("task_type", "dtype")]
        self.notes: list[Note] = []
        self.heads: tuple[str, ...] = ()
        ours = {"target_modules", "modules_to_save"}
        if ours <= set(self.open) and task_type(found) not in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
            self.heads = task_heads(model)
            self.found = _as_heads(self.found, self.heads)

    def refine(self) -> tuple[Recipe, Injected, tuple[Note, ...]]:
        """The recipe with its open keys filled, what PEFT made of it, and what was left out."""
        recipe, injected, notes = self._targets()
        recipe, injected = self._with_heads(recipe, injected)
        return recipe, injected, (*notes, *self._no_layers(injected), *self._no_encoder(injected))

    def _targets(self) -> tuple[Recipe, Injected, tuple[Note, ...]]:
        fields = _lora_fields()
        keys = [key for key in self.open if key in (*fields, "dtype")]
        values = default_recipe(self.found, keys, "target_parameters" in fields)
        if "task_type" in values:
            values["task_type"] = self._task_type(values["task_type"])
        if "lora_alpha" in values and self.asked.get("use_rslora"):
            # The same scaling: rsLoRA divides by the square root of the rank.
            rank = self.asked.get("r") or RANK
            values["lora_alpha"] = max(1, round(ALPHA / RANK * math.sqrt(rank)))
        if "lora_dropout" in values and self.asked.get("target_parameters"):
            values["lora_dropout"] = 0  # PEFT takes none on parameters
        recipe = self.asked.fill(values)
        injected = inject(self.model, recipe)
        if injected.result.ok and injected.result.converted and "target_parameters" in values:
            # PEFT adapts these names as parameters, which are proposed by themselves already.
            values["target_modules"] = self._not_converted(values["target_modules"], injected)
            recipe = self.asked.fill(values)
            injected = inject(self.model, recipe)
        if injected.result.ok:
            if injected.result.not_reloaded and "target_modules" in values:
                recipe, injected = self._without_lost_on_reload(values, recipe, injected)
            return recipe, injected, tuple(self.notes)
        for change in self._retreats(values):
            changed = self.asked.fill({**values, **change})
            tried = inject(self.model, changed)
            if tried.result.ok:
                return changed, tried, tuple(self.notes)
        return recipe, injected, ()

    def _no_layers(self, injected: Injected) -> list[Note]:
        """Told where much of a tower is weights that no adapter fits: DBRX's flat experts, which
        another module reads, XLNet's attention. Experts that PEFT could adapt are LD204's."""
        if "target_modules" not in self.open or not injected.result.ok:
            return []
        adapted = {pattern_of(path) for path in injected.adapted}
        bare = [group for group in bare_weights(self.found) if group.pattern not in adapted]
        share = sum(group.parameters for group in bare) / max(self.found.total_parameters, 1)
        if share < _MUCH:
            return []
        names = quoted((group.pattern for group in bare), 4)
        why = f"weights of no linear layer, {share:.0%} of the model"
        return [Note("not-adapted", f"no adapters on {names}: {why}", why)]

    def _no_encoder(self, injected: Injected) -> list[Note]:
        """Told where the proposal leaves out the encoder of one model (Whisper), which a recipe by
        bare names would adapt; an encoder that serves a language model is left out as usual."""
        kinds = {tower.kind for tower in self.found.towers}
        if "target_modules" not in self.open or "language" not in kinds or not injected.result.ok:
            return []
        serving = side_towers(self.found)
        left = [
            tower.path
            for tower in self.found.towers
            if tower.kind in ("vision", "audio")
            and tower not in serving
            and not any(path.startswith(f"{tower.path}.") for path in injected.adapted)
        ]
        if not left:
            return []
        why = "the proposed target_modules name the decoder only"
        return [Note("not-adapted", f"no adapters on {quoted(left, 4)}: {why}", why)]

    def _not_converted(self, targets: str | list[str], injected: Injected) -> str | list[str]:
        """The targets without those that PEFT has turned into parameters."""
        adapted = {pattern_of(path) for path in injected.adapted}
        passed = [group for group in default_groups(self.found) if group.pattern not in adapted]
        if passed:
            names = quoted((group.pattern for group in passed), 4)
            why = "PEFT takes their names for the fused experts of this model"
            self.notes.append(Note("not-adapted", f"no adapters on {names}: {why}", why))
        if not isinstance(targets, str):
            turned = {one.entry for one in injected.result.converted}
            return [name for name in targets if name not in turned]
        kept = [
            group
            for group in self.found.groups
            if group.pattern in adapted and group.kind != "parameter"
        ]
        return next(iter(name_groups(self.found, kept)), targets)

    def _without_lost_on_reload(
        self, values: Mapping[str, Any], recipe: Recipe, injected: Injected
    ) -> tuple[Recipe, Injected]:
        """The proposal without what PEFT does not find again in its own file; as it is where
        nothing else would be left."""
        lost = set(injected.result.not_reloaded)
        adapted = {pattern_of(path) for path in injected.adapted}
        kept = [
            group
            for group in self.found.groups
            if group.pattern in adapted - lost and group.kind != "parameter"
        ]
        forms = name_groups(self.found, kept)
        if not forms:
            return recipe, injected
        change: dict[str, Any] = {"target_modules": forms[0]}
        if values.get("target_parameters"):
            gone = {suffix(pattern) for pattern in lost}
            stay = [name for name in values["target_parameters"] if name not in gone]
            change["target_parameters"] = stay or None
            if not stay and "lora_dropout" in values:
                change["lora_dropout"] = DROPOUT
        changed = self.asked.fill({**values, **change})
        tried = inject(self.model, changed)
        if not tried.result.ok or tried.result.not_reloaded:
            return recipe, injected
        names = ", ".join(sorted(lost))
        text = f"PEFT loses adapters on {names} when it loads them; left out"
        self.notes.append(Note("choice", text))
        return changed, tried

    def _task_type(self, proposed: str | None) -> str | None:
        """The proposed task type, when its wrapper fits this class; else none: PEFT's plain
        wrapper passes on what it gets."""
        if proposed is None:
            return None
        call = wrapper_call(proposed)
        if not all(hasattr(self.model, name) for name in call.needs):
            return None
        if self._names_a_head(call.keeps):
            return None
        return proposed if wrapper_fits(self.found, call.sends) else None

    def _names_a_head(self, heads: Collection[str]) -> bool:
        """Whether the user's own list names a head that PEFT trains as a whole for the task: newer
        releases raise for that, older ones freeze the adapters there."""
        targets = self.asked.get("target_modules")
        return isinstance(targets, list) and any(
            name.rpartition(".")[2] in heads for name in targets
        )

    def _with_heads(self, recipe: Recipe, injected: Injected) -> tuple[Recipe, Injected]:
        """Beside the adapters, heads that the wrapper of the task does not train by itself."""
        own = wrapper_call(recipe.get("task_type")).keeps
        heads = [path for path in self.heads if path not in own]
        if not heads or not injected.result.ok:
            return recipe, injected
        changed = recipe.fill({"modules_to_save": heads})
        tried = inject(self.model, changed)
        return (changed, tried) if tried.result.ok else (recipe, injected)

    def _retreats(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Changes to what was proposed, the smallest first."""
        changes: list[dict[str, Any]] = []
        if values.get("lora_dropout"):
            changes.append({"lora_dropout": 0})
        if "target_modules" in values:
            changes.extend({"target_modules": form} for form in target_forms(self.found)[1:])
            changes.extend(
                {"target_modules": form, "lora_dropout": 0}
                for form in target_forms(self.found)
                if values.get("lora_dropout")
            )
            accepted = self._accepted(values)
            if accepted:
                changes.append({"target_modules": accepted})
        elif values.get("task_type"):
            # The user's own targets may name a head that PEFT trains as a whole for the task.
            changes.extend({**change, "task_type": None} for change in [{}, *changes])
        if "target_parameters" in values:
            changes.extend({**change, "target_parameters": None} for change in [{}, *changes])
        elif "target_modules" in values:
            changes.extend(self._as_parameters())
        return changes

    def _as_parameters(self) -> list[dict[str, Any]]:
        """The same layers by their weights: PEFT adapts a parameter of any module, also of a class
        that it does not know as a layer (I-BERT's ``QuantLinear``, which is no ``torch.nn.Linear``
        and multiplies by its weight)."""
        if "target_parameters" not in self.open or "target_parameters" not in _lora_fields():
            return []
        wanted = default_groups(self.found)
        names = sorted({f"{suffix(group.pattern)}.weight" for group in wanted})
        ends = tuple(f".{name}" for name in names)
        chosen = {group.pattern for group in wanted}
        others = [
            name
            for name, _ in self.model.named_parameters()
            if name.endswith(ends) and pattern_of(name.removesuffix(".weight")) not in chosen
        ]
        if not wanted or others:
            return []
        layers = [self.model.get_submodule(group.examples[0]) for group in wanted]
        own = {type(layer).__name__ for layer in layers if type(layer).__module__[:6] != "torch."}
        classes = ", ".join(sorted(own))
        text = f"PEFT knows no layers of class {classes}: their weights are adapted"
        self.notes.append(Note("choice", text))
        return [{"target_modules": [], "target_parameters": names, "lora_dropout": 0}]

    def _accepted(self, values: Mapping[str, Any]) -> list[str]:
        """The proposed names that PEFT takes, each tried alone."""
        names = values["target_modules"]
        if isinstance(names, str):
            return []
        plain = {**values, "target_parameters": None}
        accepted: list[str] = []
        refused: list[str] = []
        for name in names:
            tried = inject(self.model, self.asked.fill({**plain, "target_modules": [name]}))
            (accepted if tried.result.ok else refused).append(name)
        if accepted and refused:
            text = f"PEFT refuses adapters on {', '.join(refused)}; left out"
            self.notes.append(Note("choice", text))
        return accepted


def _as_heads(found: Structure, heads: tuple[str, ...]) -> Structure:
    """What stands in a head is trained with it, and is no target."""
    starts = tuple(f"{path}." for path in heads)
    groups = tuple(
        replace(group, role="head") if f"{group.pattern}.".startswith(starts) else group
        for group in found.groups
    )
    return replace(found, groups=groups)


def _without_odd_convolutions(found: Structure, model: Any) -> Structure:
    """The structure with convolutions marked as no target that PEFT's adapters do not follow: in
    groups, which it cannot merge and mostly refuses, with a dilation, which it leaves out, and
    transposed ones, which it does not know."""

    def fits(group: ModuleGroup) -> bool:
        layer = model.get_submodule(group.examples[0])
        spread = max(layer.dilation) > 1 and max(layer.kernel_size) > 1
        return layer.groups == 1 and not spread and not layer.transposed

    groups = tuple(
        replace(group, kind="other") if group.kind == "conv" and not fits(group) else group
        for group in found.groups
    )
    return replace(found, groups=groups)


def _lora_fields() -> set[str]:
    import dataclasses

    import peft

    return {item.name for item in dataclasses.fields(peft.LoraConfig)}
