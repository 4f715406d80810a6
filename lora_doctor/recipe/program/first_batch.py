"""A trainer of a program with its rows, its collator and its tokenizer, described so that another
process can make all of them again and take the first batches."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lora_doctor.recipe.program.made_trainer import made_trainer
from lora_doctor.recipe.program.objects import class_of, is_none, loader_of, makers, top
from lora_doctor.recipe.program.own_rows import Describer, Node
from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import (
    Call,
    Items,
    Known,
    Mapping,
    NotPlainError,
    Thing,
    Unknown,
    Value,
    constant,
    same,
)

#: Calls that give a tokenizer more tokens, or another template.
_CHANGES = ("add_tokens", "add_special_tokens", "set_chat_template")
#: Attributes of a model that decide nothing about what it takes.
_OF_MODEL = frozenset({"is_parallelizable", "model_parallel", "hf_device_map"})
#: Arguments of a model's loading that are kept in its config, and decide about its labels.
_OF_LABELS = ("num_labels", "id2label", "label2id", "problem_type")
_CONFIG_SET = re.compile(
    r"\.config\.(?:num_labels|problem_type|id2label|label2id|vocab_size)\s*="
    r"|setup_chat_format|clone_chat_template"
)
#: Arguments about where a tokenizer comes from.
_SOURCE = ("token", "use_auth_token", "cache_dir", "revision", "local_files_only",
           "trust_remote_code", "pretrained_model_name_or_path")  # fmt: skip
_MOST_TOKENIZERS = 1


_LOADER = "torch.utils.data.DataLoader"
#: Arguments of a loader, all of them; others decide which rows are in a batch.
_OF_LOADERS = frozenset(
    {"dataset", "batch_size", "shuffle", "collate_fn", "num_workers", "pin_memory", "drop_last",
     "persistent_workers"}
)  # fmt: skip
#: What a loop may make tensors of lists with.
_STACKS = re.compile(r"\b(?:stack|as_tensor|LongTensor|pad_sequence|cat)\(|torch\.tensor\(")


@dataclass(frozen=True)
class OwnRows:
    """What :func:`own_rows` describes."""

    #: Dotted name of the class of the trainer, or of the loader of a loop.
    name: str
    #: Where it is made.
    place: Place
    #: For the other process.
    described: dict[str, Any]


def own_rows(setup: Setup) -> OwnRows | None:
    """The trainer that trains, or the loader of a loop, with its rows; ``None`` where the text does
    not say all of it."""
    call = setup.roles.trainer
    if call is None:
        return _of_a_loop(setup)
    if _stands_in(call.value("train_dataset", 3)) or "datasets" in pinned_otherwise(
        setup.program
    ):  # fmt: skip
        return None
    trainer = made_trainer(setup)
    made = call.result
    if trainer is None or (isinstance(made, Thing) and made.attributes):
        return None
    try:
        described = {**trainer.to_json(), **_described(setup, call)}
    except NotPlainError:
        return None
    return OwnRows(trainer.name, trainer.place, described)


def _stands_in(rows: Value | None) -> bool:
    """Whether there are no rows, or what is given in their place is none."""
    if isinstance(rows, Items) and rows.open is None:
        return not rows.items or not isinstance(rows.items[0], (Mapping, Unknown))
    return is_none(rows)


def _of_a_loop(setup: Setup) -> OwnRows | None:
    """The first loader of torch's, whose batches a loop of the program's own takes."""
    program, loaded = setup.program, setup.roles.loader
    calls = [one for one in program.calls if one.name == _LOADER and one.certain]
    untouched = not any(_STACKS.search(unit.text) for unit in program.units)
    pinned = pinned_otherwise(program) & {"datasets", "transformers", "torch"}
    if not calls or loaded is None or pinned or not untouched or setup.roles.wrapper is None:
        return None
    call, model = calls[0], loaded.result
    if call.open is not None or len(call.positional) > 1 or set(call.keywords) - _OF_LOADERS:
        return None
    try:
        tokenizer = _tokenizer(setup, call, model)
        describer = Describer(program.calls, tokenizer, model, program.path.parent)
        collator = call.value("collate_fn")
        size = call.value("batch_size")
        described = {
            "name": call.name,
            "train": describer.node(call.value("dataset", 0)),
            "with": {} if is_none(collator) else {"collate_fn": describer.node(collator)},
            "batch_size": 1 if is_none(size) else constant(size),
            "tokenizer": _of_tokenizer(setup, tokenizer, describer),
            "labels": {},
            "folder": str(program.path.parent.resolve()),
        }
    except NotPlainError:
        return None
    return OwnRows(call.name, call.place, described)


def _described(setup: Setup, call: Call) -> dict[str, Any]:
    program = setup.program
    if any(_CONFIG_SET.search(unit.text) for unit in program.units):
        raise NotPlainError(None)
    model = call.value("model", 0)
    _require_untouched(model)
    tokenizer = _tokenizer(setup, call, model)
    describer = Describer(program.calls, tokenizer, model, program.path.parent)
    given: dict[str, Node] = {}
    for name, position in (("data_collator", 2), ("formatting_func", None)):
        value = call.value(name, position if top(call.name) == "transformers" else None)
        if not is_none(value):
            given[name] = describer.node(value)
    return {
        "train": describer.node(call.value("train_dataset", 3)),
        "with": given,
        "own_loss": not is_none(call.value("compute_loss_func")),
        "tokenizer": _of_tokenizer(setup, tokenizer, describer),
        "tokenizer_given": not is_none(call.value("processing_class") or call.value("tokenizer")),
        "labels": _of_labels(model),
        "folder": str(program.path.parent.resolve()),
        "resized": any(one.method == "resize_token_embeddings" for one in program.calls),
    }


def _require_untouched(model: Value | None) -> None:
    """Raises NotPlainError where the program changes more of its model than adapters do."""
    if isinstance(model, Thing) and set(model.attributes) - _OF_MODEL:
        raise NotPlainError(model)
    for call in makers(model):
        made = call.result
        if isinstance(made, Thing) and set(made.attributes) - _OF_MODEL:
            raise NotPlainError(made)


def _tokenizer(setup: Setup, call: Call, model: Value | None) -> Value | None:
    """The tokenizer of the model, as the program loads it; ``None`` where it loads none."""
    loaded = loader_of(model)
    source = model if isinstance(model, Known) else (
        loaded.value("pretrained_model_name_or_path", 0) if loaded is not None else None
    )  # fmt: skip
    found = [
        one.result
        for one in setup.program.calls
        if one.method == "from_pretrained" and "Tokenizer" in class_of(one)
        and top(one.name) == "transformers" and one.certain and one.open is None
        and _is_of(one, source)
    ]  # fmt: skip
    given = call.value("processing_class") or call.value("tokenizer")
    if len(found) > _MOST_TOKENIZERS or (
        not is_none(given) and not any(given is one for one in found)
    ):
        raise NotPlainError(given)
    return found[0] if found else None


def _is_of(call: Call, source: Value | None) -> bool:
    named = call.value("pretrained_model_name_or_path", 0)
    return named is not None and source is not None and same(named, source)


def _of_tokenizer(setup: Setup, value: Value | None, describer: Describer) -> dict[str, Any]:
    """Arguments that it is loaded with, and what is set on it; an attribute that is not known is
    left to the other process where it is the padding token."""
    if not isinstance(value, Thing):
        return {"named": {}, "attributes": {}}
    if any(one.receiver is value and one.method in _CHANGES for one in setup.program.calls):
        raise NotPlainError(value)
    named = {
        name: describer.node(one.value)
        for name, one in value.call.keywords.items()
        if name not in _SOURCE
    }
    attributes: dict[str, Node] = {}
    for name, one in value.attributes.items():
        if isinstance(one, Unknown) and one.part is None:
            if name not in ("pad_token", "pad_token_id"):
                raise NotPlainError(one)
            attributes[name] = {"is": "unknown"}
        else:
            attributes[name] = describer.node(one)
    return {"named": named, "attributes": attributes}


def _of_labels(model: Value | None) -> dict[str, Any]:
    """What the loading of the model says about its labels."""
    loaded = loader_of(model)
    if loaded is None:
        return {}
    if not is_none(loaded.value("config")) or loaded.open is not None:
        raise NotPlainError(loaded.value("config"))
    found: dict[str, Any] = {}
    for name in _OF_LABELS:
        value = loaded.value(name)
        if is_none(value):
            continue
        if isinstance(value, Mapping) and value.open is None:
            found[name] = len(value.entries)  # the names of labels decide nothing
        else:
            found[name] = constant(value)
    return found
