"""The real adapter config, injected by the installed PEFT into a meta copy of the model.

PEFT is asked, never imitated: its own matcher says what an entry names, its own
``get_peft_model`` says what happens, and the wrapped model is read afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_doctor.errors import LoraDoctorError
from lora_doctor.model.adapter_counts import Counts, base_of
from lora_doctor.model.adapter_sizes import (
    ADAPTER_NAME,
    NEEDS_NUMBERS,
    initialisation_refused,
    reads_weights,
    refusal_by_shape,
    wrap_on_meta,
)
from lora_doctor.model.converted_targets import converted_targets
from lora_doctor.model.error_reports import library_error
from lora_doctor.model.loading import peft_config
from lora_doctor.model.loose_matches import copied_modules, loose_matches, module_sizes
from lora_doctor.model.meta_copy import MetaCopy, meta_copy
from lora_doctor.model.module_path import pattern_of
from lora_doctor.model.pattern_effects import (
    never_taken,
    untrained_bias,
    watched_patterns,
    without_effect,
)
from lora_doctor.model.reloading import not_reloaded
from lora_doctor.model.target_entries import (
    Names,
    asked_for,
    meaning,
    target_matcher,
    unmatched_entries,
)
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.injection import Injection, LooseMatch, Unmatched
from lora_doctor.text import single_line


@dataclass(frozen=True)
class Injected:
    """The result, with the paths that carry adapters (parameters as ``module.parameter``)."""

    result: Injection
    adapted: dict[str, int]


def inject(model: Any, recipe: Recipe) -> Injected:
    """Wrap a meta copy of ``model`` with the recipe's adapter config and read what PEFT did.

    ``model`` itself stays as it is. An exception of PEFT's is the result, not raised.
    """
    wished = _values(recipe)
    try:
        config = _plain_initialisation(asked := peft_config(recipe))
    except LoraDoctorError:
        raise
    except Exception as error:  # noqa: BLE001 - what PEFT refuses is the evidence
        return Injected(Injection(ok=False, error=library_error(error)), {})
    thinned = meta_copy(model, meaning(config))
    names = Names(model)
    taken = watched_patterns(config)
    seen: list[str] = []
    wrapped = None
    refused = None
    with _recorded(seen):
        try:
            wrapped = wrap_on_meta(thinned.model, config)
        except Exception as error:  # noqa: BLE001 - what PEFT refuses is the evidence
            refused = library_error(error)
    converted = converted_targets(wished, config, thinned.model)
    unmatched = unmatched_entries(wished, config, names, converted)
    known = Injection(ok=True, unmatched=unmatched, converted=converted, warnings=tuple(seen))
    if refused is not None and NEEDS_NUMBERS.search(refused.message):
        known = replace(known, converted=(), not_made=str(refused))
        refused = refusal_by_shape(model, config)
        if refused is None:
            return _by_name(config, names, replace(known, resolved_targets=_resolved(config)))
    elif refused is None:
        refused = initialisation_refused(model, asked)
    if wrapped is None or refused is not None:
        loose = _loose(model, wished, asked_for(config, names), None)
        return Injected(replace(known, ok=False, error=refused, loose_matches=loose), {})
    counts = Counts(wrapped, thinned, config, (ADAPTER_NAME,))
    all_linear = str(wished["target_modules"]).lower() == "all-linear"
    unmatched += never_taken(taken) + _without_effect(config, names, counts, all_linear)
    unmatched += untrained_bias(wrapped, config)
    again = not_reloaded(wrapped, ADAPTER_NAME)
    result = replace(
        _counted(known, wrapped, config, counts),
        unmatched=unmatched,
        loose_matches=_loose(model, wished, counts.adapted, wrapped),
        not_reloaded=again.patterns,
        not_reloaded_example=again.example,
    )
    return Injected(result, counts.adapted)


def _counted(known: Injection, wrapped: Any, config: Any, counts: Counts) -> Injection:
    """What is known, with what is in the wrapped model."""
    return replace(
        known,
        wrapper=type(wrapped).__name__,
        resolved_targets=_resolved(config),
        adapter_parameters=counts.adapter,
        trainable_parameters=counts.trainable,
        total_parameters=counts.total,
        trainable_other=tuple(counts.other),
        trainable_adapter_parameters=counts.trainable_adapter,
        trainable_other_parameters=counts.trainable_other,
    )


def _by_name(config: Any, names: Names, known: Injection) -> Injected:
    """Where adapters would sit by PEFT's matcher, of a kind that cannot be made without weights."""
    matcher = target_matcher(config)
    paths = [path for path in names.modules if matcher is not None and matcher(config, path)]
    effects = without_effect(config, matcher, names.modules, paths)
    return Injected(replace(known, unmatched=known.unmatched + effects), dict.fromkeys(paths, 1))


def read_wrapped(wrapped: Any, adapter: str, others: Sequence[str] = ()) -> Injected:
    """What is in a model that the user has wrapped already; nothing is injected.

    ``others``: adapters that are active beside this one.
    """
    config = wrapped.peft_config[adapter]
    names = Names(base_of(wrapped))
    wished = {
        key: getattr(config, key, None)
        for key in ("target_modules", "target_parameters", "modules_to_save")
    }
    counts = Counts(wrapped, MetaCopy(wrapped, {}), config, (adapter, *others))
    known = Injection(
        ok=True,
        unmatched=unmatched_entries(wished, config, names, ())
        + _without_effect(config, names, counts),
        loose_matches=_loose(base_of(wrapped), wished, counts.adapted, wrapped),
    )
    return Injected(_counted(known, wrapped, config, counts), counts.adapted)


def _values(recipe: Recipe) -> dict[str, Any]:
    """The target keys as the recipe has them; PEFT changes the config object in place."""
    keys = ("target_modules", "target_parameters", "modules_to_save")
    return {key: recipe.get(key) for key in keys}


def _plain_initialisation(config: Any) -> Any:
    """Initialisations that look at the weights need weights; where adapters sit is the same."""
    plain = copy.copy(config)
    if reads_weights(getattr(config, "init_lora_weights", True)):
        plain.init_lora_weights = True
    return plain


def plain_wrap(model: Any, config: Any) -> Any:
    """Wrap a meta copy with this config, initialised without looking at weights; raises what PEFT
    raises."""
    return wrap_on_meta(model, _plain_initialisation(config))


@contextlib.contextmanager
def _recorded(seen: list[str]) -> Iterator[None]:
    """Warnings about the adapter raised inside, one line each; not those about old names."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for item in caught:
        if issubclass(item.category, (DeprecationWarning, FutureWarning)):
            continue
        text = single_line(str(item.message))
        if text not in seen:
            seen.append(text)


def _loose(
    model: Any, wished: dict[str, Any], adapted: Iterable[str], wrapped: Any
) -> tuple[LooseMatch, ...]:
    """``wrapped``: the model after ``get_peft_model``, ``None`` where that raised."""
    entries = wished["modules_to_save"] or ()
    if not entries or isinstance(entries, str):
        return ()
    copied = None if wrapped is None else copied_modules(base_of(wrapped))
    return loose_matches(entries, module_sizes(model), adapted, copied)


def _without_effect(
    config: Any, names: Names, counts: Counts, all_linear: bool = False
) -> tuple[Unmatched, ...]:
    matcher, adapted = target_matcher(config), counts.adapted
    return without_effect(config, matcher, names.modules, adapted, all_linear=all_linear)


def _resolved(config: Any) -> tuple[str, ...]:
    targets = getattr(config, "target_modules", None)
    if not targets:
        return ()
    if isinstance(targets, str):
        return (targets,)
    # Full paths (`all-linear`) and PEFT's shortened ones come out alike: as leaf names.
    shown = {re.search(r"[^.]*(\.\*)?$", pattern_of(str(name))) for name in targets}
    return tuple(sorted({match.group() for match in shown if match}))
