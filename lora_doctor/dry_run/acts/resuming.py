"""Whether a run that is resumed goes on as if it had never stopped: the last step of the dry run is
taken once more, from the checkpoint that the Trainer itself has saved before it.

Compared are the loss of that step, for which weights, order of the rows and random states have to
be there, and the trainable numbers after it, for which the optimizer's state has to be there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from lora_doctor.dry_run.acts.acting import STEPS, Acting
from lora_doctor.dry_run.acts.outputs import Redirected
from lora_doctor.dry_run.acts.plain import plain
from lora_doctor.guest.call_sites import caller
from lora_doctor.nn.shards import held_here

#: The step after which a checkpoint is saved.
_SAVED = STEPS - 1


def checkpoint_to_resume(acting: Acting, asked: Any, args: Any) -> Any:
    """What a trainer is handed that is asked to resume: ``None`` in the place of a checkpoint of
    the real model; one of this run; where there is none, what was asked for: the trainer refuses
    it as it would in the real run.

    Args:
        asked: ``True``, or the path of a checkpoint.
        args: of the trainer, with the folders that are written instead of the user's.
    """
    from transformers.trainer_utils import get_last_checkpoint

    places = Redirected(acting)
    if asked is True:
        written, own = str(args.output_dir), places.of_user(str(args.output_dir))
        if os.path.isdir(written) and get_last_checkpoint(written) is not None:
            return asked
        return None if os.path.isdir(own) and get_last_checkpoint(own) is not None else asked
    if places.is_of_this_run(asked):
        return places.to_read(asked)
    return None if os.path.isdir(str(asked)) else asked


def watch(acting: Acting, trainer: Any, *, asked: bool) -> Resuming | None:
    """Watch a trainer that is about to train, where the user asks for it, be it by resuming.
    ``None`` where there is nothing to compare: no checkpoint is saved."""
    wanted = asked or bool(acting.session.options.get("check_resume"))
    if not wanted or acting.seen("trained") or plain(trainer.args.save_strategy) == "no":
        return None
    found = Resuming(acting, trainer)
    trainer.add_callback(found.callback())
    return found


class Resuming:
    """``losses``: the sums of the losses of the last step, of each time that it was taken."""

    def __init__(self, acting: Acting, trainer: Any) -> None:
        self._acting, self._trainer = acting, trainer
        self._place = caller()
        self._second = False
        self._losses: list[float] = [0.0, 0.0]
        self._before: list[Any] = []
        self._after: list[list[Any]] = [[], []]
        self._step = trainer.training_step
        trainer.training_step = self._taken

    def _taken(self, *arguments: Any, **named: Any) -> Any:
        loss = self._step(*arguments, **named)
        if self._trainer.state.global_step == _SAVED:  # of the steps that are taken already
            self._losses[self._second] += float(loss.detach())
        return loss

    def callback(self) -> Any:
        """Lets the trainer save, and reads its trainable numbers."""
        from transformers import TrainerCallback

        watch = self

        class SavesBeforeTheLastStep(TrainerCallback):  # type: ignore[misc]
            """Of the dry run."""

            def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
                if state.global_step == _SAVED and not watch._second:
                    control.should_save = True
                    watch._before = watch._numbers()
                if state.global_step == STEPS:
                    watch._after[watch._second] = watch._numbers()
                return control

        return SavesBeforeTheLastStep()

    def _numbers(self) -> list[Any]:
        """The trainable numbers that this process holds: of a sharded tensor its part."""
        own = (one for one in self._trainer.model.parameters() if one.requires_grad)
        return [held_here(one).detach().clone() for one in own]

    def resume(self, again: Callable[[str], Any]) -> None:
        """Take the last step once more; what comes of it goes to the journal."""
        folder = os.path.join(self._trainer.args.output_dir, f"checkpoint-{_SAVED}")
        acting, engine = self._acting, self._trainer.model_wrapped
        if _held_by_deepspeed(self._trainer) and not hasattr(engine, "destroy"):
            acting.note("not-proven", "resuming was not tried: DeepSpeed has the model")
            return
        if not os.path.isdir(folder) or not self._after[0]:
            acting.note("not-proven", "resuming was not tried: no checkpoint was saved")
            return
        self._second, steps, error = True, acting.steps, ""
        acting.in_trainer += 1
        try:
            _let_go(self._trainer)
            again(folder)
        except Exception as raised:  # noqa: BLE001 - that it cannot be resumed is what is told
            error = f"{type(raised).__name__}: {raised}"[:500]
        finally:
            acting.in_trainer -= 1
            acting.steps = steps
            with contextlib.suppress(AttributeError):
                del self._trainer.training_step
        self._tell(folder, error)

    def _tell(self, folder: str, error: str) -> None:
        first, second = self._after
        self._acting.journal.tell(
            "resumed",
            step=STEPS,
            loss=self._losses[0],
            resumed_loss=self._losses[1],
            moved=_largest(self._before, first),
            apart=_largest(first, second),
            files=sorted(os.listdir(folder))[:40],
            error=error or ("" if second else "the resumed run took no step"),
            place=None if self._place is None else vars(self._place),
        )


def _held_by_deepspeed(trainer: Any) -> bool:
    return bool(getattr(trainer, "is_deepspeed_enabled", False))


def _let_go(trainer: Any) -> None:
    """A Trainer makes DeepSpeed's engine once; it makes another one of a model that has none, as in
    a new process."""
    if _held_by_deepspeed(trainer):
        trainer.model_wrapped.destroy()
        trainer.model_wrapped = trainer.model


def _largest(first: list[Any], second: list[Any]) -> float:
    """The largest difference of numbers in the same places."""
    pairs = zip(first, second, strict=False)
    return max((float((one - other).abs().max()) for one, other in pairs), default=0.0)
