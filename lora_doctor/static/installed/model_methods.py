"""Methods of the installed classes of models: which are PEFT's alone, and which refuse weights in
4 or 8 bits. Read, never imported."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from lora_doctor.static.installed.environment import installed_text, installed_tree, package_folder
from lora_doctor.static.installed.signatures import class_statement
from lora_doctor.static.python_source import walk

#: Where a method of a model of transformers may be defined.
_OF_MODELS = (
    "*.py",
    "integrations/*.py",
    "generation/*.py",
    "utils/*.py",
    "models/*/modeling_*.py",
)
_OF_PEFT = ("peft_model.py", "tuners/tuners_utils.py", "tuners/lora/model.py")
#: What the conditions say under which methods refuse a model of bitsandbytes.
_OF_BITSANDBYTES = re.compile(r"\bis_quantized\b|BITS_AND_BYTES|is_loaded_in_")


@functools.cache
def is_of_peft_alone(method: str) -> bool:
    """Whether PEFT's models have a method, and nothing in transformers or torch defines one of that
    name. Thousands of files are read: ask only where it is called."""
    defined = re.compile(rf"\b(?:def {re.escape(method)}\b|{re.escape(method)}\s*=)")
    own = any(defined.search(text) for text in _texts("peft", _OF_PEFT))
    module = package_folder("torch")
    base = installed_text(module / "nn/modules/module.py") if module is not None else ""
    if not own or not base or defined.search(base):
        return False
    return not any(defined.search(text) for text in _texts("transformers", _OF_MODELS))


@functools.cache
def is_in_no_model(name: str) -> bool:
    """Whether a name occurs nowhere in the installed sources of models and of PEFT. Thousands of
    files are read: ask only where it is called, and no base class has it."""
    module = package_folder("torch")
    word = re.compile(rf"\b{re.escape(name)}\b")
    read = 0
    for text in (*_texts("peft", ("*.py", "tuners/**/*.py")), *_texts("transformers", _OF_MODELS)):
        read += 1
        if word.search(text):
            return False
    base = installed_text(module / "nn/modules/module.py") if module is not None else ""
    return bool(read and base) and word.search(base) is None


@functools.cache
def is_in_no_tokenizer(name: str) -> bool:
    """Whether no class of a tokenizer defines, sets or lists a name; their documentation may call
    methods of models."""
    own = re.escape(name)
    set_there = re.compile(rf"""\bdef {own}\b|\.{own}\s*=|["']{own}["']|^\s+{own}\s*[:=]""", re.M)
    texts = list(_texts("transformers", ("tokenization*.py", "models/*/tokenization*.py")))
    return bool(texts) and not any(set_there.search(text) for text in texts)


@functools.cache
def is_defined_by_an_heir(package: str, owner: str, name: str) -> bool:
    """Whether a class of a model, or of PEFT's own for a task, has a method of this name that
    ``owner``, which it inherits, has as well."""
    if package == "peft":
        folder = package_folder("peft")
        tree = installed_tree(folder / "peft_model.py") if folder is not None else None
        classes = [one for one in (tree.body if tree else []) if isinstance(one, ast.ClassDef)]
        heirs = [one for one in classes if one.name != owner]
        return any(getattr(inner, "name", "") == name for one in heirs for inner in one.body)
    defined = re.compile(rf"^    def {re.escape(name)}\b", re.MULTILINE)
    return any(defined.search(text) for text in _texts("transformers", ("models/*/modeling_*.py",)))


@functools.cache
def refuses_quantized(method: str) -> str | None:
    """Where the installed ``PreTrainedModel`` raises in a method that is called with a dtype on a
    model of bitsandbytes; ``None`` where it does not."""
    node = class_statement("transformers", "PreTrainedModel")
    own = [] if node is None else node.body
    for one in own:
        if isinstance(one, ast.FunctionDef) and one.name == method:
            line = next(_raises(one), None)
            return f"transformers/modeling_utils.py:{line}" if line else None
    return None


def _raises(function: ast.FunctionDef) -> Iterator[int]:
    for node in walk(function):
        if isinstance(node, ast.If) and _OF_BITSANDBYTES.search(ast.unparse(node.test)):
            for one in node.body:
                nested = one.body if isinstance(one, ast.If) else [one]
                of_dtype = not isinstance(one, ast.If) or "dtype" in ast.unparse(one.test)
                yield from (
                    inner.lineno for inner in nested if isinstance(inner, ast.Raise) and of_dtype
                )


def _texts(package: str, patterns: tuple[str, ...]) -> Iterator[str]:
    folder: Path | None = package_folder(package)
    for pattern in patterns if folder is not None else ():
        for file in folder.glob(pattern) if folder is not None else ():
            yield installed_text(file)
