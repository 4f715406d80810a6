"""The training contract, executed: does this model learn with these adapters?

Runs in the process that holds the model; torch and PEFT are imported inside functions. The result
is a :class:`Verification`. What is compared and how is in ``round_trip``, which parameters are
meant in ``adapters``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from lora_doctor import adapters as found
from lora_doctor import round_trip
from lora_doctor.copying import own_storage, seed_everything, undisturbed
from lora_doctor.evidence.locator import (
    Locator,
    clean_path,
    first_bad_gradient,
    gradients_on,
    one_line,
    where,
)
from lora_doctor.ledger import Ledger, Stop, is_out_of_memory
from lora_doctor.memory import MemoryMeter
from lora_doctor.recipe import Recipe
from lora_doctor.verification import AdapterGroup, BatchReport, Verification

#: Rounds over all batches after which a loss that has not fallen is called failed.
MORE_ROUNDS = 24
#: PEFT's ways to start LoRA at zero, so that the adapted model starts as the base model.
ZERO_START = (None, True, "gaussian")
NAMES_SHOWN = 4


@dataclass
class Subject:
    """What the contract is run on.

    ``base``: the model without adapters, or with them when ``wrap`` is ``None``; it is changed.
    ``wrap``: puts the adapters on. ``set_up``: what a trainer does before the first step (gradient
    checkpointing). ``fresh``: a base of equal weights to reload onto. ``copyable``: whether
    memory allows a copy of the whole model. ``shared``: the frozen weights belong to somebody
    else; nothing may be written to them. ``batches``: of ``evidence.batch.Batch``, on the device.
    ``missing``: kinds of input that the model takes and that no batch has.
    """

    base: Any
    batches: list[Any]
    wrap: Callable[[Any], Any] | None
    fresh: Callable[[], Any]
    set_up: Callable[[Any], None] = lambda model: None
    learning_rate: float = 1e-2
    copyable: bool = True
    shared: bool = False
    missing: tuple[str, ...] = ()
    model_class: str = ""
    steps: list[str] = field(default_factory=list)


class Contract:
    """One execution; call :meth:`run` once."""

    def __init__(
        self, subject: Subject, recipe: Recipe, *, steps: int, depth: str, device: str, dtype: str
    ) -> None:
        self.subject = subject
        self.recipe = recipe
        self.rounds = max(1, steps)
        self.depth = depth
        self.device = device
        self.dtype = dtype
        self.ledger = Ledger()
        self.model: Any = subject.base
        self.layers: list[found.AdapterLayer] = []
        self.batches: list[Any] = []
        self.base_losses: list[float] = []
        self.first_losses: list[float] = []
        self.losses: dict[int, list[float]] = {}
        self.durations: list[float] = []
        self.rounds_done = 0
        self._optimizer: Any = None
        self._scaler: Any = None
        self._order: dict[str, int] = {}

    def run(self) -> Verification:
        began = time.perf_counter()
        stop: Stop | None = None
        meter = MemoryMeter(self.device, sample_only=self.subject.shared)
        base = self.subject.base
        name = self.subject.model_class or type(base).__name__
        parameters = sum(p.numel() for p in base.parameters())
        with undisturbed(), gradients_on(), meter:
            try:
                self.ledger.add("builds", True, parameters, "an nn.Module", f"{name}, parameters")
                self._run_base()
                self._attach()
                self._forward()
                self._train()
                self._reload()
                self._merge()
            except Stop as caught:
                stop = caught
        undetermined = stop is not None and stop.undetermined
        reason = "" if stop is None else f"not run: {stop.reason}"
        failed = "failed" if self.ledger.failed else "passed"
        return Verification(
            outcome="undetermined" if undetermined else failed,  # type: ignore[arg-type]
            depth=self.depth,
            device=self.device,
            dtype=self.dtype,
            checks=self.ledger.checks(reason),
            failure=self.ledger.failure,
            reason=stop.reason if stop is not None and undetermined else "",
            adapters=self._groups(),
            batches=self._batch_reports(),
            model_class=name,
            model_parameters=parameters,
            steps=self.rounds_done,
            step_seconds=_median_step(self.durations),
            peak_memory=meter.peak,
            seconds=time.perf_counter() - began,
            notes=(*self.subject.steps, *self.ledger.notes),
        )

    # -- the base model, and the adapters on it ---------------------------------------------------

    def _run_base(self) -> None:
        """The reference: losses without adapters. A base that does not run says nothing."""
        reasons = []
        for batch in self.subject.batches:
            try:
                loss = self._measure(batch, adapters=False)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                reasons.append(f"{_kind(batch)}: {type(error).__name__}: {one_line(error, 200)}")
                last = where(error)
                continue
            self.batches.append(batch)
            self.base_losses.append(loss)
        if not self.batches:
            told = f"{reasons[0]} ({last})" if reasons else "there is no batch"
            raise Stop(f"the base model does not run without adapters: {told}", undetermined=True)
        for reason in reasons:
            self.ledger.note(f"the base model does not take this batch, it was left out: {reason}")

    def _attach(self) -> None:
        import warnings

        with self.ledger.guard("attaches"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.subject.wrap is not None:
                seed_everything(0)
                self.model = self.subject.wrap(self.subject.base)
            self.layers = found.find_adapters(self.model)
        if not self.layers:
            self.ledger.add("attaches", False, 0, "adapters in the model", "no adapter was found")
            raise Stop("attaches failed")
        missing = self._unmatched()
        stray = found.stray_parameters(self.model, self.layers, self._peft("bias", "none"))
        frozen = [p.name for p in self._parameters() if not p.tensor.requires_grad]
        details = []
        if missing:
            details.append(f"nothing is named {', '.join(missing[:NAMES_SHOWN])}")
        if stray:
            share = sum(count for _, count in stray) / max(1, _count(self.model, trainable=False))
            names = ", ".join(name for name, _ in stray[:NAMES_SHOWN])
            details.append(
                f"{len(stray)} other parameters are trainable ({share:.1%} of the model): {names}"
            )
        if frozen and self._peft("peft_type", "LORA") == "LORA":
            names = ", ".join(clean_path(name) for name in frozen[:NAMES_SHOWN])
            details.append(f"{len(frozen)} adapter parameters are frozen: {names}")
        good = not details
        if good:
            trainable = _count(self.model, trainable=True)
            details.append(f"{trainable} parameters are trainable, all in adapters")
        expected = "adapters on every name of the recipe, nothing else trainable"
        self.ledger.add("attaches", good, len(self.layers), expected, "; ".join(details))
        if self.subject.shared:
            if stray:
                raise Stop("attaches failed: weights outside the adapters would be trained")
            own_storage(p for p in self.model.parameters() if p.requires_grad)

    def _unmatched(self) -> list[str]:
        """Entries of ``target_modules`` that no adapter sits on (PEFT passes them by silently).

        Asked of the config that PEFT keeps: it turns some names into parameters itself. Names
        with a layer number are not judged on a model with fewer layers.
        """
        targets = self._peft("target_modules", None)
        wanted = self.recipe.get("target_modules")
        if not isinstance(wanted, list) or not isinstance(targets, (list, set, tuple)):
            return []
        paths = [layer.path for layer in self.layers]
        missing = []
        for name in wanted:
            if name not in targets or any(p == name or p.endswith(f".{name}") for p in paths):
                continue
            if self.depth == "tiny" and any(part.isdigit() for part in name.split(".")):
                self.ledger.note(f"{name!r} names a single layer; the tiny model has fewer")
                continue
            missing.append(name)
        return missing

    # -- forward, backward, steps -----------------------------------------------------------------

    def _forward(self) -> None:
        model = self.model
        with self.ledger.guard("forward", model):
            self.subject.set_up(model)
        losses = []
        model.train()
        for batch in self.batches:
            seed_everything(0)
            try:
                with self.ledger.guard("forward", model) as locator:
                    loss = self._loss(batch)
            except Stop:
                self._blame_base(batch)
                raise
            assert locator is not None
            self._order = locator.order
            losses.append(float(loss.detach()))
            del loss
        kinds = ", ".join(_kind(batch) for batch in self.batches)
        self.ledger.add("forward", True, len(losses), "no exception", f"batches: {kinds}")
        with self.ledger.guard("starts-at-base", model):
            self.first_losses = [self._measure(batch) for batch in self.batches]
        self._starts_at_base()
        finite = [_finite(loss) for loss in losses]
        value = losses[0] if len(losses) == 1 else losses
        if not all(finite):
            self._locate_non_finite(self.batches[finite.index(False)], value)
            raise Stop("loss-finite failed")
        self.ledger.add("loss-finite", True, value, "a finite number")

    def _starts_at_base(self) -> None:
        name = "starts-at-base"
        start = self._peft("init_lora_weights", None)
        if self.subject.wrap is None:
            return self.ledger.skip(name, "the adapters came with the model")
        if self._peft("peft_type", "LORA") != "LORA" or start not in ZERO_START:
            return self.ledger.skip(name, "these adapters do not start at zero")
        pairs = list(zip(self.first_losses, self.base_losses, strict=True))
        if not all(_finite(number) for pair in pairs for number in pair):
            return self.ledger.skip(name, "a loss is not finite (see loss-finite)")
        difference = max(abs(own - base) / max(abs(base), 1e-6) for own, base in pairs)
        tolerance = round_trip.RELOAD_TOLERANCE.get(self.dtype, 1e-5)
        text = ", ".join(f"{own:.6g} with, {base:.6g} without adapters" for own, base in pairs)
        self.ledger.add(name, difference <= tolerance, difference, f"at most {tolerance:g}", text)
        return None

    def _train(self) -> None:
        parameters = [p.name for p in self._parameters() if p.tensor.requires_grad]
        before = {p.name: p.tensor.detach().clone() for p in self._parameters()}
        self._note_trained = set(parameters)
        frozen = round_trip.frozen_sums(self.model)
        rate = self.subject.learning_rate
        handles = found.count_calls(self.layers)
        try:
            self._start_optimizer(rate)
            for _ in range(self.rounds):
                self._round(watch=True)
            # A starts to move when B has: after a single step there is nothing to be seen yet.
            for _ in range(2):
                if any(not p.got_gradient and p.seen for p in self._parameters()):
                    self._round(watch=True)
        finally:
            for handle in handles:
                handle.remove()
        self._judge_gradients()
        self.ledger.add("steps", True, self.rounds_done, f"at least {self.rounds} rounds")
        for parameter in self._parameters():
            change = (parameter.tensor.detach() - before[parameter.name]).abs()
            parameter.moved = float(change.max()) if change.numel() else 0.0
        self._judge_moves()
        moved = round_trip.changed(frozen, round_trip.frozen_sums(self.model))
        names = ", ".join(moved[:NAMES_SHOWN])
        self.ledger.add("frozen-stay", not moved, len(moved), f"0 of {len(frozen)} moved", names)
        self._judge_loss(before, rate)

    def _start_optimizer(self, rate: float) -> None:
        import torch

        trained = [p for p in self.model.parameters() if p.requires_grad]
        with self.ledger.guard("gradients"):
            self._optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        # As a trainer does for fp16; a small fixed scale, so that no step is skipped to find it.
        kind = "cuda" if self.device.startswith("cuda") else "cpu"
        self._scaler = torch.amp.GradScaler(
            kind, init_scale=64.0, growth_interval=1 << 30, enabled=self.dtype == "float16"
        )

    def _round(self, *, watch: bool) -> None:
        """One forward, backward and optimizer step on each batch."""
        model = self.model
        model.train()
        learnt = 0
        for batch in self.batches:
            began = time.perf_counter()
            self._optimizer.zero_grad(set_to_none=True)
            with self.ledger.guard("gradients", model):
                loss = self._loss(batch)
                if not loss.requires_grad and (learnt or batch is not self.batches[-1]):
                    # No adapter in its way: another kind of batch may reach them.
                    continue
                if not loss.requires_grad and self.subject.missing and not self._any_called():
                    kinds = " or ".join(self.subject.missing)
                    raise Stop(f"no batch with {kinds} could be made, and the others reach no "
                               "adapter", undetermined=True)
                self._scaler.scale(loss).backward()
            learnt += 1
            if watch:
                found.note_gradients(self.layers, _kind(batch))
                self._stop_at_bad_gradient()
            with self.ledger.guard("steps"):
                self._scaler.unscale_(self._optimizer) if self._scaler.is_enabled() else None
                self._scaler.step(self._optimizer)
                self._scaler.update()
            self.losses.setdefault(id(batch), []).append(float(loss.detach()))
            self.durations.append(time.perf_counter() - began)
        self.rounds_done += 1

    def _any_called(self) -> bool:
        return any(layer.calls for layer in self.layers)

    def _stop_at_bad_gradient(self) -> None:
        bad = first_bad_gradient(self.model, self._order)
        if bad is None:
            return
        name, largest = bad
        count = sum(not p.finite for p in self._parameters())
        text = f"the gradient of {name} is not finite first (largest finite value {largest:.3g})"
        self.ledger.add(
            "gradients", False, f"{count} not finite", "finite gradients", text
        )
        self.ledger.blame("gradients", "NonFiniteGradient", text, name.rpartition(".")[0])
        raise Stop("gradients failed")

    # -- judging ----------------------------------------------------------------------------------

    def _judge_gradients(self) -> None:
        idle = found.without_tokens(self.layers)
        if idle:
            paths = ", ".join(layer.path for layer in idle[:NAMES_SHOWN])
            self.ledger.note(f"{len(idle)} adapted experts got no token: {paths}")
        unreached = [layer for layer in self.layers if not layer.calls and layer not in idle]
        if self.subject.missing and unreached:
            self.ledger.note(
                f"{len(unreached)} adapters are not proven: there is no batch with "
                f"{' or '.join(self.subject.missing)} ({unreached[0].path}, …)"
            )
            idle = [*idle, *unreached]
        out = {id(layer) for layer in idle}
        judged = [p for layer in self.layers if id(layer) not in out for p in layer.parameters]
        judged = [p for p in judged if p.name in self._note_trained]
        without = [p for p in judged if not p.got_gradient]
        none = sum(not p.seen for p in without)
        names = ", ".join(clean_path(p.name) for p in without[:NAMES_SHOWN])
        detail = ""
        if without:
            detail = f"{none} got none at all, {len(without) - none} only zeros: {names}"
        value = f"{len(judged) - len(without)} of {len(judged)}"
        expected = "every adapter parameter"
        self.ledger.add("gradients", bool(judged) and not without, value, expected, detail)

    def _judge_moves(self) -> None:
        with_gradient = [p for p in self._parameters() if p.got_gradient]
        still = [p for p in with_gradient if p.moved == 0]
        names = ", ".join(clean_path(p.name) for p in still[:NAMES_SHOWN])
        value = f"{len(with_gradient) - len(still)} of {len(with_gradient)}"
        expected = "every adapter parameter with a gradient"
        self.ledger.add("adapters-move", bool(with_gradient) and not still, value, expected, names)

    def _judge_loss(self, before: dict[str, Any], rate: float) -> None:
        """The loss in eval mode (no dropout), before and after; more and gentler steps if needed."""
        import torch

        learnt = [batch for batch in self.batches if id(batch) in self.losses]
        first = [self.first_losses[self.batches.index(batch)] for batch in learnt]
        start = sum(first) / len(first)
        noise = {"float32": 1e-6, "float64": 1e-6}.get(self.dtype, 1e-4) * max(abs(start), 1e-3)
        used, tried = self.rounds_done, [rate]
        now = self._mean_loss(learnt)
        for attempt in (rate, rate / 10):
            if now < start - noise:
                break
            if attempt != rate:
                with torch.no_grad():
                    for parameter in self._parameters():
                        parameter.tensor.copy_(before[parameter.name])
                self._start_optimizer(attempt)
                tried.append(attempt)
            for _ in range(MORE_ROUNDS // 4):
                for _ in range(4):
                    self._round(watch=False)
                now = self._mean_loss(learnt)
                if now < start - noise:
                    break
        detail = f"from {start:.6g} to {now:.6g} in {self.rounds_done} rounds, learning rate "
        detail += " then ".join(f"{one:g}" for one in tried)
        self.rounds_done, extra = used, self.rounds_done - used
        if extra:
            self.ledger.note(f"{extra} more rounds were run until the loss was judged")
        good = _finite(now) and now < start - noise
        self.ledger.add("loss-falls", good, now - start, "below 0", detail)

    # -- saved, reloaded, merged ------------------------------------------------------------------

    def _reload(self) -> None:
        name, model = "save-reload", self.model
        if not hasattr(model, "save_pretrained") or not hasattr(model, "peft_config"):
            return self.ledger.skip(name, "the adapters are not in a PEFT model")
        own = round_trip.outputs_of(model, self.batches[0])
        try:
            with self.ledger.guard(name):
                reloaded, told = round_trip.save_and_reload(model, self.subject.fresh())
        except Stop:
            return None  # merging does not depend on it
        try:
            with self.ledger.guard(name, reloaded):
                again = round_trip.outputs_of(reloaded, self.batches[0])
        except Stop:
            return None
        difference = round_trip.compare(own, again)
        tolerance = round_trip.RELOAD_TOLERANCE.get(self.dtype, 1e-5)
        same_class = type(reloaded) is type(model)
        good = difference.comparable and difference.relative <= tolerance and same_class
        details = [difference.why] if difference.why else [_difference_text(difference)]
        if not same_class:
            details.append(f"{type(reloaded).__name__} instead of {type(model).__name__}")
        details += told
        expected = f"a relative difference of at most {tolerance:g}"
        value = difference.relative if difference.comparable else None
        self.ledger.add(name, good, value, expected, "; ".join(details))
        return None

    def _merge(self) -> None:
        name, model = "merge", self.model
        if not hasattr(getattr(model, "base_model", None), "merge_and_unload"):
            kind = self._peft("peft_type", "this kind")
            return self.ledger.skip(name, f"PEFT cannot merge {kind} adapters")
        if any(not p.is_floating_point() for p in model.parameters()):
            return self.ledger.skip(name, "merging into quantized weights rounds them again")
        tolerance = round_trip.MERGE_TOLERANCE.get(self.dtype, 1e-4)
        try:
            with self.ledger.guard(name):
                if self.subject.copyable:
                    difference, detail = self._merge_copy()
                else:
                    difference, detail = self._merge_layers()
        except Stop as stop:
            if isinstance(stop.__cause__, NotImplementedError):
                self.ledger.unfail(name, f"PEFT cannot: {one_line(stop.__cause__, 200)}")
            return None
        good = difference is not None and difference <= tolerance
        expected = f"a relative difference of at most {tolerance:g}"
        self.ledger.add(name, good, difference, expected, detail)
        return None

    def _merge_copy(self) -> tuple[float | None, str]:
        import copy
        import warnings

        own = round_trip.outputs_of(self.model, self.batches[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._optimizer.zero_grad(set_to_none=True)
            merged = copy.deepcopy(self.model).merge_and_unload()
        difference = round_trip.compare(own, round_trip.outputs_of(merged, self.batches[0]))
        text = difference.why or _difference_text(difference)
        tied = round_trip.tied_to_others(self.model, self.layers)
        if tied:
            text += f"; {', '.join(tied)} shares its weight with another module"
        return (difference.relative if difference.comparable else None), text

    def _merge_layers(self) -> tuple[float | None, str]:
        tied = round_trip.tied_to_others(self.model, self.layers)
        if tied:
            names = ", ".join(tied[:NAMES_SHOWN])
            return None, f"merging {names} also changes the module that shares its weight"
        worst, path = round_trip.merge_layer_by_layer(self.model, self.batches[0], self.layers)
        return worst, f"measured layer by layer, largest at {path}"

    # -- small helpers ----------------------------------------------------------------------------

    def _loss(self, batch: Any) -> Any:
        from lora_doctor.evidence.batch import batch_loss

        return batch_loss(self.model, batch)

    def _measure(self, batch: Any, *, adapters: bool = True) -> float:
        """The loss in eval mode with a fixed seed; without adapters the base model's."""
        import contextlib

        model = self.model
        off: Any = contextlib.nullcontext()
        if not adapters and self.subject.wrap is None and hasattr(model, "disable_adapter"):
            off = model.disable_adapter()
        # PEFT makes adapters trainable when it turns them on again, frozen ones too.
        trainable = [(p, p.requires_grad) for p in model.parameters()]
        with round_trip.evaluating(model), off:
            seed_everything(0)
            loss = float(self._loss(batch))
        for parameter, wanted in trainable:
            if parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)
        return loss

    def _mean_loss(self, batches: list[Any]) -> float:
        return sum(self._measure(batch) for batch in batches) / len(batches)

    def _blame_base(self, batch: Any) -> None:
        """Stop as undetermined when the base model fails in training mode as well."""
        from lora_doctor.evidence.batch import batch_loss

        base = self.subject.fresh()
        base.train()
        try:
            batch_loss(base, batch)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise Stop(
                "the base model does not run in training mode: "
                f"{type(error).__name__}: {one_line(error, 200)} ({where(error)})",
                undetermined=True,
            ) from error

    def _locate_non_finite(self, batch: Any, value: Any) -> None:
        import torch

        seed_everything(0)
        with Locator(self.model, look=True) as locator, torch.no_grad():
            self._loss(batch)
        bad = locator.non_finite
        text = f"first bad module: {bad}" if bad else "every module's output is finite"
        self.ledger.add("loss-finite", False, value, "a finite number", text)
        self.ledger.blame("loss-finite", "NonFiniteLoss", text, bad.path if bad else "")

    def _parameters(self) -> list[found.AdapterParameter]:
        return list(found.every_parameter(self.layers))

    def _peft(self, key: str, default: Any) -> Any:
        """A setting of the active adapter's config as PEFT keeps it."""
        configs = getattr(self.model, "peft_config", None)
        if not isinstance(configs, dict) or not configs:
            return default
        active = found.active_adapters(self.model)
        config = configs.get(active[0] if active else "default") or next(iter(configs.values()))
        value = getattr(config, key, default)
        return getattr(value, "value", value)

    def _groups(self) -> tuple[AdapterGroup, ...]:
        groups: dict[str, list[found.AdapterLayer]] = {}
        for layer in self.layers:
            groups.setdefault(layer.pattern, []).append(layer)
        return tuple(
            AdapterGroup(
                pattern=pattern,
                count=len(layers),
                with_gradient=sum(layer.trained for layer in layers),
                moved=sum(layer.moved for layer in layers),
                batches=tuple(
                    kind
                    for kind in dict.fromkeys(_kind(batch) for batch in self.batches)
                    if any(kind in p.batches for layer in layers for p in layer.parameters)
                ),
                examples_without_gradient=tuple(
                    layer.path for layer in layers if not layer.trained
                )[:NAMES_SHOWN],
            )
            for pattern, layers in groups.items()
        )

    def _batch_reports(self) -> tuple[BatchReport, ...]:
        return tuple(
            BatchReport(
                kind=_kind(batch),
                inputs={
                    name: tuple(value.shape)
                    for name, value in batch.inputs.items()
                    if hasattr(value, "shape")
                },
                loss=batch.loss,
                losses=tuple(self.losses.get(id(batch), ())),
                notes=tuple(batch.notes),
            )
            for batch in self.batches
        )


def verify_module(module: Any, recipe: Any = None, batches: Any = None, steps: int = 3) -> Verification:
    """The contract on a module in memory, which stays as it is: see ``loaded_module``."""
    from lora_doctor.loaded_module import verify_module as verify

    return verify(module, recipe, batches, steps)


def _kind(batch: Any) -> str:
    return "+".join(sorted(batch.modality)) or "other"


def _finite(number: float) -> bool:
    return number - number == 0


def _count(model: Any, *, trainable: bool) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def _median_step(durations: list[float]) -> float | None:
    """Seconds of a step; the first one also pays for what is prepared once."""
    rest = durations[1:] or durations
    return median(rest) if rest else None


def _difference_text(difference: round_trip.Difference) -> str:
    return f"largest absolute difference {difference.absolute:.3g}"
