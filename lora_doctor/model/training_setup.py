"""What stands between a loaded model and the training contract: batches, dtype, quantization,
adapters, gradient checkpointing; each done as a training script does it.

Runs in a child process; torch, transformers and PEFT are imported inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lora_doctor.model.peft_models import is_peft_model, peft_models
from lora_doctor.nn.copying import structural_copy
from lora_doctor.nn.rebinding import deep_copy
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.note import Note
from lora_doctor.results.structure import ErrorReport
from lora_doctor.text import one_line, where
from lora_doctor.tiny_model.faults_of_code import missing_attribute
from lora_doctor.tiny_model.modalities import carried

HALF = ("float16", "bfloat16")
#: Models of up to this many bytes are copied whole to be merged; larger ones layer by layer.
COPY_BYTES = 1 << 30
#: Root mean square of a weight. What classes usually begin with is 0.005 to 0.1.
_AS_GOOD_AS_ZERO = 1e-3
#: A norm that begins with a smaller scale hides what comes before it.
_SMALL_SCALE = 0.1
#: Of what goes into a convolution, what comes out at least: a chain of less fades to nothing.
_LEAST_GAIN = 0.25


class NoBatch(Exception):
    """No batch could be made that the model takes. ``raised``: what its forward answered."""

    def __init__(self, reason: str, raised: ErrorReport | None = None) -> None:
        super().__init__(reason)
        self.raised = raised


def make_batches(
    model: Any, given: list[dict[str, Any]] | None, first: Any, notes: list[Note]
) -> list[Any]:
    """Batches that reach every tower: the user's, or one with all inputs and each kind alone.

    Args:
        model: without adapters.
        given: the batches that a factory came with.
        first: a batch that is already known to work, or ``None``.
        notes: is told which kinds could not be made.

    Raises:
        NoBatch: none could be made; the text is the reason.
    """
    from lora_doctor.tiny_model.batch.result import Batch

    if given:
        return [_given_batch(inputs, Batch) for inputs in given]
    if first is None:
        first = _first_batch(model, notes)
    if first.left_out:
        kinds_left = " or ".join(first.left_out)
        reasons = (note.text for note in first.notes if note.kind == "input-left-out")
        why = next(reasons, "it is not known how")[:300]
        text = f"no batch with {kinds_left} was found, what takes it was not run: {why}"
        notes.append(Note("not-fed", text, why))
    return [first, *_batches_of_one_kind(model, first, notes)]


def _first_batch(model: Any, notes: list[Note]) -> Any:
    """A batch with every kind of input that the model takes.

    Raises:
        NoBatch: none could be made.
    """
    from lora_doctor.tiny_model.batch.make_batch import make_batch
    from lora_doctor.tiny_model.batch.result import BatchError

    try:
        return make_batch(model)
    except BatchError as error:
        untried = _untried_batch(model)
        if untried is None:
            raise NoBatch(f"no batch could be made: {error.reason}", _raised(error)) from error
        text = f"the batch was not tried beforehand: {error.reason}"
        notes.append(Note("step", text, error.reason))
        return untried


def _batches_of_one_kind(model: Any, first: Any, notes: list[Note]) -> list[Any]:
    """Beside a batch of several kinds of input, one of each kind alone where there can be one."""
    from lora_doctor.tiny_model.batch.make_batch import make_batch
    from lora_doctor.tiny_model.batch.result import BatchError

    kinds = {frozenset(first.modality)}
    batches: list[Any] = []
    if kinds == {frozenset({"text"})}:
        return batches
    for modality in ("image", "audio", "text"):
        if modality != "text" and modality in first.modality:
            continue
        try:
            batch = make_batch(model, modality=modality)
        except BatchError as error:
            if modality in first.modality:
                text = f"no {modality}-only batch: {error.reason}"
                notes.append(Note("step", text, error.reason))
            continue
        if frozenset(batch.modality) not in kinds:
            kinds.add(frozenset(batch.modality))
            batches.append(batch)
    return batches


def _raised(error: Exception) -> ErrorReport | None:
    """What a forward raised, where that is why no batch could be made."""
    behind = error.__cause__
    return report_of(behind) if behind is not None else None


def report_of(error: BaseException) -> ErrorReport:
    """What a model raised, as data."""
    return ErrorReport(
        type(error).__name__, one_line(error), where(error), lacks=missing_attribute(error)
    )


def _untried_batch(model: Any) -> Any:
    """A batch that nobody has run, for a half-precision model whose outputs are no numbers.

    Overflow of the base model is an answer about the recipe's dtype: the contract must see it.
    """
    from lora_doctor.tiny_model.batch.make_batch import make_batch
    from lora_doctor.tiny_model.batch.result import BatchError

    if dtype_of(model) not in HALF:
        return None
    try:
        return make_batch(model, run=False)
    except BatchError:
        return None


def missing_inputs(model: Any, batches: Sequence[Any]) -> tuple[str, ...]:
    """Kinds of input that the model takes and that no batch has."""
    from lora_doctor.tiny_model.batch.signature import forward_parameters, modality_choices

    choices = modality_choices(forward_parameters(model), "auto", model)
    had = {kind for batch in batches for kind in batch.modality}
    return tuple(sorted(choices[0] - had)) if choices else ()


def _given_batch(inputs: Mapping[str, Any], batch_class: Any) -> Any:
    labels = [name for name in inputs if "label" in name or name == "start_positions"]
    return batch_class(
        dict(inputs), carried(inputs), labels[0] if labels else "the model's own", []
    )


def cast(batch: Any, dtype: str) -> Any:
    """The batch with floating inputs in a half dtype, as a script's ``.to(device, dtype)``."""
    import torch

    if dtype not in HALF:
        return batch
    wanted = getattr(torch, dtype)
    for name, value in batch.inputs.items():
        if isinstance(value, torch.Tensor) and value.dtype is torch.float32:
            batch.inputs[name] = value.to(wanted)
    return batch


def dtype_of(model: Any) -> str:
    """The dtype of most floating weights, by name; float32 where there are none."""
    return floating_dtype(model) or "float32"


def floating_dtype(model: Any) -> str | None:
    """The dtype of most floating weights, by name; ``None`` where there are none."""
    sizes: dict[str, int] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            name = str(parameter.dtype).removeprefix("torch.")
            sizes[name] = sizes.get(name, 0) + parameter.numel()
    return max(sizes, key=lambda name: sizes[name], default=None)


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
    attention = recipe.get("attn_implementation")
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


def wake_zero_weights(model: Any, seed: int = 0) -> None:
    """Give weights that start at zero, or as good as zero, small random values.

    Gates and projections of multimodal models are made as zeros, and some classes begin with
    weights of 1e-10 (BLIP's images) or 3e-5 (GPTSAN); they only become something in the trained
    weights. At random initialisation they would cut off every gradient behind them, or leave one
    that no optimizer and no half precision can hold. So do norms that begin as a small constant
    (GPTSAN's 0.002): the scale of a trained norm is about one.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point() or name.endswith("bias"):
                continue
            if parameter.device.type != "cpu" or not parameter.numel():
                continue
            if float(parameter.float().square().mean().sqrt()) < _AS_GOOD_AS_ZERO:
                parameter.normal_(0.0, 0.02, generator=generator)
        for module in model.modules():
            scale = module._parameters.get("weight")
            if scale is not None and "norm" in type(module).__name__.lower() and scale.dim() == 1:
                lowest, highest = scale.aminmax()
                if 0 < lowest == highest < _SMALL_SCALE:
                    scale.fill_(1.0)
            _wake_convolutions(module, generator)


def wake_zero_biases(model: Any, seed: int = 0) -> None:
    """Give biases that are all zero small random values, as trained ones have: an adapter that
    scales a bias (GLoRA) gets no gradient from one that is zero."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            on_cpu = parameter.device.type == "cpu" and parameter.is_floating_point()
            if on_cpu and name.endswith("bias") and not bool(parameter.any()):
                parameter.normal_(0.0, 0.02, generator=generator)


def _wake_convolutions(parent: Any, generator: Any) -> None:
    """Convolutions without a batch norm beside them that begin as small as any linear layer and
    have few inputs (a depthwise one nine): a dozen in a row leave 1e-20 of an image (FastViT as it
    is run)."""
    import torch

    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    children = list(parent.children())
    if any(hasattr(child, "running_mean") for child in children):
        return
    for layer in children:
        if isinstance(layer, kinds) and layer.weight.device.type == "cpu":
            inputs = layer.weight[0].numel()
            if float(layer.weight.float().std()) < _LEAST_GAIN * inputs**-0.5:
                layer.weight.normal_(0.0, inputs**-0.5, generator=generator)


def keep_quantized_layout(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in place in eval mode.

    On a CPU with bf16 instructions it does so for speed. We go back and forth between eval and
    training, compare weights bit by bit, and may share them with somebody else's model.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


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

        return loading.wrap(base, recipe)

    return wrap


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
