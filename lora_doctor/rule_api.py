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
    ``RemoteCode``, ``TrainingScript`` (``Replacement``), ``Structure``, ``OptimizerState``
    (``TrainableTensor``), ``Verification`` (``Check``; ``CHECKS`` names them;
    ``BatchReport`` with each ``AddedInput``), ``Observations``,
    ``MemoryPlan`` (``MemoryVariant``) and ``Supervision`` (``RowSet``); ``Gathered`` says where
    each came from. What cannot be had raises ``EvidenceError`` (``ConfigError`` where transformers
    refuses the config, ``ModelClassError`` where an auto class does not have the model); let it
    pass. One of your own says
    with ``remedy`` what the user can change about it, which ``--strict`` then counts: ``package``,
    ``file``, ``hub``, ``trust`` or ``limit``; with ``lacks`` what another kind of run has:
    ``weights`` or ``texts``.
*What the structure is made of*
    ``Tower``, ``ModuleGroup``, ``Quantization`` (``QuantizedUse``, ``Use``: what the model's own
    code does with a quantized layer; ``KeptWeights``: what is not quantized), ``FloatPart``,
    ``LooseMatch`` (modules that an entry names by the end of their name), ``AdapterState``,
    ``BuiltIn``, ``Stacked`` and ``StackedAdapter``.
*Of a checkpoint that comes quantized*
    ``CheckpointQuantization``, what the installed libraries make of it: ``ReplacedLayers``, and
    ``ErrorReport`` for what they raise; ``PlainWeights``, what they make of weights that are not
    quantized.
*What was observed while the contract ran*
    ``NormReading`` (``EpsilonEffect``), ``ActivationReading``, ``AttentionReading``,
    ``UpdateReading``, ``SpacingReading``, ``ConnectionReading``, ``UnusedAdapterReading``,
    ``NonLinearOutputReading``, ``InstancePatch``; ``Saving``, the round trip through files, with
    ``TiedPart``, ``Vocabulary``, ``QuantizedMerge`` and ``AutoLoading``.
*Of a dry run*
    ``Setup``: the calls of the script or notebook that holds the recipe. Read off it:
    ``prepared_after_adapters``, ``loaded_frozen``, ``adapted_twice``,
    ``adapted_by_the_trainer_too``, ``optimizer_too_early`` (each a ``Slip``: two calls in an order
    that does not work), ``merged_after_wrapping``, ``merges``, ``merged_and_dropped``,
    ``merged_into_adapter_folder``, ``loaded_sparingly`` (the call),
    ``saved_as_base``, ``trained_in_turn``, ``merged_where_it_trained`` (the calls),
    ``all_set_trainable``, ``compiled_before_adapters``, ``loaded_onto_adapters``,
    ``hotswap_prepared_too_early``, ``hotswap_prepared_too_late``,
    ``streamed_without_steps`` (likewise), ``unknown_arguments`` (``UnknownArgument``),
    ``gone_names`` (``GoneName``: imported, and not in the installed release),
    ``adds_without_wrapper``; ``spread_twice`` (``SpreadTwice``: a device map beside FSDP or
    DeepSpeed); ``sharded`` (``Sharded``: how the weights are divided among processes) and
    ``storage_dtype``, what 4-bit weights are stored as; ``reentrant_under_ddp``
    (``ReentrantDdp``: checkpointing that DDP does not take); ``program_contradictions``
    (``Contradictions``: what DeepSpeed and the Trainer are told differently, each a
    ``Contradiction``, which ``contradictions`` finds in two of any origin; ``accumulation_of``:
    what accelerate's config says of it); each ``Launch``, what starts the
    script (``is_certain``: for sure, and in no other way), and each ``Cut`` in it: where a command
    of a shell file ends before its last options;
    ``losses_without_gradients``, ``gradients_cleared``, ``gradients_discarded``,
    ``gradients_never_reset`` and ``trained_in_eval_mode``: slips of a loop of one's own;
    ``evaluations_without_data``: trainers that are to evaluate and are given no data for it;
    ``metrics_not_computed``: trainers that choose the best checkpoint by a metric which no
    evaluation gives; ``collated_columns``: what a collator reads of each row;
    ``added_tokens``: the calls that add tokens to the tokenizer (``AddedTokens``);
    ``made_arguments``: the calls that make arguments of a Trainer;
    ``written_values``: the single values that the user's file hands to a config or to such
    arguments (``WrittenValue``), of which ``misused_values`` (``MisusedValues``) tells what fails
    (``MisusedValue``);
    ``made_trainer``: the trainer, as far as it can be made again; ``sets_padding_id``;
    ``own_vocabulary``: the size that it gives the model beside the checkpoint's;
    ``has_unread_callback``: whether the trainer has one whose code is not known;
    ``brings_optimizer``: whether the trainer is given one, or makes its own; ``resumed_from``: the
    checkpoints that it resumes from, and ``without_state``, those without ``TRAINER_STATE``;
    ``untrusted_code``: what it loads that needs code of its folder (``UntrustedCode``);
    ``may_initialise``: whether it may call a function of PEFT that makes an initialisation;
    ``blind_rewards``, ``distances_rewarded`` and ``refused_rewards`` (``RefusedReward``): reward
    functions that read no completion, return a distance, or are called with other arguments;
    ``narrow_overrides`` (``NarrowOverride``): methods of a Trainer of one's own that take too
    little; ``unfit_hooks`` (``UnfitHook``): functions and callbacks that it calls otherwise;
    ``absent_methods`` (``AbsentMethod``): methods that the object does not have or that refuse it;
    ``contexts_not_entered`` and ``unused_adapter_configs`` (``WithoutEffect``): calls that do
    nothing, and ``states_that_fit_nothing`` (``LostState``): weights whose names a model does not
    have; ``absent_names`` (``AbsentName``): columns and splits that a data set does not have;
    ``asked_of_tokenizer`` (``AskedOfTokenizer``): a mask token or a template that it has to have;
    ``selected_beyond`` (``SelectedRows``): selections of more rows than a file has;
    ``misplaced_arguments`` (``MisplacedArgument``): those given twice, or of another kind;
    ``splits_as_rows`` (``SplitsAsRows``): all splits of a set where the rows of one are needed;
    ``labels_decoded``: metrics that decode labels with their -100;
    ``evaluated_on_trained`` (``TrainedOn``) and ``labels_with_padding``: what a trainer's rows are
    made of.
    ``AskedArguments``: what their own class said of them, each ``Refusal``.
    ``DryRun``, the user's own command with the model shrunk, and ``ScriptError``, what it raised;
    ``FrozenAdapters``, of which none trains; ``Processes``, where several train
    together, with each ``SavedAdapter`` and ``EmptyWeights``; ``TrainingSignal``, what its steps
    had to learn from:
    ``StepGradients``, ``GradientsWithoutStep``, ``PreferencePairs``, ``Rewards``.
    ``AskedTrainer``: what the trainer's own class said of its arguments.
    ``OwnRows``, the trainer with its rows as ``own_rows`` reads them; ``FirstBatch``: what the
    installed classes made of them.
*Of a part of the model that gets adapters*
    ``AdaptedPart``: what PEFT makes of it.
*Of rows that are longer than the model takes*
    ``LongRow``: a tiny model with all positions, on a row as long as the longest.
*What the checkpoint lacks*
    ``Loading``: what ``from_pretrained`` makes of its names; ``ChatTemplate``: what the template in
    its folder did with a short conversation; ``ProcessedImage``: what its processor made of an
    image.
*Of the file of a training framework*
    ``SetUp``, its entries and where each stands (``Place``); ``framework_named``, the
    ``Framework`` that reads it; ``remarks_of``, each ``Remark`` on its entries. An ``Edit`` of an
    entry that is no key of a recipe has the name behind ``ENTRY``. ``SideFiles``, the files that it
    names, with each ``Pin`` of a package beside it.
*Of a saved adapter*
    ``adapter_steps``: what a script does with several adapters, call by call (``AdapterStep``), and
    ``AdapterSteps``, what the installed PEFT made of them, with each ``StepFault``.
    ``AdapterFiles``, its config and the header of its weights; ``AdapterLoading``, what the
    installed PEFT made of it (``OtherShape``: a tensor that does not fit); ``AdapterValues``.
*What a rule yields*
    ``Finding`` with its ``Severity``, ``Location``, ``Measurement`` and ``Proof`` (``ProofKind``).
*What a fix is made of*
    ``Fix``, with ``Edit`` (``REMOVE`` takes a key out) or ``Patch``.
*Target modules of a fix*
    ``require_lora`` (raises ``EvidenceError`` for another kind of adapter),
    ``require_named_layers`` (for one that is put on no layers), ``offered_layers``,
    ``name_groups``, ``names_in``, ``expression_ends``, ``suffix``, ``cover_of``, ``same_job``,
    ``beyond``, ``naming``, ``means_mlp``, ``side_towers``, ``target_entries``,
    ``mended_expression``, ``unmatched_targets``, ``unmatched_entries``, ``targets_without``,
    ``edits_without``,
    ``edits_excluding``, ``at_an_end``, ``excluding``, ``pattern_of``, ``without_lookahead``;
    ``asks_for_adapter``: whether the recipe asks for one at all. ``entries_for``: the entries of
    ``modules_to_save`` that mean these modules.
*Numbers*
    ``Precision``, ``float16_keys`` and ``bfloat16_keys`` (which keys make a run compute in it),
    ``LARGEST_FLOAT16``, ``MERGE_TOLERANCE``; ``named_gpus``: the cards (``Gpu``) that the recipe
    names; ``kept_budgets``: what a team asserts of numbers, each with its number (``BudgetCheck``),
    of which ``NUMBERS`` says what is counted.
*Words*
    ``quoted``: names for a message, the first few of many; ``excerpt``: somebody else's words
    in one; ``place_of``: the file and line in a text; ``missing_name``: the package that an
    ImportError's message asks for;
    ``PYTHON_BYTES``: how much of a Python file is read; ``gib``: bytes as GiB;
    ``MODALITIES``:
    the kinds of input, with what they are called.
*What is installed*
    ``adapter_config_fields``, ``lora_config_fields``, ``known_architectures``,
    ``pretrained_model_generates``: read from files, nothing is imported.

These names stay; anything else in ``lora_doctor`` may move. A built-in rule may also use a reader
in ``lora_doctor.static`` for which no other rule has a use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_doctor.contract.half_precision import LARGEST_FLOAT16, bfloat16_keys, float16_keys
from lora_doctor.contract.precision import Precision
from lora_doctor.engine.budgets import kept_budgets
from lora_doctor.engine.case import Case
from lora_doctor.engine.rule import Example, Rule, Symptom
from lora_doctor.errors import ConfigError, EvidenceError, ModelClassError
from lora_doctor.limits import PYTHON_BYTES
from lora_doctor.model.module_path import pattern_of
from lora_doctor.proposal.defaults import name_groups, suffix
from lora_doctor.proposal.expression_ends import expression_ends
from lora_doctor.proposal.expression_slip import mended_expression
from lora_doctor.proposal.saved_modules import entries_for
from lora_doctor.proposal.stack_ends import at_an_end, excluding
from lora_doctor.proposal.targets import (
    beyond,
    cover_of,
    edits_excluding,
    edits_without,
    means_mlp,
    names_in,
    naming,
    offered_layers,
    require_lora,
    require_named_layers,
    same_job,
    side_towers,
    target_entries,
    targets_without,
    unmatched_entries,
    unmatched_targets,
    without_lookahead,
)
from lora_doctor.recipe.edit import ENTRY, REMOVE, Edit, Patch
from lora_doctor.recipe.files.format import Framework, Remark, framework_named, remarks_of
from lora_doctor.recipe.gpus import Gpu, named_gpus
from lora_doctor.recipe.recipe import Recipe, asks_for_adapter
from lora_doctor.recipe.set_up import SetUp
from lora_doctor.results.budget import NUMBERS, BudgetCheck
from lora_doctor.results.depth import Depth
from lora_doctor.results.diagnosis import Gathered
from lora_doctor.results.finding import Finding, Location, Measurement, Proof, ProofKind, Severity
from lora_doctor.results.fix import Fix
from lora_doctor.results.verification import CHECKS, AddedInput, BatchReport, Check, Verification
from lora_doctor.static.installed.environment import (
    Environment,
    adapter_config_fields,
    known_architectures,
    lora_config_fields,
    pretrained_model_generates,
)
from lora_doctor.static.installed.missing_package import missing_name
from lora_doctor.static.model_source import ModelSource
from lora_doctor.static.place import Place
from lora_doctor.text import excerpt, gib, place_of, quoted
from lora_doctor.tiny_model.modalities import MODALITIES

if TYPE_CHECKING:
    from lora_doctor.contract.round_trip import MERGE_TOLERANCE
    from lora_doctor.engine.written_values import WrittenValue, written_values
    from lora_doctor.evidence.optimizer import OptimizerState, TrainableTensor
    from lora_doctor.recipe.cut import Cut
    from lora_doctor.recipe.files.side_files import SideFiles
    from lora_doctor.recipe.program.absent_methods import AbsentMethod, absent_methods
    from lora_doctor.recipe.program.absent_names import AbsentName, absent_names
    from lora_doctor.recipe.program.adapter_steps import AdapterStep, adapter_steps
    from lora_doctor.recipe.program.added_tokens import AddedTokens, added_tokens
    from lora_doctor.recipe.program.after_training import (
        all_set_trainable,
        merged_and_dropped,
        merged_into_adapter_folder,
        merged_where_it_trained,
        saved_as_base,
        trained_in_turn,
    )
    from lora_doctor.recipe.program.all_splits import SplitsAsRows, splits_as_rows
    from lora_doctor.recipe.program.asked_of_tokenizer import AskedOfTokenizer, asked_of_tokenizer
    from lora_doctor.recipe.program.best_metric import metrics_not_computed
    from lora_doctor.recipe.program.callbacks import has_unread_callback
    from lora_doctor.recipe.program.collated_columns import collated_columns
    from lora_doctor.recipe.program.deepspeed_settings import (
        Contradiction,
        Contradictions,
        accumulation_of,
        contradictions,
        program_contradictions,
    )
    from lora_doctor.recipe.program.devices import (
        Sharded,
        SpreadTwice,
        sharded,
        spread_twice,
        storage_dtype,
    )
    from lora_doctor.recipe.program.evaluation import evaluations_without_data
    from lora_doctor.recipe.program.first_batch import OwnRows, own_rows
    from lora_doctor.recipe.program.gone_names import GoneName, gone_names
    from lora_doctor.recipe.program.hooks import UnfitHook, unfit_hooks
    from lora_doctor.recipe.program.initialising import may_initialise
    from lora_doctor.recipe.program.launch import Launch, is_certain
    from lora_doctor.recipe.program.made_arguments import made_arguments
    from lora_doctor.recipe.program.made_trainer import made_trainer
    from lora_doctor.recipe.program.misplaced import MisplacedArgument, misplaced_arguments
    from lora_doctor.recipe.program.names import UnknownArgument, unknown_arguments
    from lora_doctor.recipe.program.objects import adds_without_wrapper
    from lora_doctor.recipe.program.order import (
        Slip,
        adapted_by_the_trainer_too,
        adapted_twice,
        loaded_frozen,
        merged_after_wrapping,
        merges,
        optimizer_too_early,
        prepared_after_adapters,
    )
    from lora_doctor.recipe.program.overrides import NarrowOverride, narrow_overrides
    from lora_doctor.recipe.program.own_optimizer import brings_optimizer
    from lora_doctor.recipe.program.own_vocabulary import own_vocabulary
    from lora_doctor.recipe.program.padding_id import sets_padding_id
    from lora_doctor.recipe.program.reentrant import ReentrantDdp, reentrant_under_ddp
    from lora_doctor.recipe.program.resuming import TRAINER_STATE, resumed_from, without_state
    from lora_doctor.recipe.program.rewards import (
        RefusedReward,
        blind_rewards,
        distances_rewarded,
        refused_rewards,
    )
    from lora_doctor.recipe.program.saved_adapter import loaded_sparingly
    from lora_doctor.recipe.program.selected_rows import SelectedRows, selected_beyond
    from lora_doctor.recipe.program.setup import Setup
    from lora_doctor.recipe.program.streaming import streamed_without_steps
    from lora_doctor.recipe.program.training_loops import (
        gradients_cleared,
        gradients_discarded,
        gradients_never_reset,
        losses_without_gradients,
        trained_in_eval_mode,
    )
    from lora_doctor.recipe.program.training_rows import (
        TrainedOn,
        evaluated_on_trained,
        labels_decoded,
        labels_with_padding,
    )
    from lora_doctor.recipe.program.untrusted_code import UntrustedCode, untrusted_code
    from lora_doctor.recipe.program.without_effect import (
        LostState,
        WithoutEffect,
        contexts_not_entered,
        states_that_fit_nothing,
        unused_adapter_configs,
    )
    from lora_doctor.recipe.program.wrapping import (
        compiled_before_adapters,
        loaded_onto_adapters,
    )
    from lora_doctor.results.adapted_part import AdaptedPart
    from lora_doctor.results.adapter_loading import AdapterLoading, OtherShape
    from lora_doctor.results.adapter_steps import AdapterSteps, StepFault
    from lora_doctor.results.built_in_adapters import AdapterState, BuiltIn
    from lora_doctor.results.chat_template import ChatTemplate
    from lora_doctor.results.checkpoint_quantization import CheckpointQuantization, ReplacedLayers
    from lora_doctor.results.dry_run import DryRun, FrozenAdapters, ScriptError
    from lora_doctor.results.error_report import ErrorReport
    from lora_doctor.results.first_batch import FirstBatch
    from lora_doctor.results.injection import LooseMatch
    from lora_doctor.results.loading import Loading
    from lora_doctor.results.long_row import LongRow
    from lora_doctor.results.memory_plan import MemoryPlan, MemoryVariant
    from lora_doctor.results.misused_values import MisusedValue, MisusedValues
    from lora_doctor.results.observations import (
        ActivationReading,
        AttentionReading,
        ConnectionReading,
        EpsilonEffect,
        InstancePatch,
        NonLinearOutputReading,
        NormReading,
        Observations,
        SpacingReading,
        UnusedAdapterReading,
        UpdateReading,
    )
    from lora_doctor.results.plain_weights import PlainWeights
    from lora_doctor.results.processed_image import ProcessedImage
    from lora_doctor.results.processes import EmptyWeights, Processes, SavedAdapter
    from lora_doctor.results.quantization import FloatPart, KeptWeights, Quantization
    from lora_doctor.results.quantized_use import QuantizedUse, Use
    from lora_doctor.results.refused_arguments import AskedArguments, Refusal
    from lora_doctor.results.refused_trainer import AskedTrainer
    from lora_doctor.results.round_trip import (
        AutoLoading,
        QuantizedMerge,
        Saving,
        TiedPart,
        Vocabulary,
    )
    from lora_doctor.results.stacked_adapters import Stacked, StackedAdapter
    from lora_doctor.results.structure import ModuleGroup, Structure, Tower
    from lora_doctor.results.supervision import RowSet, Supervision
    from lora_doctor.results.training_signal import (
        GradientsWithoutStep,
        PreferencePairs,
        Rewards,
        StepGradients,
        TrainingSignal,
    )
    from lora_doctor.static.adapter_files import AdapterFiles
    from lora_doctor.static.adapter_values import AdapterValues
    from lora_doctor.static.model_files import StaticEvidence
    from lora_doctor.static.program.program import Pin
    from lora_doctor.static.remote_code.remote_code import RemoteCode
    from lora_doctor.static.script.training_script import Replacement, TrainingScript

#: Imported when somebody names them: every run imports all rules, and one at depth ``static`` has
#: no value of these kinds. A rule that needs them for its annotations imports them under
#: ``TYPE_CHECKING``.
_LAZY = {
    name: module
    for module, names in {
        "contract.round_trip": ("MERGE_TOLERANCE",),
        "evidence.optimizer": ("OptimizerState", "TrainableTensor"),
        "recipe.files.side_files": ("SideFiles",),
        "engine.written_values": ("WrittenValue", "written_values"),
        "recipe.program.adapter_steps": ("AdapterStep", "adapter_steps"),
        "recipe.program.added_tokens": ("AddedTokens", "added_tokens"),
        "recipe.program.after_training": (
            "all_set_trainable", "merged_and_dropped", "merged_into_adapter_folder",
            "merged_where_it_trained", "saved_as_base", "trained_in_turn",
        ),
        "recipe.program.callbacks": ("has_unread_callback",),
        "recipe.program.collated_columns": ("collated_columns",),
        "recipe.program.deepspeed_settings": (
            "Contradiction", "Contradictions", "accumulation_of", "contradictions",
            "program_contradictions",
        ),
        "recipe.program.devices": (
            "Sharded", "SpreadTwice", "sharded", "spread_twice", "storage_dtype",
        ),
        "recipe.program.best_metric": ("metrics_not_computed",),
        "recipe.program.evaluation": ("evaluations_without_data",),
        "recipe.program.gone_names": ("GoneName", "gone_names"),
        "recipe.cut": ("Cut",),
        "recipe.program.initialising": ("may_initialise",),
        "recipe.program.launch": ("Launch", "is_certain"),
        "recipe.program.made_arguments": ("made_arguments",),
        "recipe.program.first_batch": ("OwnRows", "own_rows"),
        "recipe.program.made_trainer": ("made_trainer",),
        "recipe.program.absent_methods": ("AbsentMethod", "absent_methods"),
        "recipe.program.absent_names": ("AbsentName", "absent_names"),
        "recipe.program.without_effect": (
            "LostState", "WithoutEffect", "contexts_not_entered", "states_that_fit_nothing",
            "unused_adapter_configs",
        ),
        "recipe.program.asked_of_tokenizer": ("AskedOfTokenizer", "asked_of_tokenizer"),
        "recipe.program.saved_adapter": ("loaded_sparingly",),
        "recipe.program.selected_rows": ("SelectedRows", "selected_beyond"),
        "recipe.program.misplaced": ("MisplacedArgument", "misplaced_arguments"),
        "recipe.program.names": ("UnknownArgument", "unknown_arguments"),
        "recipe.program.objects": ("adds_without_wrapper",),
        "recipe.program.all_splits": ("SplitsAsRows", "splits_as_rows"),
        "recipe.program.hooks": ("UnfitHook", "unfit_hooks"),
        "recipe.program.order": (
            "Slip", "adapted_by_the_trainer_too", "adapted_twice", "loaded_frozen",
            "merged_after_wrapping", "merges", "optimizer_too_early", "prepared_after_adapters",
        ),
        "recipe.program.overrides": ("NarrowOverride", "narrow_overrides"),
        "recipe.program.own_optimizer": ("brings_optimizer",),
        "recipe.program.own_vocabulary": ("own_vocabulary",),
        "recipe.program.padding_id": ("sets_padding_id",),
        "recipe.program.reentrant": ("ReentrantDdp", "reentrant_under_ddp"),
        "recipe.program.rewards": (
            "RefusedReward",
            "blind_rewards",
            "distances_rewarded",
            "refused_rewards",
        ),
        "recipe.program.resuming": ("TRAINER_STATE", "resumed_from", "without_state"),
        "recipe.program.setup": ("Setup",),
        "recipe.program.streaming": ("streamed_without_steps",),
        "recipe.program.training_loops": (
            "gradients_cleared", "gradients_discarded", "gradients_never_reset",
            "losses_without_gradients", "trained_in_eval_mode",
        ),
        "recipe.program.training_rows": (
            "TrainedOn", "evaluated_on_trained", "labels_decoded", "labels_with_padding",
        ),
        "recipe.program.untrusted_code": ("UntrustedCode", "untrusted_code"),
        "recipe.program.wrapping": (
            "compiled_before_adapters", "hotswap_prepared_too_early", "hotswap_prepared_too_late",
            "hotswap_prepared_too_early",
    "hotswap_prepared_too_late",
    "loaded_onto_adapters",
        ),
        "results.adapted_part": ("AdaptedPart",),
        "results.adapter_loading": ("AdapterLoading", "OtherShape"),
        "results.adapter_steps": ("AdapterSteps", "StepFault"),
        "results.built_in_adapters": ("AdapterState", "BuiltIn"),
        "results.chat_template": ("ChatTemplate",),
        "results.checkpoint_quantization": ("CheckpointQuantization", "ReplacedLayers"),
        "results.dry_run": ("DryRun", "FrozenAdapters", "ScriptError"),
        "results.error_report": ("ErrorReport",),
        "results.injection": ("LooseMatch",),
        "results.loading": ("Loading",),
        "results.long_row": ("LongRow",),
        "results.memory_plan": ("MemoryPlan", "MemoryVariant"),
        "results.observations": (
            "ActivationReading", "AttentionReading", "ConnectionReading", "EpsilonEffect",
            "InstancePatch", "NonLinearOutputReading", "NormReading", "Observations",
            "SpacingReading", "UnusedAdapterReading", "UpdateReading",
        ),
        "results.plain_weights": ("PlainWeights",),
        "results.processed_image": ("ProcessedImage",),
        "results.processes": ("EmptyWeights", "Processes", "SavedAdapter"),
        "results.quantization": ("FloatPart", "KeptWeights", "Quantization"),
        "results.misused_values": ("MisusedValue", "MisusedValues"),
        "results.quantized_use": ("QuantizedUse", "Use"),
        "results.refused_arguments": ("AskedArguments", "Refusal"),
        "results.first_batch": ("FirstBatch",),
        "results.refused_trainer": ("AskedTrainer",),
        "results.round_trip": ("AutoLoading", "QuantizedMerge", "Saving", "TiedPart", "Vocabulary"),
        "results.stacked_adapters": ("Stacked", "StackedAdapter"),
        "results.structure": ("ModuleGroup", "Structure", "Tower"),
        "results.supervision": ("RowSet", "Supervision"),
        "results.training_signal": (
            "GradientsWithoutStep", "PreferencePairs", "Rewards", "StepGradients",
            "TrainingSignal",
        ),
        "static.adapter_files": ("AdapterFiles",),
        "static.adapter_values": ("AdapterValues",),
        "static.model_files": ("StaticEvidence",),
        "static.program.program": ("Pin",),
        "static.remote_code.remote_code": ("RemoteCode",),
        "static.script.training_script": ("Replacement", "TrainingScript"),
    }.items()
    for name in names
}  # fmt: skip

__all__ = [
    "CHECKS",
    "ENTRY",
    "LARGEST_FLOAT16",
    "MERGE_TOLERANCE",
    "MODALITIES",
    "NUMBERS",
    "PYTHON_BYTES",
    "REMOVE",
    "TRAINER_STATE",
    "AbsentMethod",
    "AbsentName",
    "ActivationReading",
    "AdaptedPart",
    "AdapterFiles",
    "AdapterLoading",
    "AdapterState",
    "AdapterStep",
    "AdapterSteps",
    "AdapterValues",
    "AddedInput",
    "AddedTokens",
    "AskedArguments",
    "AskedOfTokenizer",
    "AskedTrainer",
    "AttentionReading",
    "AutoLoading",
    "BatchReport",
    "BudgetCheck",
    "BuiltIn",
    "Case",
    "ChatTemplate",
    "Check",
    "CheckpointQuantization",
    "ConfigError",
    "ConnectionReading",
    "Contradiction",
    "Contradictions",
    "Cut",
    "Depth",
    "DryRun",
    "Edit",
    "EmptyWeights",
    "Environment",
    "EpsilonEffect",
    "ErrorReport",
    "EvidenceError",
    "Example",
    "Finding",
    "FirstBatch",
    "Fix",
    "FloatPart",
    "Framework",
    "FrozenAdapters",
    "Gathered",
    "GoneName",
    "Gpu",
    "GradientsWithoutStep",
    "InstancePatch",
    "KeptWeights",
    "Launch",
    "Loading",
    "Location",
    "LongRow",
    "LooseMatch",
    "LostState",
    "Measurement",
    "MemoryPlan",
    "MemoryVariant",
    "MisplacedArgument",
    "MisusedValue",
    "MisusedValues",
    "ModelClassError",
    "ModelSource",
    "ModuleGroup",
    "NarrowOverride",
    "NonLinearOutputReading",
    "NormReading",
    "Observations",
    "OptimizerState",
    "OtherShape",
    "OwnRows",
    "Patch",
    "Pin",
    "Place",
    "PlainWeights",
    "Precision",
    "PreferencePairs",
    "ProcessedImage",
    "Processes",
    "Proof",
    "ProofKind",
    "Quantization",
    "QuantizedMerge",
    "QuantizedUse",
    "Recipe",
    "ReentrantDdp",
    "Refusal",
    "RefusedReward",
    "Remark",
    "RemoteCode",
    "ReplacedLayers",
    "Replacement",
    "Rewards",
    "RowSet",
    "Rule",
    "SavedAdapter",
    "Saving",
    "ScriptError",
    "SelectedRows",
    "SetUp",
    "Setup",
    "Severity",
    "Sharded",
    "SideFiles",
    "Slip",
    "SpacingReading",
    "SplitsAsRows",
    "SpreadTwice",
    "Stacked",
    "StackedAdapter",
    "StaticEvidence",
    "StepFault",
    "StepGradients",
    "Structure",
    "Supervision",
    "Symptom",
    "TiedPart",
    "Tower",
    "TrainableTensor",
    "TrainedOn",
    "TrainingScript",
    "TrainingSignal",
    "UnfitHook",
    "UnknownArgument",
    "UntrustedCode",
    "UnusedAdapterReading",
    "UpdateReading",
    "Use",
    "Verification",
    "Vocabulary",
    "WithoutEffect",
    "WrittenValue",
    "absent_methods",
    "absent_names",
    "accumulation_of",
    "adapted_by_the_trainer_too",
    "adapted_twice",
    "adapter_config_fields",
    "adapter_steps",
    "added_tokens",
    "adds_without_wrapper",
    "all_set_trainable",
    "asked_of_tokenizer",
    "asks_for_adapter",
    "at_an_end",
    "beyond",
    "bfloat16_keys",
    "blind_rewards",
    "brings_optimizer",
    "collated_columns",
    "compiled_before_adapters",
    "contexts_not_entered",
    "contradictions",
    "cover_of",
    "distances_rewarded",
    "edits_excluding",
    "edits_without",
    "entries_for",
    "evaluated_on_trained",
    "evaluations_without_data",
    "excerpt",
    "excluding",
    "expression_ends",
    "float16_keys",
    "framework_named",
    "gib",
    "gone_names",
    "gradients_cleared",
    "gradients_discarded",
    "gradients_never_reset",
    "has_unread_callback",
    "is_certain",
    "kept_budgets",
    "known_architectures",
    "labels_decoded",
    "labels_with_padding",
    "loaded_frozen",
    "loaded_onto_adapters",
    "loaded_sparingly",
    "lora_config_fields",
    "losses_without_gradients",
    "made_arguments",
    "made_trainer",
    "may_initialise",
    "means_mlp",
    "mended_expression",
    "merged_after_wrapping",
    "merged_and_dropped",
    "merged_into_adapter_folder",
    "merged_where_it_trained",
    "merges",
    "metrics_not_computed",
    "misplaced_arguments",
    "missing_name",
    "name_groups",
    "named_gpus",
    "names_in",
    "naming",
    "narrow_overrides",
    "offered_layers",
    "optimizer_too_early",
    "own_rows",
    "own_vocabulary",
    "pattern_of",
    "place_of",
    "prepared_after_adapters",
    "pretrained_model_generates",
    "program_contradictions",
    "quoted",
    "reentrant_under_ddp",
    "refused_rewards",
    "remarks_of",
    "require_lora",
    "require_named_layers",
    "resumed_from",
    "same_job",
    "saved_as_base",
    "selected_beyond",
    "sets_padding_id",
    "sharded",
    "side_towers",
    "splits_as_rows",
    "spread_twice",
    "states_that_fit_nothing",
    "storage_dtype",
    "streamed_without_steps",
    "suffix",
    "target_entries",
    "targets_without",
    "trained_in_eval_mode",
    "trained_in_turn",
    "unfit_hooks",
    "unknown_arguments",
    "unmatched_entries",
    "unmatched_targets",
    "untrusted_code",
    "unused_adapter_configs",
    "without_lookahead",
    "without_state",
    "written_values",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"lora_doctor.{_LAZY[name]}"), name)
