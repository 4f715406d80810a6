"""What was measured on the way while the training contract ran: readings, data only.

The contract runs the model anyway; observers (``contract/observers``) read off it what a rule about
numbers needs. Nothing here is a verdict, and nothing is known of a module that was not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lora_doctor.results.from_json import from_json
from lora_doctor.results.note import Note


@dataclass(frozen=True)
class EpsilonEffect:
    """What another epsilon would do to a norm, measured by running it with both."""

    #: The other epsilon.
    epsilon: float
    #: Norm of the difference of the outputs relative to the norm of the output, in the dtype of the
    #: recipe.
    change: float
    #: Euclidean norm of the output with it, divided by that of the output now; the gradient grows
    #: by the same factor.
    growth: float
    #: ``change`` between that dtype and float32, with the norm's own epsilon: a change below it
    #: cannot be told from rounding.
    rounding: float


@dataclass(frozen=True)
class NormReading:
    """Normalising layers that are alike: same path but for numbers, class, epsilon and owner."""

    #: Module path with every number as ``*``.
    pattern: str
    #: The one of ``count`` that its epsilon changes most.
    path: str
    #: Class of the layer.
    class_name: str
    #: Layers that are alike.
    count: int
    #: What the layer calls its epsilon.
    attribute: str
    #: Its epsilon.
    epsilon: float
    #: The dtype in which effects were measured: the recipe's if it names one.
    dtype: str
    #: Smallest, median and largest, over the rows that reached them, of what the layer divides by
    #: (mean square for a layer that does not subtract the mean).
    variance: tuple[float, float, float]
    #: What other epsilons of the model would do.
    effects: tuple[EpsilonEffect, ...] = ()
    #: Path of the library model that it is a part of (empty: the model itself); ``None`` for a
    #: module of the user's own.
    owner: str | None = None
    #: The epsilon with which that library class builds this layer; ``None`` when it was not asked.
    expected: float | None = None
    #: Whether a row of zeros (padding) comes out finite.
    zero_row_finite: bool = True
    #: Rows of zeros that reached them.
    zero_rows: int = 0
    #: Whether its weights are as a norm starts, all ones or all zeros: nothing was trained with
    #: this epsilon.
    fresh: bool = False


@dataclass(frozen=True)
class ActivationReading:
    """The largest absolute value in the output of a module."""

    #: Module path.
    path: str
    #: Class of the module.
    class_name: str
    #: Dtype of the output.
    dtype: str
    #: Largest absolute value; for the first module whose output was not finite, in float32, where
    #: that could be had.
    max_abs: float
    #: Whether all of the output was finite.
    finite: bool = True
    #: Whether the model's class keeps its weights in float32 when the others are loaded in float16.
    kept_in_float32: bool = False


@dataclass(frozen=True)
class LayerReading:
    """A layer of the model that ran: the largest absolute output, and the norm of its gradient."""

    #: Module path; it ends in the number of the layer.
    path: str
    #: Dtype of its output.
    dtype: str
    #: Largest absolute value of its output in the training forwards; of the finite ones.
    max_abs: float
    #: Whether all of its output was finite.
    finite: bool = True
    #: Euclidean norm of the gradient of the adapters in it, on the first batch; ``None`` where none
    #: of them got one, or it was not finite.
    gradient_norm: float | None = None


@dataclass(frozen=True)
class UpdateReading:
    """What the first optimizer step did to adapted weights that are alike: same path but for
    numbers, same scaling and rank."""

    #: Module path with every number as ``*``.
    pattern: str
    #: Layers that were measured.
    layers: int
    #: Frobenius norm of the update (scaling and both factors included), over these layers together.
    update_norm: float
    #: Frobenius norm of the weights, over these layers together.
    weight_norm: float
    #: Output and input features of one weight, as a matrix.
    shape: tuple[int, int]
    #: The adapter's rank.
    rank: int
    #: The factor on the adapter's output: ``lora_alpha / r``, or its rsLoRA form.
    scaling: float
    #: The learning rate of the step; with Adam, the first update grows with it in proportion.
    learning_rate: float


@dataclass(frozen=True)
class SpacingReading:
    """Trained weights in bfloat16, of layers that are alike, before the first step."""

    #: Module path with every number as ``*``.
    pattern: str
    #: Layers that are alike.
    layers: int
    #: Trainable parameters (elements) in all of them.
    parameters: int
    #: Distance to the next value that bfloat16 can represent: at least this for 90% of the
    #: elements.
    spacing: float
    #: The kind of parameter, where it is a vector beside matrices (`lora_magnitude_vector`).
    part: str = ""


@dataclass(frozen=True)
class ConnectionReading:
    """A module whose output is put among token embeddings and fed to a language model."""

    #: Module path.
    path: str
    #: Class of the module.
    class_name: str
    #: Root mean square of the rows of its output.
    output_rms: float
    #: Path of the embedding module.
    reference: str
    #: Root mean square of the token embeddings, as they come out of that module.
    reference_rms: float
    #: Path of the language model.
    into: str
    #: How it is known that its weights are an initialisation and not trained; empty when they may
    #: be trained.
    fresh: str = ""
    #: Whether its weights learn under the recipe.
    trainable: bool = False


@dataclass(frozen=True)
class AttentionReading:
    """What speaks against the attention implementation that a model runs with."""

    #: Name of the implementation.
    implementation: str
    #: The module whose code says so, or calls it.
    path: str
    #: A warning of the model's own code in its training forward.
    warning: str = ""
    #: An argument that the model hands to its attention function, that its own ``eager`` function
    #: takes and this implementation's does not, such as ``softcap=50``.
    dropped: str = ""


@dataclass(frozen=True)
class InstancePatch:
    """A function in the ``__dict__`` of a module in place of a method of its class."""

    #: Module path.
    path: str
    #: Name of the method.
    name: str
    #: ``wrapper`` when it was put on PEFT's wrapper under the name of a method of the model inside,
    #: else ``module``.
    kind: Literal["module", "wrapper"]
    #: ``file:line`` of the function.
    source: str
    #: Calls in the base model's forwards, adapters off or not there yet.
    calls_before: int
    #: Calls in the training forwards.
    calls: int
    #: Calls of the method of the model inside a wrapper, in the training forwards.
    inner_calls: int = 0
    #: Paths of adapted layers that it is put on, or that it holds from before they were adapted.
    around: tuple[str, ...] = ()
    #: Calls of these layers, with adapters, in the training forwards.
    around_calls: int = 0
    #: Paths of those whose adapter took no part while it ran.
    bypassed: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnusedAdapterReading:
    """Adapted layers that are alike (same path but for numbers), whose adapters got no gradient for
    one reason."""

    #: Module path with every number as ``*``.
    pattern: str
    #: Paths of the layers.
    paths: tuple[str, ...]
    #: Class of the layers without their adapters.
    class_name: str
    #: ``not-run``: no forward calls them. ``weight-read``: they are not called, their weight is
    #: read instead. ``no-grad``: they ran with gradients switched off. ``unused``: they ran, and no
    #: output of theirs reaches the loss with a gradient. ``zero``: the gradient arrives, and is
    #: zero.
    why: Literal["not-run", "weight-read", "no-grad", "unused", "zero"]
    #: ``file:line`` that reads the weight, or that runs them without gradients.
    where: str = ""
    #: Of what is not run, the outermost module in which nothing is.
    inside: str = ""


@dataclass(frozen=True)
class NonLinearOutputReading:
    """An adapted layer that is not a plain matrix product: the adapter adds a tensor of another
    shape, or to something else than a tensor."""

    #: Module path.
    path: str
    #: Class of the layer.
    class_name: str
    #: What its own forward gave, in words.
    output: str
    #: Shape of a product of its input with its weight, which is what the adapter gives.
    expected: str


@dataclass(frozen=True)
class Observations:
    """All readings of one run."""

    #: ``own`` when the model that ran has the weights that the user trains from, ``random`` when it
    #: is a tiny one: then what depends on values says nothing about the real model.
    weights: Literal["own", "random"] = "random"
    #: ``own`` when the batches are the user's or hold tokens only, ``made`` when audio or images in
    #: them are random numbers.
    inputs: Literal["own", "made"] = "made"
    #: Normalising layers.
    norms: tuple[NormReading, ...] = ()
    #: The largest activations.
    activations: tuple[ActivationReading, ...] = ()
    #: Layers, in the order of the model.
    layers: tuple[LayerReading, ...] = ()
    #: The first updates.
    updates: tuple[UpdateReading, ...] = ()
    #: What trained weights in bfloat16 can be changed by.
    spacings: tuple[SpacingReading, ...] = ()
    #: What is fed to a language model beside its token embeddings.
    connections: tuple[ConnectionReading, ...] = ()
    #: What speaks against the attention implementation.
    attention: tuple[AttentionReading, ...] = ()
    #: Functions that somebody put on single modules.
    instance_patches: tuple[InstancePatch, ...] = ()
    #: Why adapters got no gradient.
    unused_adapters: tuple[UnusedAdapterReading, ...] = ()
    #: Adapted layers that are no plain matrices.
    non_linear_outputs: tuple[NonLinearOutputReading, ...] = ()
    #: What could not be observed, and why.
    notes: tuple[Note, ...] = ()

    @property
    def user_weights(self) -> bool:
        return self.weights == "own"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Observations:
        return from_json(cls, data)
