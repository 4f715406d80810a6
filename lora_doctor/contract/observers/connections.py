"""Connections: what is put among token embeddings and fed to a language model, and its size.

A connection is seen, not guessed: rows that a module outside the language model put out are found
again, number by number, in the embeddings that the language model is called with.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lora_doctor.contract.observers.base import Observer, Setting
from lora_doctor.nn.embeddings import input_embeddings
from lora_doctor.results.observations import ConnectionReading
from lora_doctor.text import clean_path

if TYPE_CHECKING:
    from lora_doctor.contract.adapters import AdapterLayer

#: Fewer weights than these tell nothing about the distribution that they come from.
_ENOUGH = 256
_SAMPLED_IDS = 64


@dataclass
class _Decoder:
    """A language model that can be fed with embeddings. ``own_rms``: of its token embeddings."""

    path: str
    module: Any
    embeddings_path: str
    embeddings: Any
    own_rms: float | None = None

    @property
    def width(self) -> int:
        return int(self.embeddings.weight.shape[-1])


@dataclass
class _Output:
    """What a module put out last: two of its rows, and the size of all."""

    path: str
    module: Any
    rows: Any
    rms: float


class Connections(Observer):
    """Fills ``Observations.connections``, one reading for each module that feeds a decoder."""

    field: ClassVar[str] = "connections"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._outputs: dict[str, _Output] = {}
        self._found: dict[str, tuple[_Output, _Decoder]] = {}
        self._trainable: set[str] = set()

    def watch(self, model: Any) -> Iterable[Any]:
        decoders = list(_decoders(model))
        widths = {decoder.width for decoder in decoders}
        inside = tuple(f"{decoder.path}." if decoder.path else "" for decoder in decoders)
        around = {decoder.path for decoder in decoders}
        outside = [
            (path, module)
            for path, module in model.named_modules()
            if path and path not in around and not path.startswith(inside)
        ]
        if not decoders or not outside:
            return
        for path, module in outside:
            if any(decoder.startswith(f"{path}.") for decoder in around):
                continue  # it holds the decoder
            yield module.register_forward_hook(self.hook(self._keep(path, widths)))
        for decoder in decoders:
            yield decoder.embeddings.register_forward_hook(self.hook(_measure_own(decoder)))
            # A hook of this kind must return nothing, which `hook` sees to.
            yield decoder.module.register_forward_pre_hook(
                self.hook(self._compare(decoder)), with_kwargs=True
            )

    def _keep(self, path: str, widths: set[int]) -> Any:
        def look(module: Any, _inputs: Any, output: Any) -> None:
            if not hasattr(output, "is_floating_point") or not output.is_floating_point():
                return
            if output.dim() < 2 or output.shape[-1] not in widths or not output.numel():
                return
            rows = output.detach().reshape(-1, output.shape[-1])
            self._outputs[path] = _Output(path, module, rows[[0, -1]].clone(), _rms(rows))

        return look

    def _compare(self, decoder: _Decoder) -> Any:
        def look(_module: Any, inputs: Any, named: Any) -> None:
            fed = named.get("inputs_embeds")
            if fed is None or fed.shape[-1] != decoder.width:
                return
            rows = fed.detach().reshape(-1, decoder.width)
            for output in self._outputs.values():
                wanted = output.rows.to(rows)
                # A container puts out what its last module did: the first of them made it.
                known = any(
                    kept is output or _same(kept, output) for kept, _ in self._found.values()
                )
                if not known and bool(wanted.any()) and all(_contains(rows, row) for row in wanted):
                    self._found[output.path] = (output, decoder)

        return look

    def attached(self, model: Any, layers: list[AdapterLayer]) -> None:
        learning = [clean_path(name) for name, p in model.named_parameters() if p.requires_grad]
        for path in self._found:
            # What the module itself brings, or PEFT's trained copy of it; no LoRA beside it.
            own = f"{clean_path(path)}."
            if any(name.startswith(own) and "lora_" not in name for name in learning):
                self._trainable.add(path)

    def readings(self) -> tuple[ConnectionReading, ...]:
        return tuple(self._reading(*pair) for pair in self._found.values())

    def _reading(self, output: _Output, decoder: _Decoder) -> ConnectionReading:
        if decoder.own_rms is None:
            decoder.own_rms = _sampled_rms(decoder.embeddings)
        return ConnectionReading(
            path=clean_path(output.path),
            class_name=type(output.module).__name__,
            output_rms=output.rms,
            reference=clean_path(decoder.embeddings_path),
            reference_rms=decoder.own_rms,
            into=clean_path(decoder.path),
            fresh=freshness(output.module),
            trainable=output.path in self._trainable,
        )


def freshness(module: Any) -> str:
    """How its own weight matrix is known to be an initialisation; empty when it may be trained.

    Independent draws from one uniform or normal distribution, every row and column alike, are what
    ``torch.nn.init`` makes and what training does not leave.
    """
    weight = getattr(module, "weight", None)
    if weight is None or not weight.is_floating_point() or weight.dim() < 2:
        return ""
    matrix = weight.detach().float().reshape(weight.shape[0], -1)
    count, deviation = matrix.numel(), float(matrix.std())
    if count < _ENOUGH or not deviation:
        return ""
    centred = (matrix - matrix.mean()) / deviation
    skew, kurtosis = float(centred.pow(3).mean()), float(centred.pow(4).mean())
    alike = _alike(matrix, 1) and _alike(matrix, 0)
    if not alike or abs(skew) > 5 * math.sqrt(6 / count):
        return ""
    largest = float(matrix.abs().max())
    if abs(kurtosis - 1.8) < 5 * math.sqrt(24 / count) and largest < 1.02 * deviation * 3**0.5:
        return f"uniformly distributed up to {largest:.3g}, every row and column alike"
    if abs(kurtosis - 3) < 5 * math.sqrt(24 / count):
        return f"normally distributed, deviation {deviation:.3g}, every row and column alike"
    return ""


def _alike(matrix: Any, dim: int) -> bool:
    """Whether the deviations along ``dim`` differ as little as those of independent draws."""
    deviations = matrix.std(dim)
    spread = float(deviations.std() / deviations.mean())
    return spread < 2 / math.sqrt(2 * matrix.shape[dim])


def _decoders(model: Any) -> Iterator[_Decoder]:
    """The innermost modules with token embeddings whose forward takes ``inputs_embeds``."""
    modules = dict(model.named_modules())
    names = {id(module): path for path, module in modules.items()}
    by_embeddings: dict[int, _Decoder] = {}
    for path, module in modules.items():
        embeddings = _embeddings_of(module)
        if embeddings is None or id(embeddings) not in names:
            continue
        if "inputs_embeds" in inspect.signature(module.forward).parameters:
            inner = names[id(embeddings)]
            by_embeddings[id(embeddings)] = _Decoder(path, module, inner, embeddings)
    yield from by_embeddings.values()


def _embeddings_of(module: Any) -> Any:
    found = input_embeddings(module)
    weight = getattr(found, "weight", None)
    return found if weight is not None and weight.dim() == 2 else None


def _measure_own(decoder: _Decoder) -> Any:
    def look(_module: Any, _inputs: Any, output: Any) -> None:
        if decoder.own_rms is None and output.numel():
            decoder.own_rms = _rms(output.detach())

    return look


def _sampled_rms(embeddings: Any) -> float:
    """Of the first tokens, for a model that was given no text."""
    import torch

    ids = torch.arange(
        min(_SAMPLED_IDS, embeddings.weight.shape[0]), device=embeddings.weight.device
    )
    with torch.no_grad():
        return _rms(embeddings.forward(ids))


def _same(one: _Output, two: _Output) -> bool:
    return one.rows.shape == two.rows.shape and bool((one.rows == two.rows.to(one.rows)).all())


def _contains(rows: Any, row: Any) -> bool:
    return bool((rows == row).all(-1).any())


def _rms(values: Any) -> float:
    return float(values.float().pow(2).mean().sqrt())
