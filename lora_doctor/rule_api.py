"""Everything that a rule needs: the one module from which rules of your own import.

A rule is a class in a file of ``--rules DIR``, or in a module that an installed package names in
the entry point group ``lora_doctor.rules``. To write one, copy a file of ``rules/``, such as
``ld201_no_target_matches.py``.

    from lora_doctor.rule_api import Case, Finding, Location, Measurement, Proof, Rule

*What a rule is made of*
    ``Rule``, its ``Symptom`` (an error message that it explains) and ``Example`` (executed as a
    test), and ``Depth``, how far evidence has to go for it.
*What a rule reads*
    ``Case``, with ``ModelSource``, ``Recipe``, ``Environment``, ``StaticEvidence``,
    ``RemoteCode``, ``TrainingScript``, ``Structure`` (``Tower``, ``ModuleGroup``),
    ``OptimizerState``, ``Verification`` (``Check``; ``CHECKS`` names them; ``Saving``, the round
    trip through files), ``Observations`` and ``MemoryPlan``; ``Gathered`` says where each came
    from. What cannot be had raises ``EvidenceError``; let it pass.
*What a rule yields*
    ``Finding`` with its ``Severity``, ``Location``, ``Measurement`` and ``Proof``.
*What a fix is made of*
    ``Fix``, with ``Edit`` (``REMOVE`` takes a key out) or ``Patch``.
*Target modules of a fix*
    ``require_lora`` (raises ``EvidenceError`` for another kind of adapter), ``offered_layers``,
    ``name_groups``, ``names_in``, ``suffix``, ``cover_of``, ``naming``, ``target_entries``,
    ``unmatched_targets``, ``edits_without``.
*Words*
    ``quoted``: names for a message, the first few of many.
*What is installed*
    ``lora_config_fields``, ``known_architectures``: read from files, nothing is imported.

These names stay; anything else in ``lora_doctor`` may move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_doctor.engine.case import Case
from lora_doctor.engine.rule import Example, Rule, Symptom
from lora_doctor.errors import EvidenceError
from lora_doctor.proposal.defaults import name_groups, suffix
from lora_doctor.proposal.targets import (
    cover_of,
    edits_without,
    names_in,
    naming,
    offered_layers,
    require_lora,
    target_entries,
    unmatched_targets,
)
from lora_doctor.recipe.edit import REMOVE, Edit, Patch
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.depth import Depth
from lora_doctor.results.diagnosis import Gathered
from lora_doctor.results.finding import Finding, Location, Measurement, Proof, Severity
from lora_doctor.results.fix import Fix
from lora_doctor.results.memory_plan import MemoryPlan
from lora_doctor.results.observations import Observations
from lora_doctor.results.round_trip import Saving
from lora_doctor.results.structure import ModuleGroup, Structure, Tower
from lora_doctor.results.verification import CHECKS, Check, Verification
from lora_doctor.static.installed.environment import (
    Environment,
    known_architectures,
    lora_config_fields,
)
from lora_doctor.static.model_source import ModelSource
from lora_doctor.text import quoted

if TYPE_CHECKING:
    from lora_doctor.evidence.optimizer import OptimizerState
    from lora_doctor.static.model_files import StaticEvidence
    from lora_doctor.static.remote_code.remote_code import RemoteCode
    from lora_doctor.static.script.training_script import TrainingScript

#: Types that most rules never name: imported when somebody does, because every run imports rules.
_LAZY = {
    "OptimizerState": "evidence.optimizer",
    "RemoteCode": "static.remote_code.remote_code",
    "StaticEvidence": "static.model_files",
    "TrainingScript": "static.script.training_script",
}

__all__ = [
    "CHECKS",
    "REMOVE",
    "Case",
    "Check",
    "Depth",
    "Edit",
    "Environment",
    "EvidenceError",
    "Example",
    "Finding",
    "Fix",
    "Gathered",
    "Location",
    "Measurement",
    "MemoryPlan",
    "ModelSource",
    "ModuleGroup",
    "Observations",
    "OptimizerState",
    "Patch",
    "Proof",
    "Recipe",
    "RemoteCode",
    "Rule",
    "Saving",
    "Severity",
    "StaticEvidence",
    "Structure",
    "Symptom",
    "Tower",
    "TrainingScript",
    "Verification",
    "cover_of",
    "edits_without",
    "known_architectures",
    "lora_config_fields",
    "name_groups",
    "names_in",
    "naming",
    "offered_layers",
    "quoted",
    "require_lora",
    "suffix",
    "target_entries",
    "unmatched_targets",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"lora_doctor.{_LAZY[name]}"), name)
