"""LD704: training takes more memory than the GPU has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Edit,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Severity,
    Symptom,
    gib,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import MemoryPlan, MemoryVariant

_HOW = {
    "counted": "counted on the meta device",
    "measured": "a training step on the meta device",
    "asked": "the optimizer's own state",
    "assumed": "an assumption",
}

#: A server that runs a model, or draws, takes memory by other rules than a training.
_SERVER = (
    r"\bEngineCore|[\\/]vllm[\\/](?:v1|engine|worker|model_executor)[\\/]"
    r"|(?i:[\w-]*webui|comfyui|fooocus|stable.?diffusion|txt2img|llama_cpp|ollama)"
)


class DoesNotFit(Rule):
    """Weights, optimizer and one training step take more memory than the budget.

    ## What happens
    `CUDA out of memory`, at loading or in the first step; or, if it is close, hours later in the
    first batch with only long samples.

    ## Why
    Frozen weights are only a part. The activations kept for the backward grow with batch size times
    length, and the logits also with the vocabulary. 4 bits make weights smaller, not activations:
    `prepare_model_for_kbit_training` even makes activations larger, because it casts norms and
    embeddings to float32, and the 8-bit layers of bitsandbytes keep their inputs despite gradient
    checkpointing.

    ## Versions
    All. What is kept for the backward differs between releases of transformers, PEFT and
    bitsandbytes, so it is measured with the installed ones.

    ## Fix
    The nearest change that fits: gradient checkpointing, then 8 bits, then 4 bits, each measured.
    They change speed, memory and (with fewer bits) the results, so they are not applied by default.
    Batch size and length change what the model learns and stay your choice. Only checked with a
    `memory_budget` or a `gpu`: the recipe has to fit every named GPU, with `cheapest` one of them.

    ## Links
    https://huggingface.co/docs/transformers/model_memory_anatomy
    """

    code = "LD704"
    name = "does-not-fit"
    summary = "Training takes more memory than the GPU has."
    depth = "meta"
    symptoms = (
        Symptom(
            r"(?:CUDA|HIP|MPS|XPU|NPU)(?: backend)? (?:error: )?(?:out of memory)", unless=_SERVER
        ),
        Symptom(r"Make sure you have enough GPU RAM to fit the quantized model"),
        Symptom(r"want to offload some keys to `cpu` or `disk`, you need to set `llm_int8_enable"),
        Symptom(r"loaded in 8-bit or 4-bit precision with CPU or disk offload"),
        Symptom(r"No executable batch size found, reached zero"),
        Symptom(r"(?:torch\.|cuda\.)OutOfMemoryError", unless=_SERVER),
        Symptom(r"CUBLAS_STATUS_ALLOC_FAILED"),
    )
    descriptions = (
        Symptom(
            r"\bOOM\b|\bout.of.memory\b",
            unless=rf"\b(?:tensorflow|jax|mlx|llama\.cpp)\b|{_SERVER}",
        ),
    )
    told_as = (
        "Training runs out of memory on my GPU.",
        "OOM when fine-tuning with LoRA.",
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {
                "target_modules": ["q_proj", "v_proj"],
                "dtype": "bfloat16",
                "per_device_train_batch_size": 4,
                "max_length": 2048,
                "memory_budget": "24GB",
            },
            why="7 B parameters in bfloat16 fit, what four samples need for the backward does not",
        ),
        Example(
            "healthy",
            "arch:llama",
            {
                "target_modules": ["q_proj", "v_proj"],
                "dtype": "bfloat16",
                "per_device_train_batch_size": 1,
                "max_length": 512,
                "memory_budget": "24GB",
            },
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "per_device_train_batch_size": 64},
            why="nobody said what the GPU has",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.recipe.get("memory_budget") is None and not case.recipe.get("gpu"):
            return
        plan = case.memory_plan
        if plan.budget is not None:
            yield from self._held_against(plan, plan.budget, "the GPU", "memory_budget")
        gpus = plan.gpus
        if plan.any_gpu:  # the largest tells how far it is from fitting any
            one = plan.first_fitting(plan.recipe)
            gpus = (max(gpus, key=lambda gpu: gpu.memory),) if one is None and gpus else ()
        for gpu in gpus:
            yield from self._held_against(plan, gpu.memory, f"the {gpu.title}", "gpu")

    def _held_against(
        self, plan: MemoryPlan, budget: int, name: str, key: str
    ) -> Iterator[Finding]:
        recipe = plan.recipe
        fits = recipe.fits(budget)
        if fits:
            return
        if fits is None and recipe.missing:
            reasons = "; ".join(f"{part.name}: {part.formula}" for part in recipe.missing)
            raise EvidenceError(
                f"a part of the memory is unknown ({reasons}); the rest takes "
                f"{gib(recipe.low)} of {gib(budget)}",
                remedy=next((part.remedy for part in recipe.missing if part.remedy), None),
            )
        severity: Severity = "error" if fits is False else "warning"
        yield self.finding(
            severity,
            _message(plan, budget, name, fits),
            location=Location("recipe", key),
            evidence=_evidence(plan),
            proof=Proof("measured", "counted on the installed classes at full size, on the "
                                    "meta device; nothing was loaded and no GPU used"),
            fixes=_fixes(plan, budget),
        )  # fmt: skip


def _message(plan: MemoryPlan, budget: int, name: str, fits: bool | None) -> str:
    total = plan.recipe.total
    known = f"about {gib(total)}" if total is not None else f"at least {gib(plan.recipe.low)}"
    end = "it does not fit" if fits is False else "it may not fit"
    tokens = f" of {plan.length} tokens" if plan.length else ""
    return (
        f"Training with a batch of {plan.batch_size}{tokens} takes {known}, and {name} has "
        f"{gib(budget)}: {end}."
    )


def _evidence(plan: MemoryPlan) -> tuple[Measurement, ...]:
    lines = [
        Measurement("batch size", plan.batch_size, plan.batch_size_from),
        Measurement("tokens of a sample", plan.length, plan.length_from),
    ]
    for part in plan.recipe.parts:
        how = _HOW.get(part.source, "not known")
        value = gib(part.bytes) if part.bytes is not None else "not known"
        lines.append(Measurement(part.name, value, f"{how}: {part.formula}"))
    recipe = plan.recipe
    between = f"{gib(recipe.low)} to {gib(recipe.high)}" if recipe.high else f"≥ {gib(recipe.low)}"
    lines.append(Measurement("total", between, "the sum, with margins"))
    lines += [
        Measurement(
            f"with {one.name}", _memory(one), "measured in the same way for this alternative"
        )
        for one in plan.alternatives
    ]
    return tuple(lines)


def _memory(one: MemoryVariant) -> str:
    if one.total is not None:
        return gib(one.total)
    reason = "; ".join(part.formula for part in one.missing)
    return f"at least {gib(one.low)}; {reason}"[:200]


def _fixes(plan: MemoryPlan, budget: int) -> tuple[Fix, ...]:
    other = Fix(
        "Smaller batches with gradient_accumulation_steps, or shorter samples, are your "
        "choice: they change what the model learns.",
        "manual",
    )
    nearest = plan.nearest(budget)
    if nearest is None:
        known = [one for one in (plan.recipe, *plan.alternatives) if one.total is not None]
        least = min(known, key=lambda one: one.total or 0, default=None)
        smallest = "no alternative is known"
        if least is not None:
            name = "the recipe as it is" if least is plan.recipe else least.name
            smallest = f"the smallest takes {gib(least.total)}, with {name}"
        return (Fix(f"No alternative fits for certain: {smallest}.", "manual"), other)
    title = f"Train with {nearest.name}: about {gib(nearest.total)}."
    edits = tuple(Edit(key, value) for key, value in nearest.changes.items())
    return (Fix(title, "unsafe", edits), other)
