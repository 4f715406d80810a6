"""``Trainer`` and its heirs: three optimizer steps, then they come to their end by themselves."""

from __future__ import annotations

import weakref
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts import (
    accumulation,
    contract,
    failures,
    longest_row,
    one_label,
    resuming,
    rewards,
    sampled_rows,
    sets,
    supervised,
)
from lora_doctor.dry_run.acts.acting import STEPS, Acting
from lora_doctor.dry_run.acts.arguments import keep_apart
from lora_doctor.dry_run.acts.plain import plain
from lora_doctor.guest.call_sites import caller


def prepare(acting: Acting) -> None:
    """Once there is a Trainer."""
    acting.after("transformers.trainer", lambda module: _trainer(acting, module))


def _trainer(acting: Acting, module: ModuleType) -> None:
    watched: weakref.WeakSet[Any] = weakref.WeakSet()
    callback = _callback(acting, module)

    def train(original: Any, trainer: Any, *arguments: Any, **named: Any) -> Any:
        if trainer not in watched:
            watched.add(trainer)
            trainer.add_callback(callback(trainer))
            keep_apart(acting, trainer.args)
        resumes = _asks_to_resume(arguments, named)
        arguments = _not_resumed(acting, trainer, arguments, named)
        second = resuming.watch(acting, trainer, asked=resumes)
        acting.in_trainer += 1
        before = acting.steps
        try:
            result = original(trainer, *arguments, **named)
        except BaseException as error:
            failures.tell(acting, error)
            raise
        finally:
            acting.in_trainer -= 1
        acting.journal.tell("trained", by=type(trainer).__name__, steps=acting.steps - before)
        if second is not None:
            second.resume(lambda folder: original(trainer, resume_from_checkpoint=folder))
        return result

    def evaluating(original: Any, trainer: Any, *arguments: Any, **named: Any) -> Any:
        acting.evaluations += 1
        try:
            return original(trainer, *arguments, **named)
        except BaseException as error:
            failures.tell(acting, error)
            raise
        finally:
            acting.evaluations -= 1

    acting.replaced.around(module.Trainer, "train", train)
    for name in ("evaluate", "predict", "evaluation_loop"):
        acting.replaced.around(module.Trainer, name, evaluating)


def _asks_to_resume(arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    return bool(named.get("resume_from_checkpoint", arguments[0] if arguments else None))


def _not_resumed(
    acting: Acting, trainer: Any, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[Any, ...]:
    """A checkpoint of the real width does not fit: training begins at its start."""
    if not _asks_to_resume(arguments, named):
        return arguments
    asked = named.get("resume_from_checkpoint", arguments[0] if arguments else None)
    found = resuming.checkpoint_to_resume(acting, asked, trainer.args)
    if found is None:
        acting.note("not-proven", "resume_from_checkpoint was left out")
    if "resume_from_checkpoint" in named:
        named["resume_from_checkpoint"] = found
        return arguments
    return (found, *arguments[1:])


def _callback(acting: Acting, module: ModuleType) -> Any:
    class ThreeSteps(module.TrainerCallback):  # type: ignore[misc, name-defined]
        """Tells what the trainer decided, and lets it stop."""

        def __init__(self, trainer: Any) -> None:
            self._trainer = weakref.ref(trainer)
            # Schedulers that the script has made know nothing of the arguments.
            self._own_schedule = getattr(trainer, "lr_scheduler", None) is not None

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            trainer = self._trainer()
            _tell_start(acting, trainer, args, state, given)
            sets.tell(acting, trainer, args, state, own_schedule=self._own_schedule)
            accumulation.watch(acting, trainer, args)
            sampled_rows.tell(acting, given.get("train_dataloader"), given.get("model"))
            one_label.tell(acting, trainer)
            rewards.watch(acting, trainer)
            longest_row.look(acting, trainer, given.get("train_dataloader"), given.get("model"))

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
            if state.global_step >= STEPS:
                control.should_training_stop = True
                control.should_log = True
                # What is done at the end of an epoch comes by itself.
                if plain(args.save_strategy) == "steps":
                    control.should_save = True
                if plain(_evaluation_strategy(args)) == "steps":
                    control.should_evaluate = True
            return control

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            acting.journal.tell("log", logs=plain(given.get("logs") or {}))

    return ThreeSteps


def _evaluation_strategy(args: Any) -> Any:
    """``evaluation_strategy`` before transformers 4.41."""
    return getattr(args, "eval_strategy", None) or getattr(args, "evaluation_strategy", "no")


def _tell_start(acting: Acting, trainer: Any, args: Any, state: Any, given: dict[str, Any]) -> None:
    place = caller()
    accelerator = getattr(trainer, "accelerator", None)
    rows = getattr(trainer, "train_dataset", None)
    optimizer = given.get("optimizer")
    acting.journal.tell(
        "train",
        by=type(trainer).__name__,
        module=type(trainer).__module__,
        collator=type(getattr(trainer, "data_collator", None)).__name__,
        optimizer=type(getattr(optimizer, "optimizer", optimizer)).__name__,
        scheduler=type(given.get("lr_scheduler")).__name__,
        planned=int(state.max_steps),
        accumulation=int(args.gradient_accumulation_steps),
        rows=len(rows) if rows is not None and hasattr(rows, "__len__") else None,
        world_size=int(getattr(args, "world_size", 1) or 1),
        distributed=plain(getattr(accelerator, "distributed_type", None)),
        mixed_precision=plain(getattr(accelerator, "mixed_precision", None)),
        device=plain(getattr(args, "device", None)),
        place=None if place is None else vars(place),
    )
    supervised.tell_tokenizer(acting, trainer, given.get("model"))
    if given.get("model") is not None:
        acting.trains(given["model"])
    if given.get("optimizer") is not None:
        contract.read_optimizer(
            acting, given["optimizer"], given.get("lr_scheduler"), max(1, int(state.max_steps))
        )
