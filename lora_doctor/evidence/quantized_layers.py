"""Why a quantized model does not run, and which layers in floating point make it run.

The model is run under watch: who reads the weight of a quantized layer without calling it, what is
done to its output, what it is given. The layers that were touched last before the exception are
left in floating point, the model is loaded and run again, and only what then runs is told.

Runs in a child process; torch is imported inside functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from lora_doctor.contract.recorder import Recorder
from lora_doctor.evidence.layer_watch import LayerWatch
from lora_doctor.model.module_path import pattern_of
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.quantized_use import QuantizedUse, Use
from lora_doctor.results.verification import Verification
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.text import one_line, where

#: Rounds of leaving layers out; each finds one kind of layer.
_ROUNDS = 5


@dataclass(frozen=True)
class Touched:
    """A quantized layer, how it was used, where, and what that raised."""

    path: str
    use: Use
    where: str
    error: str


def ended_early(result: Verification) -> bool:
    """Whether an exception of the model ended a verification, or left out one of its batches."""
    raised = result.failure is not None and bool(result.failure.where)
    left_out = any(note.kind == "batch-left-out" for note in result.notes)
    return raised or left_out or result.outcome == "undetermined"


def explained(
    result: Verification,
    model: Any,
    load: Callable[[list[str] | None], Any],
    recipe: Recipe,
    batch: Any,
) -> Verification:
    """A verification of a quantized model, failed with what keeps that model from running.

    As it is where nothing was raised, or where no list of modules to skip makes it run.

    Args:
        model: the same in floating point.
        load: gives it quantized and prepared, but for the modules of an ``llm_int8_skip_modules``.
        batch: on the device, in the dtype that the quantized model takes.
    """
    from lora_doctor.model.quantization import Matcher

    if recipe.quantized is None or not ended_early(result):
        return result
    given = recipe.get("llm_int8_skip_modules")
    found = uses(
        load,
        lambda one: _forwards(one, recipe, batch),
        Matcher(model, recipe.quantized),
        None if given is None else [str(name) for name in given],
        _of_their_own(model),
    )
    if not found:
        return result
    message = f"{found[0].sentence}: {found[0].error}"
    if result.failure is not None:
        failure = replace(result.failure, message=message, where=found[0].where)
        checks = tuple(
            replace(check, detail=message) if check.name == failure.check else check
            for check in result.checks
        )
        return replace(
            result, outcome="failed", reason="", obstacle=None, base_error=None,
            failure=failure, checks=checks, quantized_uses=found,
        )  # fmt: skip
    recorder = Recorder()
    recorder.add("builds", True, result.model_parameters, "an nn.Module", result.model_class)
    recorder.fail("forward", RuntimeError(message))
    checks = recorder.checks("not run: forward failed")
    return replace(
        result, outcome="failed", checks=checks, failure=recorder.failure, reason="",
        obstacle=None, base_error=None, quantized_uses=found,
    )  # fmt: skip


def _of_their_own(model: Any) -> frozenset[str]:
    """Paths of linear layers that compute more than a linear layer does: replaced all the
    same, it is lost (Llama 4's router in transformers 4)."""
    import torch

    plain = torch.nn.Linear
    return frozenset(
        path
        for path, module in model.named_modules()
        if isinstance(module, plain) and type(module).forward is not plain.forward
    )


def _forwards(model: Any, recipe: Recipe, batch: Any) -> Iterator[None]:
    """The forwards of the training contract: without adapters and with them, in both modes."""
    import torch

    from lora_doctor.contract.measure import loss_of
    from lora_doctor.model import training_setup
    from lora_doctor.nn.copying import seed_everything

    def one(of: Any, training: bool) -> None:
        seed_everything(0)
        of.train(training)
        with torch.set_grad_enabled(training):
            loss_of(of, copy.deepcopy(batch))

    for training in (False, True, False):
        one(model, training)
        yield
    wrap = training_setup.wrapper(model, recipe, loaded=True)
    wrapped = model if wrap is None else wrap(model)
    for training in (True, False):
        one(wrapped, training)
        yield


def uses(
    load: Callable[[list[str] | None], Any],
    run: Callable[[Any], Iterator[None]],
    matcher: Any,
    given: list[str] | None,
    special: frozenset[str] = frozenset(),
) -> tuple[QuantizedUse, ...]:
    """The uses that keep a quantized model from running; empty when they do not explain it.

    Args:
        load: the model, quantized but for the modules of an ``llm_int8_skip_modules``.
        run: the forwards that must work, one at each step of the iterator.
        matcher: a :class:`quantization.Matcher` of the same model in floating point.
        given: the recipe's ``llm_int8_skip_modules``.
        special: paths of layers that have a forward of their own in floating point.
    """
    found: dict[str, Touched] = {}
    skip, names = given, list[str]()
    for _ in range(_ROUNDS):
        touched = _first_objection(load(skip), run, special)
        if touched is None:
            break
        pattern = pattern_of(touched.path)
        if not touched.path or pattern in found:
            return ()
        found[pattern] = touched
        listed = _skip_list(matcher, given, set(found))
        if listed is None:
            return ()
        skip, names = listed
    else:
        return ()
    if not found or skip is None:
        return ()
    left = len(matcher.quantized(skip))
    explanations = []
    for use in dict.fromkeys(one.use for one in found.values()):
        same = {pattern: one for pattern, one in found.items() if one.use == use}
        first = next(iter(same.values()))
        explanations.append(
            QuantizedUse(
                use,
                tuple(same),
                first.where,
                first.error,
                names=tuple(names),
                skip=tuple(skip),
                quantized=left,
                linears=len(matcher.linears),
            )
        )
    return tuple(explanations)


def _first_objection(
    model: Any, run: Callable[[Any], Iterator[None]], special: frozenset[str]
) -> Touched | None:
    """What the model raises, and the layer behind it: ``path`` is empty when none is."""
    steps = run(model)
    while True:
        watch = LayerWatch(model, special)
        try:
            with watch:
                next(steps)
        except StopIteration:
            return None
        except Exception as error:
            if is_out_of_memory(error):
                raise
            text = f"{type(error).__name__}: {one_line(error, 200)}"
            path, use, line = watch.behind()
            return Touched(path, use, line or where(error), text)


def _skip_list(
    matcher: Any, given: list[str] | None, patterns: set[str]
) -> tuple[list[str], list[str]] | None:
    """``llm_int8_skip_modules`` that leaves out the layers of these patterns, and as few others as
    names without numbers can, and which names were added; ``None`` when there is none.

    A list takes the place of the default.
    """
    start = list(dict.fromkeys([*sorted(matcher.default), *(given or ())]))
    names: list[str] = []
    for pattern in sorted(patterns):
        best: tuple[int, str] | None = None
        for name in _names(pattern):
            quantized = matcher.quantized([*start, *names, name])
            if any(pattern_of(path) == pattern for path in quantized):
                continue
            if best is None or len(quantized) > best[0]:
                best = (len(quantized), name)
        if best is None:
            return None
        names.append(best[1])
    return [*start, *names], names


def _names(pattern: str) -> Iterator[str]:
    """Ways to name the layers of a pattern, the shortest first: ends of the path, then a module
    that they are in."""
    parts = pattern.split(".")
    last = max((i for i, part in enumerate(parts) if "*" in part), default=-1)
    for start in range(len(parts) - 1, last, -1):
        yield ".".join(parts[start:])
    yield from reversed(parts[last + 1 : -1])
