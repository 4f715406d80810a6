"""What stands between a loaded model and the training contract: batches, dtype, quantization,
adapters, gradient checkpointing; each done as a training script does it.

Runs in a child process; torch, transformers and PEFT are imported inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lora_doctor.model.adapter_sizes import preparation
from lora_doctor.model.attention import attention_here
from lora_doctor.model.peft_models import is_peft_model, peft_models
from lora_doctor.nn.copying import structural_copy
from lora_doctor.nn.rebinding import deep_copy
from lora_doctor.recipe.edit import REMOVE, Edit
from lora_doctor.recipe.recipe import Recipe

#: Models of up to this many bytes are copied whole to be merged; larger ones layer by layer.
COPY_BYTES = 1 << 30


def is_copyable(model: Any) -> bool:
    """Whether a second copy of the weights is a small matter."""
    size: int = sum(p.numel() * p.element_size() for p in model.parameters())
    return size <= COPY_BYTES


def loading_options(recipe: Recipe, dtype: str | None) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for the recipe, in this transformers' spelling; without
    ``dtype`` it is left to the library."""
    import torch

    options: dict[str, Any] = {}
    if dtype is not None:
        options[dtype_argument()] = dtype if dtype == "auto" else getattr(torch, dtype)
    attention = attention_here(recipe)
    if attention:
        options["attn_implementation"] = attention
    return options


def dtype_argument() -> str:
    """``dtype`` where transformers' configs know that name (4.56), before it ``torch_dtype``."""
    from transformers import PretrainedConfig

    return "dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype"


def quantization_config(recipe: Recipe) -> Any:
    """The ``BitsAndBytesConfig`` of the recipe."""
    import torch
    from transformers import BitsAndBytesConfig

    keys = (
        "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
        "llm_int8_skip_modules",
    )  # fmt: skip
    values = {key: recipe.get(key) for key in keys if recipe.get(key) is not None}
    compute = recipe.get("bnb_4bit_compute_dtype")
    if compute and compute != "auto":
        values["bnb_4bit_compute_dtype"] = getattr(torch, compute)
    return BitsAndBytesConfig(**values)


def for_kbit_training(model: Any, recipe: Recipe) -> Any:
    """PEFT's preparation of a quantized model, with the recipe's checkpointing settings."""
    import peft

    options: dict[str, Any] = {
        "use_gradient_checkpointing": bool(recipe.get("gradient_checkpointing", False))
    }
    if recipe.get("gradient_checkpointing_kwargs"):
        options["gradient_checkpointing_kwargs"] = recipe.get("gradient_checkpointing_kwargs")
    keep_quantized_layout(model)
    return peft.prepare_model_for_kbit_training(model, **options)


def keep_quantized_layout(model: Any) -> None:
    """Stop bitsandbytes from what it does to quantized weights on a CPU alone.

    With bf16 instructions it repacks 4-bit weights in place in eval mode, for speed. We go back and
    forth between eval and training, compare weights bit by bit, and may share them with somebody
    else's model. An 8-bit weight that PEFT has read for DoRA is "moved" to the CPU where it is
    already, and its next forward takes the scale from the new parameter, which has none.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        in_8bit = hasattr(module, "init_8bit_state") and module.weight.device.type == "cpu"
        if in_8bit and _keep_scale not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_keep_scale)


def _keep_scale(layer: Any, inputs: Any) -> None:
    """Give a weight that was moved the scale that its layer holds."""
    weight = layer.weight
    if getattr(weight, "CB", None) is not None and weight.SCB is None:
        weight.SCB = layer.state.SCB


def is_adapted(model: Any) -> bool:
    """Whether the user has already put adapters on: a PEFT model as the whole or as a part, or
    transformers' own mixin."""
    return bool(peft_models(model)) or bool(getattr(model, "_hf_peft_config_loaded", False))


def rewrites_weights(recipe: Recipe) -> bool:
    """Whether putting the adapters on changes frozen weights, in place (OLoRA, PiSSA, …)."""
    return recipe.get("init_lora_weights") not in (None, True, False, "gaussian")


def wrapper(model: Any, recipe: Recipe, *, loaded: bool = False) -> Callable[[Any], Any] | None:
    """What puts the adapters on; ``None`` when the model already has them.

    ``loaded``: the model comes out of loading, so that where its own adapters are to be trained
    somebody still has to say so; one that the user hands over is trained as it is.
    """
    from lora_doctor.model import built_in_adapters

    if is_peft_model(model) or (not loaded and is_adapted(model)):
        return None
    if built_in_adapters.trains_its_own(model, recipe):
        return built_in_adapters.train_own if loaded else None

    def wrap(base: Any) -> Any:
        from lora_doctor.model import loading

        return loading.wrap(base, without_preparation(recipe))

    return wrap


def without_preparation(recipe: Recipe) -> Recipe:
    """The recipe with PEFT's usual start in the place of one that is made of data before the
    adapters are put on (CorDA), which nobody has made here."""
    if not preparation(recipe):
        return recipe
    return recipe.edit((Edit("init_lora_weights", REMOVE),))


def going_on_from(adapter: str) -> Callable[[Any], Any]:
    """What puts a saved adapter on, to be trained on: its config says ``inference_mode``, which
    ``is_trainable`` undoes."""

    def load(base: Any) -> Any:
        import peft

        return peft.PeftModel.from_pretrained(base, adapter, is_trainable=True)

    return load


def set_up(model: Any, recipe: Recipe) -> None:
    """Gradient checkpointing as a trainer turns it on: after the adapters are in."""
    if not recipe.get("gradient_checkpointing"):
        return
    if recipe.get("enable_input_require_grads"):
        model.enable_input_require_grads()
    options = recipe.get("gradient_checkpointing_kwargs") or None
    if options is None:
        model.gradient_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def fresh_base(model: Any, *, shared: bool = False) -> Callable[[], Any]:
    """A maker of bases with the weights that ``model`` has now, for adapters to be loaded onto.

    ``shared``: over the same memory, for models too large to copy; nothing in the contract writes
    to frozen weights.
    """
    make: Callable[[Any], Any] = structural_copy if shared else deep_copy
    kept = make(model)
    if is_peft_model(model) or getattr(model, "_hf_peft_config_loaded", False):
        return lambda: bare(make(kept))
    return lambda: make(kept)


def bare(model: Any) -> Any:
    """The model without any adapter, wrappers within wrappers included; ``model`` is used up."""
    from lora_doctor.model import stacked

    chain = stacked.wrappers_of(model)
    root = stacked.bottom(model)
    marked = "peft_config" in vars(root)  # somebody put adapters on the model as a whole
    if len(chain) == 1 and hasattr(chain[0].base_model, "unload"):
        root = model.unload()
    elif marked:
        _without_adapters(root)  # PEFT's own way raises for a wrapper in a wrapper
    # Older releases leave it, and the next wrapper then thinks it is the second one.
    vars(root).pop("peft_config", None)
    return root


def _without_adapters(model: Any) -> None:
    """Put the layers back that adapters were put around, in place."""
    for path, module in list(model.named_modules()):
        inner = getattr(module, "original_module", None)
        if hasattr(module, "base_layer") and hasattr(module, "get_base_layer"):
            inner = module.get_base_layer()
        if inner is not None and path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, inner)
