"""What the installed PEFT's wrapper of a task type passes on to the model that it wraps."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple


class WrapperCall(NamedTuple):
    """What was seen.

    ``sends``: names of the arguments that arrive; ``none``: those of them whose value is ``None``.
    ``keeps``: names of heads that the wrapper trains and saves with the adapter unasked.
    ``needs``: methods of generation that it takes from the model when it is put on.
    """

    sends: tuple[str, ...] = ()
    none: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


@lru_cache(maxsize=16)
def wrapper_call(task_type: str | None) -> WrapperCall:
    """Call the wrapper on a model that only writes down what it gets.

    The call has ``input_ids``, ``attention_mask`` and ``labels``, with ``start_positions`` and
    ``end_positions`` for question answering: what a training script passes.

    Raises:
        Exception: whatever the installed PEFT raises at a model of this form.
    """
    import peft
    import torch

    class Recorder(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        """Takes everything. It has what a wrapper wants to find: heads, and generation."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(2, 2)
            self.classifier = torch.nn.Linear(2, 2)
            self.score = torch.nn.Linear(2, 2)
            self.qa_outputs = torch.nn.Linear(2, 2)
            self.received: dict[str, Any] = {}

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.received = {f"argument {index}": value for index, value in enumerate(args)}
            self.received.update(kwargs)
            return SimpleNamespace(loss=None)

        @property
        def prepare_inputs_for_generation(self) -> Any:
            return needs.setdefault("prepare_inputs_for_generation", self.forward)

        @property
        def _prepare_encoder_decoder_kwargs_for_generation(self) -> Any:
            return needs.setdefault("_prepare_encoder_decoder_kwargs_for_generation", self.forward)

    needs: dict[str, Any] = {}
    recorder = Recorder()
    config = peft.LoraConfig(r=1, target_modules=["inner"], task_type=task_type)
    model = peft.get_peft_model(recorder, config)
    # After wrapping: with a config, PEFT would take the recorder for a transformers model.
    recorder.config = SimpleNamespace(model_type="recorder", use_return_dict=True)
    ids = torch.ones((1, 2), dtype=torch.long)
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": ids}
    if task_type == "QUESTION_ANS":
        batch.update(start_positions=ids[:, 0], end_positions=ids[:, 0])
    elif task_type != "FEATURE_EXTRACTION":
        batch["labels"] = ids
    model(**batch)
    received = recorder.received
    return WrapperCall(
        sends=tuple(received),
        none=tuple(name for name, value in received.items() if value is None),
        keeps=tuple(
            path.rpartition(".")[2]
            for path, module in model.named_modules()
            if hasattr(module, "modules_to_save") and hasattr(module, "original_module")
        ),
        needs=tuple(needs),
    )
