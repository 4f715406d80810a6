"""Weights that start at zero, or as good as zero, given small random values: they would cut off
the gradients behind them."""

from __future__ import annotations

from typing import Any

#: Root mean square of a weight. What classes usually begin with is 0.005 to 0.1.
_AS_GOOD_AS_ZERO = 1e-3


#: A norm that begins with a smaller scale hides what comes before it.
_SMALL_SCALE = 0.1


#: Of what goes into a convolution, what comes out at least: a chain of less fades to nothing.
_LEAST_GAIN = 0.25


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
