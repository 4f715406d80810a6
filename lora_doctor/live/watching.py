"""Watching a training: hooks on model and optimizer, the finding, and the end of the job."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from lora_doctor.errors import LoraDoctorError, TrainingStopped
from lora_doctor.live import judge, telling
from lora_doctor.live.numbers import Later, is_finite, loss_in, norms_of
from lora_doctor.live.ranks import Ranks, Words
from lora_doctor.live.telling import On
from lora_doctor.live.written_rows import writes_its_rows
from lora_doctor.nn.copying import undisturbed
from lora_doctor.nn.shards import held_here
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.verification import Verification
from lora_doctor.text import one_line

#: Steps with a learning rate above 0 that are watched: A gets a gradient when B has moved.
_STEPS = 4
#: Steps after which it is enough, whatever their learning rates were.
_MOST_STEPS = 40
#: Forwards whose token ids are looked at.
_BATCHES = 4
#: The rule about processes that train each for itself.
_APART = "LD541"


F = TypeVar("F", bound=Callable[..., None])


def _only_stops(call: F) -> F:
    """Around what is called in the middle of a training: only a finding may end that."""

    @functools.wraps(call)
    def called(watch: Watch, *arguments: Any) -> None:
        try:
            call(watch, *arguments)
        except TrainingStopped:
            raise
        except Exception as error:  # noqa: BLE001 - ours: the training goes on
            watch.close()
            telling.say(f"live run: ended, the training goes on: {_short(error)}")

    return called  # type: ignore[return-value]


class Watch:
    """One training that is watched; made by ``lora_doctor.watch`` and by the callback."""

    def __init__(
        self,
        training: judge.Training,
        *,
        on: On,
        chosen: tuple[Sequence[str], Sequence[str]],
        contract: bool,
    ) -> None:
        """``chosen``: codes of the rules that are asked, and of those that are not. ``contract``:
        whether the training contract is run on a copy."""
        #: The last diagnosis that was made.
        self.diagnosis: Diagnosis | None = None
        self._training = training
        self._on, self._chosen, self._contract = on, chosen, contract
        self._acting, journal = judge.acting()
        training.journal = journal
        self._handles: list[Any] = []
        self._said: set[tuple[str, str]] = set()
        self._steps: Any = None
        self._counted = self._taken = 0
        self._batches = 0
        self._given: dict[str, Any] = {}
        self._loss: Later | None = None
        self._norms: Later | None = None
        self._ranks: tuple[Ranks, Verification] | None = None
        self._parts: tuple[Words, Any] | None = None
        self._watched: list[tuple[str, Any]] = []
        self._names: list[str] = []
        self._device, self._dtype = "cpu", "float32"
        self._begin()

    # --- hooks ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        model, optimizer = self._training.model, self._training.optimizer
        self._handles = [
            model.register_forward_pre_hook(_untraced(self._before_forward), with_kwargs=True),
            model.register_forward_hook(_untraced(self._after_forward)),
        ]
        if hasattr(optimizer, "register_step_pre_hook"):
            self._handles += [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            ]
        elif not self._batches:
            telling.say(
                f"{type(optimizer).__name__} says nothing of its steps: gradients are not watched"
            )

    def close(self) -> None:
        """Take every hook out; twice is once."""
        while self._handles:
            self._handles.pop().remove()
        if self._steps is not None:
            self._steps.close()
        self._given = {}

    @_only_stops
    def _before_forward(self, model: Any, arguments: Any, named: Any) -> None:
        import torch

        if model is not self._training.model or not model.training or not torch.is_grad_enabled():
            return
        self._look_at_loss()  # of the micro-batch before
        if self._batches < _BATCHES:
            self._given = self._look_at(model, arguments, named)
            self._batches += 1
            if self._batches == 1:
                device = next((p.device for p in model.parameters()), None)
                self._training.mixed = judge.autocast_of(device)
                self._judge_first()
        elif arguments:
            self._given = self._named(model, arguments, named)
        else:
            self._given = named

    @_only_stops
    def _after_forward(self, model: Any, arguments: Any, output: Any) -> None:
        import torch

        if self._given and model.training and torch.is_grad_enabled():
            loss = loss_in(output)
            if loss is not None:
                self._loss = Later(loss)

    @_only_stops
    def step(self, loss: Any) -> None:
        """Say what the loss of this batch is: after the backward, before ``optimizer.step``.

        Raises:
            TrainingStopped: it is not finite, and the job is to be stopped for that.
        """
        if not self._handles:
            return
        self._loss = Later(loss if hasattr(loss, "detach") else _tensor(loss))
        self._look_at_loss()

    @_only_stops
    def _before_step(self, optimizer: Any, *_: Any) -> None:
        self._look_at_loss()
        if self._norms is not None:
            self._look_at_gradients(self._taken)
        if self._ranks is not None:
            self._compare_ranks(*self._ranks)
        if self._parts is not None:
            self._judge_parts(*self._parts)
        self._taken += 1
        if _is_scaled(optimizer):
            return
        if self._steps is not None:
            self._steps.before_step()
        if self._watched:
            gradients = [(n, p.grad) for n, p in self._watched if p.grad is not None]
            norms = norms_of([held_here(grad) for _, grad in gradients])
            if norms is not None:
                self._norms = Later(norms)
                self._names = [name for name, _ in gradients]
                if self._counted < _STEPS or norms.device.type != "cuda":
                    self._look_at_gradients(self._taken)

    @_only_stops
    def _after_step(self, optimizer: Any, *_: Any) -> None:
        if self._steps is None:
            return
        self._steps.after_step()
        if any(float(group.get("lr", 0.0)) > 0 for group in optimizer.param_groups):
            self._counted += 1
        if self._counted >= _STEPS or self._taken >= _MOST_STEPS:
            steps, self._steps = self._steps, None
            self._judge_steps(steps)

    # --- what is seen --------------------------------------------------------------------------

    def know(self, arguments: Any) -> None:
        """The arguments of the Trainer whose training it is."""
        self._training.arguments = arguments

    def tell_of_sets(self, trainer: Any, arguments: Any = None, state: Any = None) -> None:
        """What is known of tokenizer and data sets; ``trainer``: has the attributes of one."""
        from lora_doctor.dry_run.acts import sets, supervised

        with undisturbed():  # rows may be augmented at random when they are asked for
            supervised.tell_tokenizer(self._acting, trainer, self._training.model)
            self._acting.writes_its_rows = writes_its_rows(trainer)
            if arguments is not None:
                sets.tell(self._acting, trainer, arguments, state, own_schedule=False)

    def _look_at(self, model: Any, arguments: Any, named: Any) -> dict[str, Any]:
        from lora_doctor.dry_run.acts import contract

        return contract.keep_rows(self._acting, model, arguments, named)

    @staticmethod
    def _named(model: Any, arguments: Any, named: Any) -> dict[str, Any]:
        import inspect

        names = list(inspect.signature(type(model).forward).parameters)[1:]
        return {**dict(zip(names, arguments, strict=False)), **named}

    def _judge_first(self) -> None:
        """Before the first step: the rules, and the training contract on a copy."""
        began = time.perf_counter()
        self._training.given = dict(self._given)
        hooks = [self._handles.pop() for _ in range(len(self._handles))]
        for hook in hooks:  # what is copied shall not be watched
            hook.remove()
        why_not = judge.why_no_contract(self._training.model) if self._contract else "not asked for"
        if not _has_adapters(self._training.model):
            telling.say("live run: the model has no adapters of PEFT; only its loss is watched")
        else:
            diagnosis = self._ask(None, why_not)
            if diagnosis is not None:
                self._tell(diagnosis, "before step 1", time.perf_counter() - began)
            self._start_watching()
        self._begin()

    def _start_watching(self) -> None:
        from lora_doctor.contract.watched import WatchedSteps
        from lora_doctor.model.contract_batches import make_batches
        from lora_doctor.nn.dtypes import dtype_of

        model = self._training.model
        device = str(next((p.device for p in model.parameters()), "cpu"))
        self._device, self._dtype = device, dtype_of(model)
        why_not = judge.why_not_watched(model)
        if why_not:
            telling.say(f"live run: {why_not}; gradients are not watched, losses are")
            return
        batch = make_batches(model, [dict(self._training.given)], None, [])[0]
        self._steps = WatchedSteps(model, batch, dtype=self._dtype, device=device)
        self._watched = [(n, p) for n, p in model.named_parameters() if p.requires_grad]

    def _judge_steps(self, steps: Any) -> None:
        if judge.why_sharded(self._training.model):
            words = Words.say("steps", steps.told())
            self._parts = None if words is None else (words, steps)
            return
        self._tell_steps(steps, steps.judge(f"the first {steps.steps} of the training"))

    def _judge_parts(self, words: Words, steps: Any) -> None:
        """Once all processes have told what they saw in their parts of the weights."""
        heard = words.heard()
        if heard is None:
            return
        self._parts = None
        seen = steps.judge_together(f"the first {steps.steps} of the training", heard)
        if seen is not None:
            self._tell_steps(steps, seen)

    def _tell_steps(self, steps: Any, seen: Verification) -> None:
        if seen.outcome == "passed":
            telling.say(
                f"live run: steps 1 to {steps.steps}: every adapter parameter has a gradient and "
                "moves"
            )
            sharded = judge.why_sharded(self._training.model)
            told = None if sharded else Ranks.told(self._training.model, self._taken)
            self._ranks = None if told is None else (told, seen)
            return
        diagnosis = self._ask(seen)
        if diagnosis is not None:
            self._tell(diagnosis, f"after step {steps.steps}")

    def _compare_ranks(self, ranks: Ranks, seen: Verification) -> None:
        """Once all processes have told what they have: it is the same, or they train apart."""
        sums = ranks.sums()
        if sums is None:
            return
        self._ranks = None
        self._training.sums = sums
        select = self._chosen[0]
        asked = not select or any(_APART.startswith(prefix) for prefix in select)
        differ = len(set(sums.values())) > 1
        diagnosis = self._ask(seen, only=_APART) if asked and differ else None
        if diagnosis is not None and diagnosis.findings:
            self._tell(diagnosis, f"after step {self._taken}")

    def _look_at_loss(self) -> None:
        loss, self._loss = self._loss, None
        if loss is None:
            return
        value = loss.values()[0]
        if is_finite(value):
            return
        step = self._taken + 1
        bad, why_not = self._located()
        if not _has_adapters(self._training.model):
            where = f"; first bad module: {bad}" if bad else ""
            self._end_of_numbers(f"the loss is {value} in step {step}{where}", None)
            return
        seen = self._fresh_steps().judge_loss(value, step, bad, why_not)
        self._end_of_numbers(f"the loss is {value} in step {step}", seen)

    def _look_at_gradients(self, step: int) -> None:
        norms, self._norms = self._norms, None
        assert norms is not None
        values = dict(zip(self._names, norms.values(), strict=True))
        bad = [name for name, value in values.items() if not is_finite(value)]
        if not bad:
            return
        from lora_doctor.text import clean_path

        # The backward goes the other way than the forward, which is nearly the order of the names.
        name = clean_path(bad[-1])
        largest = max((value for value in values.values() if is_finite(value)), default=0.0)
        seen = self._fresh_steps().judge_gradient(name, largest, len(bad), step)
        self._end_of_numbers(f"the gradient of {name} is not finite in step {step}", seen)

    def _fresh_steps(self) -> Any:
        if self._steps is not None:
            steps, self._steps = self._steps, None
            return steps
        from lora_doctor.contract.watched import WatchedSteps
        from lora_doctor.model.contract_batches import make_batches

        batch = make_batches(self._training.model, [dict(self._training.given)], None, [])[0]
        return WatchedSteps(self._training.model, batch, dtype=self._dtype, device=self._device)

    def _located(self) -> tuple[Any, str]:
        """The first bad module, and why none could be looked for."""
        from lora_doctor.contract.watched import first_bad_module

        given, model = dict(self._given), self._training.model
        sharded = judge.why_sharded(model)
        if sharded:
            return None, f"{sharded}: a forward of one process alone would wait for the others"
        hooks = [self._handles.pop() for _ in range(len(self._handles))]
        for hook in hooks:
            hook.remove()
        try:
            return first_bad_module(model, given, self._training.mixed), ""
        except Exception as error:  # noqa: BLE001 - whatever it is, the loss is what counts
            return None, f"the same forward once more raises {_short(error)}"

    def _end_of_numbers(self, what: str, seen: Verification | None) -> None:
        """From here on nothing can be learnt: the finding, and the end of the watch."""
        self.close()
        diagnosis = None if seen is None else self._ask(seen)
        if diagnosis is not None and diagnosis.findings:
            self._tell(diagnosis, what)
            return
        telling.say(f"live run: {what}")
        if self._on != "never":
            raise TrainingStopped(f"live run: {what}")

    # --- what is said --------------------------------------------------------------------------

    def _ask(
        self, seen: Verification | None, why_not: str = "", only: str | None = None
    ) -> Diagnosis | None:
        """The diagnosis; ``None`` where the rules cannot be asked, which stops no training.
        ``only``: the code of the one rule that is asked."""
        chosen = self._chosen if only is None else ((only,), self._chosen[1])
        try:
            with undisturbed():
                return judge.apart(
                    lambda: judge.judged(self._training, chosen, seen=seen, why_not=why_not)
                )
        except LoraDoctorError as error:
            telling.say(f"live run: not judged: {error}")
        except Exception as error:  # noqa: BLE001 - ours, or memory: the training goes on
            telling.say(f"live run: not judged: {_short(error)}")
            _give_memory_back()
        return None

    def _tell(self, diagnosis: Diagnosis, when: str, seconds: float | None = None) -> None:
        self.diagnosis = diagnosis
        new = tuple(
            one
            for one in diagnosis.findings
            if one.severity != "info" and (one.rule, str(one.location)) not in self._said
        )
        self._said.update((one.rule, str(one.location)) for one in new)
        if not new:
            took = "" if seconds is None else f" ({seconds:.1f} s)"
            open_ = f"; undetermined: {diagnosis.undetermined}" if diagnosis.undetermined else ""
            telling.say(f"live run: {when}: nothing found{open_}{took}")
            return
        telling.report(replace(diagnosis, findings=new))
        if telling.stops(new, self._on):
            self.close()
            worst = tuple(one for one in new if telling.stops((one,), self._on))
            raise telling.stopped(worst, f"live run, {when}")


def _has_adapters(model: Any) -> bool:
    from lora_doctor.contract.adapters import find_adapters

    return bool(find_adapters(model))


def _untraced(hook: Callable[..., None]) -> Callable[..., None]:
    """The hook, which ``torch.compile`` leaves as it is: traced, it and the training contract in
    it would be compiled."""
    import torch

    disable = getattr(getattr(torch, "compiler", None), "disable", None)
    return hook if disable is None else disable(hook)


def _is_scaled(optimizer: Any) -> bool:
    """Whether the gradients are still those of a scaled loss, and infinite ones are left out by
    the optimizer itself."""
    return getattr(optimizer, "found_inf", None) is not None


def _tensor(loss: Any) -> Any:
    import torch

    return torch.tensor(float(loss))


def _give_memory_back() -> None:
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error, 300)}"
