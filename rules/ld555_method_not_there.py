"""LD555: what is asked of an object is not there: its installed class has none, or refuses."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    AbsentMethod,
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    absent_methods,
)

_PROOF = Proof("read", "the installed source of the class, and the script")


class MethodNotThere(Rule):
    """A script calls or reads what the installed class of the object does not have, or calls a
    method that refuses the object.

    ## What happens
    `AttributeError: 'LlamaForCausalLM' object has no attribute 'print_trainable_parameters'`,
    `'SFTTrainer' object has no attribute 'save_pretrained'`, `'IterableDataset' object has no
    attribute 'train_test_split'`, often at the end of the training; or `'NoneType' object has no
    attribute` and `'_IncompatibleKeys' object has no attribute`, where a model was bound to what a
    method returned; or `'dict' object is not callable`. On a model in 4 or 8 bits
    `.half()`, `.float()` and `.to(torch.float16)` raise ValueError.

    ## Why
    `model.add_adapter(config)` puts adapters into a model of transformers, which stays one: the
    methods of `PeftModel` are those of what `get_peft_model` returns. It returns nothing, and so
    do `set_format` of a data set and `enable_input_require_grads`; `load_state_dict`,
    `load_adapter` and `set_peft_model_state_dict` return names. `peft_config` is a dictionary,
    `active_adapters` of a model of transformers a method. A trainer saves by
    `save_model`. A streamed set can only be read in its order. Weights that bitsandbytes has
    quantized have no other dtype to be cast to.

    lora-doctor reads the installed classes, and what their methods return. A model whose code
    comes from its own repository is left alone, as is a class of the script's own.

    ## Versions
    What the installed release has; nothing is reported where the set-up pins another one.

    ## Fix
    By hand: call what the class has, or leave the call out.

    ## Links
    https://huggingface.co/docs/transformers/peft,
    https://github.com/huggingface/transformers/issues/23336,
    https://github.com/h2oai/h2ogpt/pull/132, https://github.com/huggingface/peft/issues/1323,
    https://github.com/huggingface/peft/issues/2249
    """

    code = "LD555"
    name = "method-not-there"
    summary = "A method is called that the object's installed class does not have, or refuses."
    depth = "static"
    symptoms = (
        Symptom(
            r"'\w+For\w+' object has no attribute "
            r"'(?:print_trainable_parameters|merge_and_unload|get_nb_trainable_parameters)'"
        ),
        Symptom(r"'\w+Trainer' object has no attribute '(?:save_pretrained|save|fit)'"),
        Symptom(r"'_IncompatibleKeys' object has no attribute '\w+'"),
        Symptom(r"'TrainOutput' object has no attribute '\w+'"),
        Symptom(
            r"'NoneType' object has no attribute '(?:print_trainable_parameters|named_parameters)'"
        ),
        Symptom(r"'IterableDataset' object has no attribute '(?:train_test_split|select)'"),
        Symptom(r"You cannot cast a bitsandbytes model in a new `dtype`"),
        Symptom(r"`\.(?:half|float)\(\)` is not supported for quantized model"),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/trainable_printed_without_wrapper.py",
            depth="static",
            why="add_adapter returns nothing, and the model stays one of transformers",
        ),
        Example(
            "broken",
            "tests/scripts/quantized_halved.py",
            depth="static",
            why="a model in 4 bits is cast to float16",
        ),
        Example(
            "broken",
            "tests/scripts/adapter_added_and_bound.py",
            depth="static",
            why="add_adapter returns nothing, and the model is bound to that",
        ),
        Example("healthy", "tests/scripts/methods_that_are_there.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run called it
        for found in absent_methods(case.program):
            yield self.finding(
                "error",
                _MESSAGES[found.why].format(found=found),
                location=Location("file", found.place.file, found.place.line),
                evidence=(_read(found), Measurement("made at", found.owner, str(found.made))),
                proof=_PROOF,
                fixes=(Fix(_FIXES[found.why].format(found=found), "manual"),),
            )


def _read(found: AbsentMethod) -> Measurement:
    if found.why == "nothing":
        return Measurement("returns", "None", "installed source")
    if found.why == "unpacked":
        return Measurement("is iterable", False, "installed source")
    if found.why == "property":
        return Measurement(found.method, f"{found.source}, not a method", "installed source")
    if found.why == "method":
        return Measurement(found.method, "a method", "installed source")
    if found.why == "quantized":
        return Measurement("raises at", found.source, "installed source")
    return Measurement("methods of the class", f"no {found.method}", "installed source")


_MESSAGES = {
    "attribute": (
        "{found.owner} has no attribute `{found.method}`: reading it raises AttributeError."
    ),
    "unpacked": (
        "{found.owner} is one object, and is unpacked into several names: that raises TypeError."
    ),
    "nothing": (
        "`{found.owner}` returns None, and `{found.method}` is asked of what it returned: that "
        "raises AttributeError."
    ),
    "nowhere": (
        "No class of a model or tokenizer in the installed libraries has `{found.method}`: the "
        "call raises AttributeError."
    ),
    "property": (
        "`{found.method}` of {found.owner} is {found.source} and no method: the call raises "
        "TypeError."
    ),
    "method": (
        "`{found.method}` of {found.owner} is a method, and an item of it is taken without calling "
        "it: that raises TypeError."
    ),
    "absent": "{found.owner} has no method `{found.method}`: the call raises AttributeError.",
    "peft": (
        "Only PEFT's models have `{found.method}`, and this model is one of transformers: the "
        "call raises AttributeError."
    ),
    "quantized": (
        "`{found.method}` casts a model whose weights are in 4 or 8 bits, which transformers "
        "refuses: the call raises ValueError."
    ),
}
_FIXES = {
    "attribute": "Read an attribute that {found.owner} has.",
    "unpacked": "Bind it to one name.",
    "nothing": "Call {found.owner} on a line of its own, and keep the object.",
    "nowhere": "Call a method that the installed release has, or leave the call out.",
    "property": "Write {found.method} without parentheses.",
    "method": "Call it: {found.method}().",
    "absent": "Call a method that {found.owner} has.",
    "peft": "Call it on what get_peft_model returns, or leave it out.",
    "quantized": "Leave the call out; name the dtype in from_pretrained or BitsAndBytesConfig.",
}
