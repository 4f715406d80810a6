"""The training contract, executed: does this model learn with these adapters?

Runs in the process that holds the model; torch and PEFT are imported inside functions. The result
is a :class:`Verification`. The steps are in ``training``, saving and merging in ``round_trip``,
which parameters are meant in ``adapters``.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median
from typing import Any

from lora_doctor.contract import adapters as found
from lora_doctor.contract import round_trip, saved_files
from lora_doctor.contract.adapter_inputs import with_task_ids, with_tokens_for_adapters
from lora_doctor.contract.half_precision import float16_keys
from lora_doctor.contract.locator import NonFinite, gradients_on
from lora_doctor.contract.measure import is_discrete, is_finite, kind_of, loss_of, measured_loss
from lora_doctor.contract.observers import Observers
from lora_doctor.contract.observers.base import Setting
from lora_doctor.contract.precision import Precision
from lora_doctor.contract.random_weights import RandomWeights
from lora_doctor.contract.recorder import Recorder, Stop
from lora_doctor.contract.subject import Subject
from lora_doctor.contract.training import NAMES_SHOWN, AdaptedModel, Training
from lora_doctor.model.error_reports import model_error
from lora_doctor.model.library_answers import warnings_heard
from lora_doctor.model.peft_models import adapters_off, own_config
from lora_doctor.model.target_entries import names_of_nothing
from lora_doctor.nn.copying import (
    attributes_kept,
    own_storage,
    seed_everything,
    statistics_kept,
    undisturbed,
)
from lora_doctor.nn.memory_meter import MemoryMeter
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.round_trip import Saving
from lora_doctor.results.verification import BatchReport, Problem, Verification
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.text import clean_path, one_line, where
from lora_doctor.tiny_model.batch.collators import added_inputs

#: PEFT's ways to start LoRA at zero, so that the adapted model starts as the base model.
ZERO_START = (True, "gaussian")
#: Real weights are in a minimum already; large steps would throw them out of it.
LEARNING_RATE = 5e-4


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
        self.precision = Precision.of(recipe, dtype, device)
        self.recorder = Recorder()
        self.model: Any = subject.base
        self.layers: list[found.AdapterLayer] = []
        self.batches: list[Any] = []
        self.base_losses: list[float] = []
        self.first_losses: list[float] = []
        self.training: Training | None = None
        self.saving: Saving | None = None
        self._order: dict[str, int] = {}
        self._trainable_before: dict[str, Any] = {}
        self._random = RandomWeights(subject.base, subject.missing_weights)
        wanted = recipe.get("dtype")
        self.observers = Observers(
            Setting(
                user_weights=subject.user_weights,
                user_inputs=subject.user_inputs or all(map(is_discrete, subject.batches)),
                dtype=dtype,
                wanted_dtype=dtype if wanted in (None, "auto") else str(wanted),
                learning_rate=subject.learning_rate,
                float16=dtype == "float16" or bool(float16_keys(recipe)),
            ),
            asked=subject.observed,
        )

    def run(self) -> Verification:
        began = time.perf_counter()
        stop: Stop | None = None
        meter = MemoryMeter(self.device, sample_only=self.subject.shared)
        base = self.subject.base
        name = self.subject.model_class or type(base).__name__
        parameters = sum(p.numel() for p in base.parameters())
        with undisturbed(), gradients_on(), meter, warnings_heard(self.recorder.warned):
            try:
                self.recorder.add("builds", True, parameters, "an nn.Module", f"{name}, parameters")
                with attributes_kept(self.model), self.observers.forwards(self.model):
                    self._run_base()
                self._attach()
                self._forward()
                self._train()
                if self.subject.round_trip:
                    self._round_trip()
            except Stop as caught:
                stop = caught
        obstacle = stop.obstacle if stop is not None else None
        reason = "" if stop is None else f"not run: {stop.reason}"
        failed = "failed" if self.recorder.failed else "passed"
        return Verification(
            outcome="undetermined" if obstacle else failed,  # type: ignore[arg-type]
            depth=self.depth,
            device=self.device,
            dtype=self.dtype,
            checks=self.recorder.checks(reason),
            failure=self.recorder.failure,
            reason=stop.reason if stop is not None and obstacle else "",
            obstacle=obstacle,
            base_error=stop.base_error if stop is not None else None,
            adapters=found.groups_of(self.layers, [kind_of(batch) for batch in self.batches]),
            batches=self._batch_reports(),
            model_class=name,
            model_parameters=parameters,
            steps=self.training.rounds_done if self.training else 0,
            step_seconds=_median_step(self.training.durations) if self.training else None,
            peak_memory=meter.peak,
            seconds=time.perf_counter() - began,
            notes=(*self.subject.steps, *self.recorder.notes),
            observations=self.observers.observations(),
            saving=self.saving,
        )

    def _round_trip(self) -> None:
        subject = self.subject
        chosen = self.recipe.origins.get("task_type", "proposed") != "proposed"
        options = round_trip.RoundTripOptions(subject.copyable, subject.user_weights, chosen)
        run = round_trip.RoundTripRun(
            self.recorder, self.model, subject.fresh, self.layers, self.batches[0], self.dtype,
            options,
        )  # fmt: skip
        run.check_reload()
        run.check_merge()
        frozen, elements = saved_files.frozen_by_wrapping(self.model, self._trainable_before)
        self.saving = replace(
            run.saving,
            frozen=frozen,
            frozen_parameters=elements,
            random=self._random.unsaved(self.model),
        )

    # -- the base model, and the adapters on it ---------------------------------------------------

    def _run_base(self) -> None:
        """The reference: losses without adapters. A base that does not run says nothing."""
        reasons = []
        first: ErrorReport | None = None
        for given in self.subject.batches:
            batch = given
            if not self.subject.user_inputs:
                batch = with_tokens_for_adapters(self.subject.base, given, self.recipe)
            try:
                loss = self._base_loss(batch)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                reasons.append(f"{kind_of(batch)}: {type(error).__name__}: {one_line(error, 200)}")
                last = where(error)
                first = first or model_error(error)
                continue
            ours = self.depth == "tiny" and not self.subject.user_weights
            if not is_finite(loss) and ours and self.dtype == "float32":
                # Random weights and float32: the tiny model is at fault, not the recipe.
                reasons.append(f"{kind_of(batch)}: the loss is {loss}")
                last = "in float32, on random weights"
                continue
            self.batches.append(batch)
            self.base_losses.append(loss)
        if not self.batches:
            why = f"{reasons[0]} ({last})" if reasons else "there is no batch"
            raise Stop(f"the base model does not run without adapters: {why}", "base-model", first)
        for reason in reasons:
            self.recorder.note(
                "batch-left-out",
                f"the base model does not take this batch, it was left out: {reason}",
                reason,
            )

    def _base_loss(self, batch: Any) -> float:
        """Without adapters. Where the user has put a wrapper of PEFT's around the base and only the
        wrapper refuses the batch, of the base below it: it is the forward that fails then."""
        try:
            return measured_loss(self.model, batch, adapters=False)
        except Exception as error:
            below = None
            if self.subject.wrap is None and not is_out_of_memory(error):
                below = self._loss_below(batch)
            if below is None:
                raise
            return below

    def _loss_below(self, batch: Any) -> float | None:
        """Of the model without wrapper and adapters; ``None`` where it does not run either."""
        try:
            return measured_loss(self.subject.fresh(), batch)
        except Exception:  # noqa: BLE001 - what is told is what the user's own model raises
            return None

    def _attach(self) -> None:
        """Put the adapters on, and see that they are where the recipe wants them."""
        self._wrap()
        self.batches = [with_task_ids(self.model, batch) for batch in self.batches]
        if not self.layers:
            self.recorder.add("attaches", False, 0, "adapters in the model", "no adapter was found")
            raise Stop("attaches failed")
        stray = found.stray_parameters(self.model, self.layers, self._peft("bias", "none"))
        problems = self._misplaced(stray)
        self.observers.attached(self.model, self.layers)
        detail = "; ".join(problems.values())
        if not problems:
            trainable = _count(self.model, trainable=True)
            detail = f"{trainable} parameters are trainable, all in adapters"
        expected = "adapters on every name of the recipe, nothing else trainable"
        self.recorder.add(
            "attaches", not problems, len(self.layers), expected, detail, tuple(problems)
        )
        if self.subject.shared:
            if stray and not self.subject.copyable:
                raise Stop("attaches failed: weights outside the adapters would be trained")
            own_storage(p for p in self.model.parameters() if p.requires_grad)

    def _wrap(self) -> None:
        try:
            with self.recorder.guard("attaches"):
                if self.subject.wrap is not None:
                    base = self.subject.base
                    self._trainable_before = saved_files.chosen_trainable(base)
                    seed_everything(0)
                    self.model = self.subject.wrap(self.subject.base)
                self.layers = found.find_adapters(self.model)
        except Stop as stop:
            if not self.subject.unfit:
                raise
            raise Stop(
                f"{', '.join(self.subject.unfit)} may name what the tiny model is too small to "
                f"have: {one_line(stop.__cause__ or stop, 200)}",
                "size",
            ) from stop

    def _misplaced(self, stray: list[tuple[str, int]]) -> dict[Problem, str]:
        """What is trained and should not be (``stray``: name and elements of each parameter), and
        what is not although it should; each problem with its detail."""
        missing = self._unmatched()
        frozen = [p.name for p in self._left_frozen() if not p.tensor.requires_grad]
        problems: dict[Problem, str] = {}
        if missing:
            problems["unmatched"] = f"nothing is named {', '.join(missing[:NAMES_SHOWN])}"
        if stray:
            share = sum(count for _, count in stray) / max(1, _count(self.model, trainable=False))
            names = ", ".join(name for name, _ in stray[:NAMES_SHOWN])
            problems["stray"] = (
                f"{len(stray)} other parameters are trainable ({share:.1%} of the model): {names}"
            )
        if frozen and self._peft("peft_type", "LORA") == "LORA":
            names = ", ".join(clean_path(name) for name in frozen[:NAMES_SHOWN])
            problems["frozen"] = f"{len(frozen)} adapter parameters are frozen: {names}"
        return problems

    def _left_frozen(self) -> list[found.AdapterParameter]:
        """The parameters that should train. Of adapters that PEFT has just made, those of layers
        in which none trains: some initialisations freeze A or B on purpose."""
        fresh = self.subject.wrap is not None and not self.subject.continued
        layers = [layer for layer in self.layers if not (fresh and layer.trainable)]
        return list(found.every_parameter(layers))

    def _unmatched(self) -> list[str]:
        """Entries of ``target_modules`` that no adapter sits on (PEFT passes them by silently).

        Asked of the config that PEFT keeps: it turns some names into parameters itself.
        """
        targets = self._peft("target_modules", None)
        wanted = self.recipe.get("target_modules")
        if not isinstance(wanted, list) or not isinstance(targets, (list, set, tuple)):
            return []
        paths = [layer.path for layer in self.layers]
        missing = [
            name
            for name in wanted
            if name in targets and not any(p == name or p.endswith(f".{name}") for p in paths)
        ]
        # What exclude_modules or layers_to_transform leave out is named, and left out on purpose.
        return names_of_nothing(own_config(self.model), missing, self.subject.base)

    # -- forward, backward, steps -----------------------------------------------------------------

    def _forward(self) -> None:
        model = self.model
        with self.recorder.guard("forward", model):
            self.subject.set_up(model)
        losses: list[float] = []
        first_bad: list[NonFinite | None] = []
        model.train()
        for batch in self.batches:
            seed_everything(0)
            try:
                with (
                    self.recorder.guard("forward", model, look=True) as locator,
                    statistics_kept(model),
                    self.precision.forward(),
                    self.observers.training_forward(model),
                ):
                    loss = loss_of(self.model, batch.as_called())
            except Stop:
                self._blame_base(batch.as_called())
                raise
            assert locator is not None
            self._order = locator.order
            losses.append(float(loss.detach()))
            first_bad.append(locator.non_finite)
            del loss
        kinds = ", ".join(kind_of(batch) for batch in self.batches)
        self.recorder.add("forward", True, len(losses), "no exception", f"batches: {kinds}")
        with self.recorder.guard("starts-at-base", model):
            self.first_losses = [measured_loss(self.model, batch) for batch in self.batches]
        self._starts_at_base()
        value = losses[0] if len(losses) == 1 else losses
        for loss, bad in zip(losses, first_bad, strict=True):
            if not is_finite(loss):
                self._blame_loss(bad, value)
                raise Stop("loss-finite failed")
            if bad:
                self.recorder.hidden = self.recorder.hidden or bad
                self.recorder.note("step", f"{bad}; the loss is finite all the same")
        self.recorder.add("loss-finite", True, value, "a finite number")

    def _starts_at_base(self) -> None:
        name = "starts-at-base"
        start = self._peft("init_lora_weights", None)
        if self.subject.wrap is None:
            return self.recorder.skip(name, "the adapters came with the model")
        if self.subject.continued:
            return self.recorder.skip(name, "training goes on from a saved adapter")
        if self._peft("peft_type", "LORA") != "LORA" or start not in ZERO_START:
            return self.recorder.skip(name, "these adapters do not start at zero")
        if self._peft("layer_replication", None):
            return self.recorder.skip(name, "layer_replication stacks the layers anew")
        pairs = list(zip(self.first_losses, self.base_losses, strict=True))
        if not all(is_finite(number) for pair in pairs for number in pair):
            return self.recorder.skip(name, "a loss is not finite (see loss-finite)")
        difference = max(abs(own - base) / max(abs(base), 1e-6) for own, base in pairs)
        tolerance = round_trip.RELOAD_TOLERANCE.get(self.dtype, 1e-5)
        text = ", ".join(f"{own:.6g} with, {base:.6g} without adapters" for own, base in pairs)
        expected = f"a relative difference of the loss of at most {tolerance:g}"
        if difference > tolerance and self._base_changed(tolerance):
            return self.recorder.skip(name, "this initialisation changes the base weights")
        self.recorder.add(name, difference <= tolerance, difference, expected, text)
        return None

    def _base_changed(self, tolerance: float) -> bool:
        """Whether the adapted model starts as what PEFT has made of the base: some kinds of LoRA
        (KaSA) put a part of the weights aside."""
        with adapters_off(self.model):
            off = [measured_loss(self.model, batch) for batch in self.batches]
        pairs = zip(self.first_losses, off, strict=True)
        return all(abs(own - base) <= tolerance * max(abs(base), 1e-6) for own, base in pairs)

    def _train(self) -> None:
        adapted = AdaptedModel(
            self.model,
            self.layers,
            self.batches,
            first_losses=self.first_losses,
            missing=self.subject.missing,
            order=self._order,
            precision=self.precision,
            dtype=self.dtype,
        )
        self.training = Training(adapted, self.recorder, self.observers)
        self.training.run(self.rounds, self.subject.learning_rate)

    # -- small helpers ----------------------------------------------------------------------------

    def _blame_base(self, batch: Any) -> None:
        """Stop as undetermined when the base model fails in training mode as well."""
        base = self.subject.fresh()
        base.train()
        try:
            with self.precision.forward():
                loss_of(base, batch)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise Stop(
                "the base model does not run in training mode: "
                f"{type(error).__name__}: {one_line(error, 200)} ({where(error)})",
                "base-model",
                model_error(error),
            ) from error

    def _blame_loss(self, bad: NonFinite | None, value: Any) -> None:
        text = f"first bad module: {bad}" if bad else "every module's output is finite"
        if not all(is_finite(loss) for loss in self.base_losses):
            text += "; the base model's loss is not finite either"
        self.recorder.add("loss-finite", False, value, "a finite number", text)
        self.recorder.blame("loss-finite", "NonFiniteLoss", text, bad.path if bad else "")

    def _peft(self, key: str, default: Any) -> Any:
        """A setting of the active adapter's config as PEFT keeps it."""
        value = getattr(own_config(self.model), key, default)
        return getattr(value, "value", value)

    def _batch_reports(self) -> tuple[BatchReport, ...]:
        losses = self.training.losses if self.training else {}
        return tuple(
            BatchReport(
                kind=kind_of(batch),
                inputs={
                    name: tuple(value.shape)
                    for name, value in batch.inputs.items()
                    if hasattr(value, "shape")
                },
                loss=batch.loss,
                losses=tuple(losses.get(id(batch), ())),
                notes=tuple(batch.notes),
                added=added_inputs(self.subject.base, batch.added) if batch.added else (),
                one_sample=batch.one_sample,
            )
            for batch in self.batches
        )


def _count(model: Any, *, trainable: bool) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def _median_step(durations: list[float]) -> float | None:
    """Seconds of a step; the first one also pays for what is prepared once."""
    rest = durations[1:] or durations
    return median(rest) if rest else None
