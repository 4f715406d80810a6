"""LD315: a script uses a quantization argument that the installed transformers has removed."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from lora_doctor.rule_api import (
    PYTHON_BYTES,
    Case,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    unknown_arguments,
)
from lora_doctor.static.installed.environment import installed_text, package_folder
from lora_doctor.static.python_source import parse_python, unparse, walk
from lora_doctor.static.script.script_values import Names

_ARGUMENTS = ("load_in_8bit", "load_in_4bit")
#: Packages whose ``from_pretrained`` hands its arguments on to that of transformers.
_PASSING_ON = ("transformers", "peft", "modelscope", "")


class LoadArgumentRemoved(Rule):
    """A training script calls `from_pretrained(..., load_in_8bit=True)`, and the installed
    transformers passes the argument on to the model class.

    ## What happens
    `TypeError: LlamaForCausalLM.__init__() got an unexpected keyword argument 'load_in_8bit'`.

    ## Why
    transformers 4 turned `load_in_8bit` and `load_in_4bit` into a `BitsAndBytesConfig`, with a
    deprecation warning. transformers 5 no longer knows them, and passes unknown arguments of
    `from_pretrained` to the model class.

    ## Versions
    transformers 5; whether the installed one knows the argument is read from its source.

    ## Fix
    `quantization_config=BitsAndBytesConfig(load_in_8bit=True)`, which all releases accept.

    ## Links
    https://huggingface.co/docs/transformers/quantization/bitsandbytes
    """

    code = "LD315"
    name = "load-argument-removed"
    summary = "The script loads with load_in_8bit or load_in_4bit, which transformers has removed."
    depth = "static"
    symptoms = (
        Symptom(
            r"__init__\(\) got an unexpected keyword argument '(load_in_8bit|load_in_4bit)'",
            "transformers>=5",
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/quantized_by_argument.py",
            requires={"transformers": ">=5"},
            depth="static",
        ),
        Example(
            "healthy",
            "tests/scripts/quantized_by_argument.py",
            requires={"transformers": "<5"},
            depth="static",
        ),
        Example("healthy", "tests/scripts/adapters_first.py", depth="static"),
        # Classes of the user's own code take the argument as they please.
        Example("healthy", "tests/scripts/own_class_with_load_in_4bit.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        script = case.script
        folder = package_folder("transformers")
        if folder is None:
            raise EvidenceError("transformers is not installed", remedy="package")
        known = installed_text(folder / "modeling_utils.py")
        written = case.asked.written  # a fix changes it before the file is written
        data = written.data if written is not None else None
        content = (script.path.read_bytes() if data is None else data)[:PYTHON_BYTES]
        for call, argument in _loading_calls(parse_python(content, script.path.name)):
            if f'"{argument}"' in known:
                continue
            version = case.environment.version("transformers") or ""
            yield self.finding(
                "error",
                f"from_pretrained of transformers {version} does not accept {argument}: it is "
                "passed to the model class, which raises.",
                location=Location("file", str(script.path), call.lineno),
                evidence=(
                    Measurement("the line", unparse(call)[:200],
                                f"{script.path.name}:{call.lineno}"),
                    Measurement("mentions of the argument", 0,
                                f"transformers {version}, modeling_utils.py"),
                ),
                proof=Proof("inferred", "read from the script and from what is installed"),
                fixes=(_fix(case, call.lineno, argument),),
            )  # fmt: skip


def _fix(case: Case, line: int, argument: str) -> Fix:
    """With the change of the text, where the program was followed to this call."""
    title = f"Pass quantization_config=BitsAndBytesConfig({argument}=True)"
    found = unknown_arguments(case.program) if case.has("program") else ()
    for item in found:
        if item.name == argument and item.place.line == line and item.rewrites:
            return Fix(title, "safe", rewrites=item.rewrites)
    return Fix(title, "manual")


def _loading_calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    """Calls of ``from_pretrained`` with one of the arguments switched on. Unsloth, and classes of
    other packages, have a ``from_pretrained`` of their own with the same arguments."""
    names, elsewhere = Names.of(tree), _classes_of_own_code(tree)
    for node in walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr != "from_pretrained":
            continue
        loaded = node.func.value
        if (names.full(loaded) or "").partition(".")[0] not in _PASSING_ON:
            continue
        if isinstance(loaded, ast.Name) and elsewhere(loaded.id):
            continue
        for keyword in node.keywords:
            off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
            if keyword.arg in _ARGUMENTS and not off:
                yield node, keyword.arg


def _classes_of_own_code(tree: ast.Module) -> Callable[[str], bool]:
    """Whether a name is, or may be, a class of the user's own code: imported from a file beside
    this one, by name or by ``*``, defined here with a ``from_pretrained`` of its own, or a variable
    that is set to one of these."""
    own: set[str] = set()
    variables: dict[str, set[str]] = {}
    bound: set[str] = set()
    starred = False
    for node in walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            called = [item.asname or item.name.partition(".")[0] for item in node.names]
            bound.update(called)
            beside = isinstance(node, ast.ImportFrom) and node.level > 0
            own.update(called if beside else ())
            starred = starred or (beside and "*" in called)
        elif isinstance(node, ast.ClassDef):
            bound.add(node.name)
            if any(getattr(part, "name", "") == "from_pretrained" for part in node.body):
                own.add(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            for target in node.targets:
                variables.setdefault(getattr(target, "id", ""), set()).add(node.value.id)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    own.update(name for name, values in variables.items() if values & own)
    return lambda name: name in own or (starred and name not in bound)
