"""``lora_doctor.callback()`` for ``transformers.Trainer``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from lora_doctor.live.telling import On
from lora_doctor.live.watch import WatchOptions, checked_options, watch
from lora_doctor.live.watching import Watch


def callback(
    on: On = "error",
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    contract: bool = True,
) -> Any:
    """A ``TrainerCallback``: ``Trainer(..., callbacks=[lora_doctor.callback()])``.

    Before the first step the model, the optimizer and the first batch are judged by the rules; in
    the first steps gradients and adapters are watched; the first value that is not finite is
    located. Arguments as for :func:`lora_doctor.watch`.

    Raises:
        InputError: an argument is not what it should be.
    """
    options: WatchOptions = {"on": on, "select": select, "ignore": ignore, "contract": contract}
    return _class()(checked_options("callback", options))


@functools.lru_cache(maxsize=1)
def _class() -> type:
    """Made when it is first asked for: transformers is not imported before."""
    from transformers import TrainerCallback

    class LoraDoctorCallback(TrainerCallback):  # type: ignore[misc]
        """Watches the training of a Trainer; ``watch`` is what watches, ``None`` before."""

        def __init__(self, options: WatchOptions) -> None:
            self.watch: Watch | None = None
            self._options = options

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self._close()
            loader, held = given.get("train_dataloader"), given.get("eval_dataloader")
            self.watch = watch(
                given["model"],
                given["optimizer"],
                scheduler=given.get("lr_scheduler"),
                planned_steps=max(1, int(state.max_steps)),
                **self._options,
            )
            self.watch.know(args)
            self.watch.tell_of_sets(
                SimpleNamespace(
                    processing_class=given.get("processing_class") or given.get("tokenizer"),
                    data_collator=getattr(loader, "collate_fn", None),
                    train_dataset=getattr(loader, "dataset", None),
                    eval_dataset=getattr(held, "dataset", None),
                ),
                args,
                state,
            )

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self._close()

        def _close(self) -> None:
            if self.watch is not None:
                self.watch.close()

    return LoraDoctorCallback
