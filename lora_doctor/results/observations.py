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
    """What another epsilon would do to a norm, measured by running it with both.

    ``change``: norm of the difference of the outputs relative to the norm of the output, in the
    dtype of the recipe; ``growth``: size of the output relative to what it is now, and of the
    gradient with it; ``rounding``: the same between that dtype and float32, with the norm's own
    epsilon: a change below it cannot be told from rounding.
    """

    epsilon: float
    change: float
    growth: float
    rounding: float


@dataclass(frozen=True)
class NormReading:
    """Normalising layers that are alike: same path but for numbers, class, epsilon and owner.

    ``path``: the one of ``count`` that its epsilon changes most. ``attribute``: what it calls its
    epsilon. ``dtype``: the one in which effects were measured, the recipe's if it names one.
    ``variance``: smallest, median and largest over the rows that reached them, of what the layer
    divides by (mean square for a layer that does not subtract the mean). ``owner``: path of the
    library model that it is a part of (empty: the model itself); ``None`` for a module of the
    user's own. ``expected``: the epsilon with which that library class builds this layer, ``None``
    when it was not asked. ``zero_row_finite``: whether a row of zeros (padding) comes out finite.
    ``zero_rows``: how many rows were all zeros. ``fresh``: its weights are as a norm starts, all
    ones or all zeros: nothing was trained with this epsilon.
    """

    pattern: str
    path: str
    class_name: str
    count: int
    attribute: str
    epsilon: float
    dtype: str
    variance: tuple[float, float, float]
    effects: tuple[EpsilonEffect, ...] = ()
    owner: str | None = None
    expected: float | None = None
    zero_row_finite: bool = True
    zero_rows: int = 0
    fresh: bool = False


@dataclass(frozen=True)
class ActivationReading:
    """The largest absolute value that a module put out. ``dtype``: that of the output.

    ``finite``: whether all of it was; for the first module that was not, ``max_abs`` is what it
    puts out in float32, where that could be had. ``kept_in_float32``: the model's class says that
    its weights stay in float32 when the others are loaded in float16.
    """

    path: str
    class_name: str
    dtype: str
    max_abs: float
    finite: bool = True
    kept_in_float32: bool = False


@dataclass(frozen=True)
class UpdateReading:
    """What the first optimizer step did to adapted weights that are alike: same path but for
    numbers, same scaling and rank.

    ``layers`` were measured. ``update_norm`` and ``weight_norm``: Frobenius norms of the update
    (scaling and both factors included) and of the weights, over these layers together. ``shape``:
    of one weight as a matrix, outputs and inputs. ``learning_rate``: with Adam, the first update
    grows with it in proportion.
    """

    pattern: str
    layers: int
    update_norm: float
    weight_norm: float
    shape: tuple[int, int]
    rank: int
    scaling: float
    learning_rate: float


@dataclass(frozen=True)
class ConnectionReading:
    """A module whose output is put among token embeddings and fed to a language model.

    ``output_rms`` and ``reference_rms``: root mean square of its rows and of the token embeddings,
    both as they come out of their modules. ``reference``: path of the embedding module. ``into``:
    path of the language model. ``fresh``: how it is known that the weights are an initialisation
    and not trained; empty when they may be trained. ``trainable``: whether the weights learn under
    the recipe.
    """

    path: str
    class_name: str
    output_rms: float
    reference: str
    reference_rms: float
    into: str
    fresh: str = ""
    trainable: bool = False


@dataclass(frozen=True)
class AttentionReading:
    """What speaks against the attention implementation that a model runs with.

    ``implementation``: its name. ``path``: the module whose code says so, or calls it. ``said``: a
    warning of the model's own code in its training forward. ``dropped``: an argument that the
    model hands to its attention function, that its own ``eager`` function takes and this
    implementation's does not, such as ``softcap=50``.
    """

    implementation: str
    path: str
    said: str = ""
    dropped: str = ""


@dataclass(frozen=True)
class InstancePatch:
    """A function in the ``__dict__`` of a module in place of a method of its class.

    ``kind``: ``wrapper`` when it was put on PEFT's wrapper under the name of a method of the model
    inside. ``source``: ``file:line`` of the function. ``calls_before``: in the base model's
    forwards, adapters off or not there yet; ``calls`` and, of the model inside a wrapper, its own
    method's ``inner_calls``: in the training forwards. ``around``: adapted layers that it is put
    on or that it holds from before they were adapted, ``around_calls`` of these with adapters;
    ``passed_by`` those of them whose adapter took no part while it ran.
    """

    path: str
    name: str
    kind: Literal["module", "wrapper"]
    source: str
    calls_before: int
    calls: int
    inner_calls: int = 0
    around: tuple[str, ...] = ()
    around_calls: int = 0
    passed_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnusedAdapterReading:
    """Adapted layers that are alike (same path but for numbers), whose adapters got no gradient
    for one reason.

    ``why``: ``not-run``: no forward calls them. ``weight-read``: nobody calls them, their weight is
    read instead. ``no-grad``: they ran with gradients switched off. ``unused``: they ran, and
    nothing that they put out is on a way to the loss that has a gradient. ``zero``: the gradient
    arrives, and is zero. ``where``: the line that reads the weight, or that runs them without
    gradients. ``inside``: of what is not run, the outermost module in which nothing is.
    """

    pattern: str
    paths: tuple[str, ...]
    class_name: str
    why: Literal["not-run", "weight-read", "no-grad", "unused", "zero"]
    where: str = ""
    inside: str = ""


@dataclass(frozen=True)
class NonLinearOutputReading:
    """An adapted layer that is no plain matrix: what it puts out is not what LoRA adds to.

    ``put_out``: what its own forward gave, in words; ``expected``: the shape of a product of its
    input with its weight, which is what the adapter gives.
    """

    path: str
    class_name: str
    put_out: str
    expected: str


@dataclass(frozen=True)
class Observations:
    """All readings of one run.

    ``weights``: ``own`` when the model that ran has the weights that the user trains from,
    ``random`` when it is a shrunken one of ours: then what depends on values says nothing about the
    real model. ``inputs``: ``own`` when the batches are the user's or hold tokens only, ``made``
    when sound or images in them are random numbers of ours. ``notes``: what could not be observed,
    and why.
    """

    weights: Literal["own", "random"] = "random"
    inputs: Literal["own", "made"] = "made"
    norms: tuple[NormReading, ...] = ()
    activations: tuple[ActivationReading, ...] = ()
    updates: tuple[UpdateReading, ...] = ()
    connections: tuple[ConnectionReading, ...] = ()
    attention: tuple[AttentionReading, ...] = ()
    instance_patches: tuple[InstancePatch, ...] = ()
    idle: tuple[UnusedAdapterReading, ...] = ()
    misfits: tuple[NonLinearOutputReading, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def user_weights(self) -> bool:
        return self.weights == "own"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Observations:
        return from_json(cls, data)
