"""The memory plan in words and rows, for every format that shows it to people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_doctor.reports._text import shorten, visible
from lora_doctor.results.memory_parts import STEP, WEIGHTS
from lora_doctor.text import gib

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.memory_plan import MemoryPart, MemoryPlan, MemoryVariant

_SOURCES = {
    "counted": "counted on the meta device",
    "measured": "a training step on the meta device",
    "asked": "the optimizer itself",
    "assumed": "assumed",
    "missing": "not known",
}
_FITS = {True: "fits", False: "no", None: "?"}


def headline(plan: MemoryPlan) -> str:
    """What the recipe takes, in a line; with a budget, of how much."""
    one = plan.recipe
    tokens = f" of {plan.length} tokens" if plan.length else ""
    if not one.low and one.missing:  # nothing at all could be counted
        return f"not known: {_words(one.missing[0])}"
    size = f"at least {gib(one.low)}" if one.total is None else f"about {gib(one.total)}"
    of = f" of {gib(plan.budget)}" if plan.budget is not None else ""
    between = f", {gib(one.low)} to {gib(one.high)}" if one.high is not None else ""
    return f"{size}{of}{between}, for a batch of {plan.batch_size}{tokens}{_on_gpus(plan)}"


def _on_gpus(plan: MemoryPlan) -> str:
    """Which of the named cards it fits; ``; cheapest that fits: l4 (22.1 GiB)``."""
    if not plan.gpus:
        return ""
    if plan.any_gpu:
        gpu = plan.first_fitting(plan.recipe)
        return (f"; cheapest that fits: {gpu.name} ({gib(gpu.memory)})" if gpu
                else "; fits none of the known GPUs for sure")  # fmt: skip
    told = (f"{gpu.name} ({gib(gpu.memory)}) {_FITS[plan.recipe.fits(gpu.memory)]}"
            for gpu in plan.gpus)  # fmt: skip
    return "; " + ", ".join(told)


def fits_nowhere(diagnosis: Diagnosis) -> str:
    """``it fits no card up to 80 GB``, where the plan says so; empty elsewhere, and where a budget
    was given: a rule judges that."""
    plan = diagnosis.memory_plan
    if plan is None or plan.budget is not None or not plan.columns:
        return ""
    if any(plan.recipe.fits(memory) is not False for _, memory in plan.columns):
        return ""
    where = "none of the GPUs named" if plan.gpus else f"no GPU up to {plan.columns[-1][0]}"
    return f"it fits {where}: at least {gib(plan.recipe.low)}"


def parts(plan: MemoryPlan) -> list[tuple[str, str, str, str]]:
    """The recipe's parts: name, size, formula, how it was got."""
    return [
        (part.name, gib(part.bytes), _words(part), _SOURCES.get(part.source, part.source))
        for part in plan.recipe.parts
    ]


def header(plan: MemoryPlan) -> tuple[str, ...]:
    """Of :func:`variants`; the last columns are cards."""
    return ("variant", "weights", "step", "total", *(name for name, _ in plan.columns))


def variant_name(plan: MemoryPlan, one: MemoryVariant) -> str:
    """What is changed, or that it is the recipe that was checked."""
    return "this recipe" if one is plan.recipe else one.name


def precision(diagnosis: Diagnosis) -> str:
    """In which dtype the weights lie, and in which it is computed, by the recipe."""
    recipe, structure = diagnosis.recipe, diagnosis.structure
    chosen = recipe.get("dtype")
    native = structure.native_dtype if structure else None
    dtype = str(native or "float32") if chosen in (None, "auto") else str(chosen)
    said = "" if chosen not in (None, "auto") else " (dtype auto)"
    if recipe.quantized == "4bit":
        compute = recipe.get("bnb_4bit_compute_dtype") or "float32, the default"
        weights = f"Weights in 4 bits, the rest in {dtype}; compute dtype {compute}"
    elif recipe.quantized == "8bit":
        weights = f"Weights in 8 bits, the rest in {dtype}"
    else:
        weights = f"Weights in {dtype}{said}"
    mixed = recipe.mixed_precision
    autocast = f"autocast to {mixed}" if mixed else "no autocast"
    return str(visible(f"{weights}; {autocast}.", 300))


#: Why a plan gives a range.
RANGE = (
    "The range: activations and backward are measured on the meta device, within 5 %; what the "
    "allocator holds in reserve and the CUDA context are assumed. It fits where the upper end "
    "does, and does not where the lower end does not."
)


def variants(plan: MemoryPlan) -> list[tuple[str, ...]]:
    """The recipe and its alternatives, and into which cards they fit."""
    return [_row(plan, one) for one in (plan.recipe, *plan.alternatives)]


def _row(plan: MemoryPlan, one: MemoryVariant) -> tuple[str, ...]:
    least = f"≥ {gib(one.low)}" if one.low else "?"
    total = gib(one.total) if one.total is not None else least
    fits = (_FITS[one.fits(size)] for _, size in plan.columns)
    return (variant_name(plan, one), _sum(one, WEIGHTS), _sum(one, STEP), total, *fits)


def _sum(one: MemoryVariant, names: tuple[str, ...]) -> str:
    found = [part.bytes for part in one.parts if part.name in names]
    return gib(sum(size or 0 for size in found)) if found and None not in found else "?"


def remarks(plan: MemoryPlan) -> list[str]:
    """What was chosen, assumed and left out; reasons of what is missing."""
    chosen = f"batch size from {plan.batch_size_from}, length from {plan.length_from}"
    missing = {
        f"{one.name}: {part.name} not known: {part.formula}"
        for one in (plan.recipe, *plan.alternatives)
        for part in one.missing
    }
    notes = [note.text for note in plan.notes]
    if plan.alternatives:
        chosen += "; the alternatives were counted, not executed: none was trained"
    told = [chosen, *notes, *sorted(missing), *(f"assumed: {one}" for one in plan.assumptions)]
    return [visible(shorten(text, 300)) for text in told]


def why_not(diagnosis: Diagnosis) -> str:
    """Why there is no plan although somebody asked; empty when nobody did."""
    for item in diagnosis.gathered:
        if item.name == "memory_plan" and item.unavailable:
            return str(visible(item.unavailable))
    return ""


def _words(part: MemoryPart) -> str:
    return str(visible(shorten(part.formula, 200)))
