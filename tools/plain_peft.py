"""One kind of adapter on one small model, trained by plain PEFT: what lora-doctor is held against.

Nothing of lora-doctor is imported: the models, the batch, the steps and the reload are written
here again, as a script would have them.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

#: Rounds after which a loss that has not fallen is called flat, at each of two learning rates.
ROUNDS = 24
#: Relative to the largest logit; what a lost adapter leaves is larger by some powers of ten.
SAME = 1e-4


@dataclass(frozen=True)
class Truth:
    """``stage``: how far plain PEFT came before it failed: ``build``, ``train``, ``reload``,
    ``merge``, or ``done``. ``said``: what it raised, or the numbers that are wrong."""

    stage: str
    said: str = ""


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4,
        )
    )  # fmt: skip


def _bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_labels=3,
        )
    )  # fmt: skip


def _t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=128, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
            decoder_start_token_id=0,
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """``targets``: layers that a tutorial would name."""

    task_type: str
    targets: tuple[str, ...]
    build: Callable[[], Any]


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("CAUSAL_LM", ("q_proj", "v_proj"), _llama),
    "bert": Architecture("SEQ_CLS", ("query", "value"), _bert),
    "t5": Architecture("SEQ_2_SEQ_LM", ("q", "v"), _t5),
}


def train(architecture: str, values: Mapping[str, Any]) -> Truth:
    """Build, train, save and reload. ``values``: of an ``adapter_config.json``."""
    import torch

    place = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    base = place.build()
    stage = "build"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.manual_seed(1)
            model = _wrapped(copy.deepcopy(base), values)
            stage = "train"
            batch = _batch(place.task_type, values)
            losses = _steps(model, batch)
            if not losses[-1] < losses[0]:
                return Truth("train", f"the loss stays: {losses[0]:.6g}, then {losses[-1]:.6g}")
            stage = "reload"
            again = _reloaded(model, base)
            inputs = _taken_by(again, place.task_type, batch)
            want = _logits(model, inputs)
            difference = _apart(want, _logits(again, inputs))
            if not difference <= SAME:
                return Truth("reload", f"logits differ by {difference:.2g} after reloading")
            stage = "merge"
            merged = _merged(model)
            inputs.pop("task_ids", None)  # which are the adapter's
            difference = _apart(want, _logits(merged, inputs)) if merged is not None else 0.0
            if not difference <= SAME:
                return Truth("merge", f"logits differ by {difference:.2g} after merging")
        except Exception as error:  # noqa: BLE001 - what PEFT raises is the answer
            return Truth(stage, f"{type(error).__name__}: {error}".splitlines()[0][:200])
    return Truth("done", "PEFT does not merge it" if merged is None else "")


def _wrapped(base: Any, values: Mapping[str, Any]) -> Any:
    import importlib

    import peft

    mapping = importlib.import_module("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING
    classes = {getattr(key, "value", key): cls for key, cls in mapping.items()}
    options = {key: copy.deepcopy(value) for key, value in values.items() if key != "peft_type"}
    return peft.get_peft_model(base, classes[values["peft_type"]](**options))


def _batch(task_type: str, values: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 120, (2, 8), generator=generator)
    for place, token in enumerate(values.get("token_indices", ())):
        ids[0, place] = token  # else nothing is learnt about it
    labels = torch.tensor([0, 2]) if task_type == "SEQ_CLS" else ids.clone()
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if any(key in values for key in ("num_tasks", "n_tasks")):
        batch["task_ids"] = torch.tensor([0, 1])
    return batch


def _steps(model: Any, batch: dict[str, Any]) -> list[float]:
    """The loss in eval mode before any step, and after each round until it has fallen."""
    import torch

    start = copy.deepcopy(model.state_dict())
    losses = [_loss(model, batch)]
    for rate in (1e-2, 1e-3):
        model.load_state_dict(start)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        for step in range(1, ROUNDS + 1):
            model.train()
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step >= 3:
                losses.append(_loss(model, batch))
                if losses[-1] < losses[0] - 1e-6:
                    return losses
    return losses


def _loss(model: Any, batch: dict[str, Any]) -> float:
    import torch

    model.eval()
    with torch.no_grad():
        return float(model(**batch).loss)


def _taken_by(model: Any, task_type: str, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch, or what of it a model takes that was loaded to be used: AdaLoRA gives no loss
    then, multitask prompts want the labels on some releases."""
    try:
        _logits(model, batch)
    except Exception:  # noqa: BLE001 - then the other way is asked, and may raise
        return _for_logits(task_type, batch)
    return batch


def _for_logits(task_type: str, batch: dict[str, Any]) -> dict[str, Any]:
    """What somebody sends who wants an answer and no loss."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    if task_type == "SEQ_2_SEQ_LM":
        inputs["decoder_input_ids"] = batch["labels"]
    return inputs


def _logits(model: Any, inputs: dict[str, Any]) -> Any:
    import torch

    model.eval()
    with torch.no_grad():
        return model(**inputs).logits


def _apart(one: Any, other: Any) -> float:
    return float((one - other).abs().max() / one.abs().max())


def _reloaded(model: Any, base: Any) -> Any:
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return PeftModel.from_pretrained(copy.deepcopy(base), folder)


def _merged(model: Any) -> Any:
    """The model with its adapters merged; ``None`` where PEFT says that it has no way to."""
    if not hasattr(model.base_model, "merge_and_unload"):
        return None
    try:
        return model.merge_and_unload()
    except NotImplementedError:
        return None
