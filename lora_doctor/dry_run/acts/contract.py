"""The training contract on a copy of the user's own model, with what its forward was given."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import threading
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from lora_doctor.dry_run.acts import checkpoint, small_models, supervised
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.batch_rows import cut_rows, is_tensor, plain_rows
from lora_doctor.dry_run.acts.rows_alone import stand_alone
from lora_doctor.dry_run.recipe import captured_recipe

#: Classes whose labels are classes, by transformers' names.
_CLASSES = ("SequenceClassification", "TokenClassification", "ImageClassification",
            "AudioClassification")  # fmt: skip
#: Checks of the training contract that no batch is needed for.
_WITHOUT_BATCH = ("builds", "attaches")


def run(
    acting: Acting, model: Any, whole: Any, given: tuple[tuple[Any, ...], Mapping[str, Any]]
) -> None:
    """Run it, in a thread of its own: autocast, gradient mode and function modes of the user's are
    of the thread. What comes out goes to the journal.

    Args:
        acting: this process.
        model: the user's model.
        whole: the same before it was cut into shards; itself where it was not.
        given: what forward was called with.
    """
    batch = _own(_forward_arguments(model, *given))
    found: list[BaseException] = []

    def work() -> None:
        with acting.ours():
            try:
                _run(acting, model, whole, batch)
            except BaseException as error:  # noqa: BLE001 - the user's run goes on
                found.append(error)

    thread = threading.Thread(target=work, name="lora-doctor: training contract")
    thread.start()
    thread.join()
    if found:
        lines = traceback.format_exception(found[0])
        acting.journal.tell(
            "no_contract", reason=f"{type(found[0]).__name__}: {found[0]}", trace="".join(lines)
        )


def _run(acting: Acting, model: Any, whole: Any, batch: dict[str, Any]) -> None:
    from lora_doctor.evidence.meta import describe_module
    from lora_doctor.recipe.files.read_write import as_recipe

    config = model.peft_config[_active(model)]
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    loading = next(
        (one for one in reversed(acting.seen("model")) if one["object"] == id(base)), None
    )
    training = next(iter(reversed(acting.seen("arguments"))), None)
    adapter = acting.config_values.get(id(config)) or dict(as_recipe(config).values)
    place = acting.config_places.get(id(config))
    acting.journal.tell(
        "adapted",
        adapter=adapter,
        given=acting.config_given.get(id(config)),
        place=None if place is None else vars(place),
        base=small_models.name_of(base),
        base_class=type(base).__name__,
        object=None if loading is None else loading["object"],
        inputs={name: list(value.shape) for name, value in batch.items() if is_tensor(value)},
        label_count=_label_count(base),
    )
    recipe = captured_recipe(adapter, loading, training["values"] if training else None)
    if whole is None:
        raise LookupError("no process had all weights of the model")
    full = None if loading is None else _at_full_size(acting, loading, recipe)
    small = describe_module(whole, recipe).to_json() if full is None else None
    acting.journal.tell("structure", structure=full or small, full=full is not None)
    lacking = () if loading is None else checkpoint.lacking(acting, whole, loading, recipe)
    with without_autocast(whole):
        result = _verify(
            acting, whole, recipe, batch, random_weights=loading is not None, missing=lacking
        )
    acting.journal.tell("contract", verification=result.to_json())


def _verify(acting: Acting, model: Any, recipe: Any, batch: dict[str, Any], **options: Any) -> Any:
    """The training contract on two rows of a large batch, where they are known to give what they
    give in it. What two rows fail is asked of all of them: nothing fails for the cut."""
    from lora_doctor.evidence.loaded_module import verify_module

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    cut = cut_rows(batch, _label_count(base))
    if cut is None or not stand_alone(model, batch, cut):
        return verify_module(model, recipe, batch, **options)
    result = verify_module(model, recipe, cut.few, **options)
    failed = any(check.name not in _WITHOUT_BATCH for check in result.failed_checks)
    if failed or result.outcome == "undetermined":
        return verify_module(model, recipe, batch, **options)
    text = f"the training contract ran on {len(cut.rows)} of {cut.count} rows of the batch"
    acting.note("not-proven", text)
    return result


def _label_count(base: Any) -> int | None:
    """How many labels the loss of a model knows: its tokens, or its classes; ``None`` where that is
    open, as for numbers that are to be guessed."""
    name = type(base).__name__
    config = getattr(base, "config", None)
    if any(one in name for one in _CLASSES):
        kind = getattr(config, "problem_type", None)
        count = getattr(config, "num_labels", None)
        plain = kind in (None, "single_label_classification") and isinstance(count, int)
        return count if plain and count is not None and count > 1 else None
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    rows = getattr(head, "out_features", None)
    return rows if isinstance(rows, int) else None


@contextlib.contextmanager
def without_autocast(model: Any) -> Iterator[None]:
    """Without the forward that accelerate puts on the object in mixed precision: the contract has
    an autocast of its own, and what is reloaded in it would lack the other."""
    own = vars(model)
    wrapped = own.pop("forward", None) if "_original_forward" in own else None
    try:
        yield
    finally:
        if wrapped is not None:
            own["forward"] = wrapped


def _at_full_size(acting: Acting, loading: Mapping[str, Any], recipe: Any) -> Any:
    """The class at full size on the meta device, which the parent would else have to import torch
    for; ``None`` where it cannot be built here."""
    from lora_doctor.errors import LoraDoctorError
    from lora_doctor.evidence import meta
    from lora_doctor.static.model_source import ModelSource

    folder = loading["folder"]
    if folder is None:
        return None
    source = ModelSource(
        "folder", folder, trust_remote_code=loading["trust_remote_code"], folder=folder
    )
    asked = recipe.to_json()
    attention = asked["values"].get("attn_implementation")
    if attention is not None and loading["attention"] != attention:
        del asked["values"]["attn_implementation"]  # it cannot be loaded here, and builds the same
    try:
        found = meta.gather(source.for_child(), asked)
    except LoraDoctorError as error:
        acting.journal.tell("no_full_size", reason=str(error))
        return None
    if attention is not None:
        found["recipe"]["values"]["attn_implementation"] = attention
        found["recipe"]["origins"]["attn_implementation"] = "argument"
    return found


def read_optimizer(
    acting: Acting,
    optimizer: Any,
    scheduler: Any,
    planned: int | None,
    *,
    kind: str = "optimizer",
    **more: Any,
) -> None:
    """What the optimizer holds of the model that trains; a list of those that train it together.
    ``kind``: of the record, which has ``more`` beside it."""
    from lora_doctor.errors import LoraDoctorError
    from lora_doctor.evidence import optimizer as reader

    model = acting.trained_model()
    if model is None:
        return
    if any(one["by"] == "DeepSpeed" for one in acting.seen("wrapped")):
        reason = "DeepSpeed's optimizer holds copies of the weights, not the model's"
        acting.journal.tell("no_optimizer", reason=reason)
        return
    with acting.ours():
        try:
            state = reader.read_optimizer(
                model, optimizer, scheduler, planned if scheduler is not None else None
            )
        except LoraDoctorError as error:
            acting.journal.tell("no_optimizer", reason=str(error))
            return
    first = optimizer[0] if isinstance(optimizer, list) else optimizer
    acting.journal.tell(
        kind,
        state=dataclasses.asdict(state),
        type=type(getattr(first, "optimizer", first)).__name__,
        **more,
    )


def keep_rows(
    acting: Acting, model: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> dict[str, Any]:
    """Tell the token ids of a batch and what goes with them, as plain lists; returns what forward
    was called with, by name."""
    acting.trains(model)
    supervised.tell_loaded_tokenizer(acting, model)
    given = _forward_arguments(model, arguments, named)
    if acting.writes_its_rows:
        return given
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    acting.journal.tell("rows", rows=plain_rows(given), label_count=_label_count(base))
    return given


def _active(model: Any) -> str:
    own = getattr(model, "_hf_peft_config_loaded", False)  # transformers' mixin, a method
    active = model.active_adapters() if own else model.active_adapter
    return str(active if isinstance(active, str) else next(iter(active)))


def _forward_arguments(
    model: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> dict[str, Any]:
    """What forward was called with, by name; what is ``None`` is left out."""
    given = dict(named)
    if arguments:
        given.update(zip(_names_by_place(model), arguments, strict=False))
    return {name: value for name, value in given.items() if value is not None}


def _names_by_place(model: Any) -> list[str]:
    """The names of what forward takes by place; of PEFT's plain wrapper, which hands everything on,
    those of the model below it."""
    found = inspect.signature(type(model).forward).parameters.values()
    if any(one.kind is one.VAR_POSITIONAL for one in found) and hasattr(model, "get_base_model"):
        return _names_by_place(model.get_base_model())
    return [one.name for one in found if one.kind is one.POSITIONAL_OR_KEYWORD][1:]


def _own(given: dict[str, Any]) -> dict[str, Any]:
    """Tensors of our own in the place of the user's, those within others, too."""
    kinds = (bool, int, float, str, list, tuple, dict)
    return {
        name: _own_value(value)
        for name, value in given.items()
        if is_tensor(value) or isinstance(value, kinds)
    }


def _own_value(value: Any) -> Any:
    if is_tensor(value):
        return value.detach().clone()
    if type(value) is dict:
        return {name: _own_value(one) for name, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_own_value(one) for one in value)
    return value
