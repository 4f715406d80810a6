"""What a program asks of its model's tokenizer that only some tokenizers have: a token for masked
words, a chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_doctor.recipe.program.objects import class_of, loader_of, same_source, top
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Call, Function, Known, Thing, Value

if TYPE_CHECKING:
    import libcst as cst

#: Arguments of ``from_pretrained`` that give a tokenizer neither tokens nor a template.
_HARMLESS = frozenset(
    ["pretrained_model_name_or_path", "use_fast", "padding_side", "truncation_side", "legacy",
     "model_max_length", "add_bos_token", "add_eos_token", "token", "cache_dir"]
)  # fmt: skip
_COLLATOR = "DataCollatorForLanguageModeling"
_APPLIES = "apply_chat_template"
#: Whatever may give it a template, in any file that was read.
_GIVES = re.compile(r"(?<!apply_)chat_(?:template|format)|\bget_chat|_chat_template\s*=")
_GIVES_TOKENS = ("add_special_tokens", "add_tokens")


@dataclass(frozen=True)
class AskedOfTokenizer:
    """One such call, of the tokenizer that lies beside the model's weights."""

    #: ``mask_token`` or ``chat_template``.
    what: str
    #: What asks for it.
    by: str
    #: Where it is asked.
    place: Place


def asked_of_tokenizer(setup: Setup) -> Iterator[AskedOfTokenizer]:
    """Each call that surely runs, on a tokenizer to which the program gives nothing of the kind."""
    for call in setup.program.calls:
        if not call.certain or call.guarded or call.open is not None:
            continue
        if call.method == _COLLATOR and top(call.name) == "transformers" and call.heir is None:
            if _masks_words(call) and _is_own(setup, call.value("tokenizer", 0), "mask_token"):
                yield AskedOfTokenizer("mask_token", _COLLATOR, call.place)
        elif not any(_GIVES.search(unit.text) for unit in setup.program.units):
            yield from _templates(setup, call)


def _masks_words(call: Call) -> bool:
    """``mlm`` is on by default."""
    mlm = call.value("mlm", 1)
    return mlm is None or (isinstance(mlm, Known) and mlm.value is True)


def _templates(setup: Setup, call: Call) -> Iterator[AskedOfTokenizer]:
    """The call itself, or one in a function that ``map`` runs for each row."""
    if call.method == _APPLIES:
        if _is_own(setup, call.receiver, "chat_template"):
            yield AskedOfTokenizer("chat_template", _APPLIES, call.place)
        return
    function = call.value("function", 0) if call.method == "map" else None
    if not isinstance(function, Function) or not isinstance(call.receiver, Thing):
        return
    for owner, node in _certain_calls(function):
        if _is_own(setup, function.scope.find(owner) if owner else None, "chat_template"):
            place = function.unit.span(node).place
            yield AskedOfTokenizer("chat_template", _APPLIES, place)
            return


def _certain_calls(function: Function) -> Iterator[tuple[str, cst.Call]]:
    """The calls of ``apply_chat_template`` in a function that no condition stands before, each with
    the name of what it is called on."""
    import libcst as cst

    todo: list[cst.CSTNode] = [function.node.body]
    while todo:
        node = todo.pop()
        if isinstance(node, (cst.If, cst.IfExp, cst.Try, cst.BooleanOperation, cst.FunctionDef)):
            continue
        called = node.func if isinstance(node, cst.Call) else None
        if isinstance(called, cst.Attribute) and called.attr.value == _APPLIES:
            assert isinstance(node, cst.Call)
            yield (called.value.value if isinstance(called.value, cst.Name) else ""), node
        todo += node.children


def _is_own(setup: Setup, value: Value | None, what: str) -> bool:
    """Whether a tokenizer is the one of the model's own folder, as it is there."""
    if not isinstance(value, Thing) or value.call.method != "from_pretrained":
        return False
    call = value.call
    if top(call.name) != "transformers" or "Tokenizer" not in class_of(call):
        return False
    if set(call.keywords) - _HARMLESS or len(call.positional) > 1 or call.open is not None:
        return False
    if what in value.attributes or not _is_of_model(setup, call):
        return False
    return not any(
        one.receiver is value and one.method in _GIVES_TOKENS for one in setup.program.calls
    )


def _is_of_model(setup: Setup, call: Call) -> bool:
    """Whether it is loaded from where the model is."""
    named = call.value("pretrained_model_name_or_path", 0)
    if isinstance(named, Known) and setup.model is not None and named.value == setup.model:
        return True
    loader = setup.roles.loader or loader_of(setup.roles.training)
    return loader is not None and same_source(loader, call)
