"""What is installed here.

Package metadata and source files are read, and nothing of the training stack is imported: it stays
in the milliseconds, and a broken torch cannot break it. What the hardware can do is tried in
`devices`.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_doctor._version import __version__
from lora_doctor.limits import INSTALLED_FILE_BYTES

# Distributions that decide how a LoRA run behaves. Names are those of PyPI.
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "trl",
    "datasets",
    "deepspeed",
    "flash-attn",
    "triton",
    "unsloth",
    "axolotl",
    "torchao",
    "numpy",
)


@dataclass(frozen=True)
class Environment:
    """Versions, as package metadata states them."""

    #: Version of lora-doctor.
    lora_doctor: str
    #: Version of Python.
    python: str
    #: System, release and machine.
    platform: str
    #: Each name of ``PACKAGES`` to its version; ``None`` when it is not installed.
    packages: dict[str, str | None]

    def version(self, package: str) -> str | None:
        """The installed version of `package`, or None when it is missing or not looked for."""
        return self.packages.get(package)


def gather_environment() -> Environment:
    """Versions of lora-doctor, Python, the platform and the training stack; imports none of it."""
    return Environment(
        lora_doctor=__version__,
        python=platform.python_version(),
        # platform.platform() asks the C library by reading the Python binary: 30 ms for nothing.
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages={name: installed_version(name) for name in PACKAGES},
    )


def installed_version(distribution: str) -> str | None:
    """The version that the metadata of a distribution states; None when it is not installed."""
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    # `found.version` would parse a mail of a hundred kilobytes, the description, for one line.
    text = found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
    headers = text.replace("\r\n", "\n").partition("\n\n")[0]
    version = re.search(r"^Version:[ \t]*(\S+)", headers, re.MULTILINE)
    return version[1] if version else "unknown (broken metadata)"


def package_folder(package: str) -> Path | None:
    """Where the top-level `package` is installed, found without importing it; None when missing."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # ValueError: a stub in sys.modules without __spec__
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def installed_text(path: Path) -> str:
    """The text of a file of an installed package, cut where no such file is longer; empty when it
    cannot be read: this release has no such file."""
    try:
        with path.open("rb") as stream:
            return stream.read(INSTALLED_FILE_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


@functools.cache
def installed_tree(path: Path) -> ast.Module | None:
    """The syntax tree of an installed file; ``None`` when this release has no such file, or none
    that this Python reads."""
    try:
        return ast.parse(installed_text(path)) if path.is_file() else None
    except (SyntaxError, ValueError, RecursionError):
        return None


@functools.cache
def lora_config_fields() -> tuple[str, ...] | None:
    """The keys that the installed PEFT's `LoraConfig` takes, read from its source.

    Bases first, then `LoraConfig`'s own, as the dataclass has them. None when PEFT is missing or
    keeps its config where no release so far has kept it.
    """
    return _config_fields("LORA")


@functools.cache
def adapter_config_fields(peft_type: str) -> tuple[str, ...] | None:
    """The same for the config class of any kind of adapter: the one that sets this `peft_type`.
    None also where the installed PEFT has no such kind."""
    return _config_fields(peft_type)


def _config_fields(peft_type: str) -> tuple[str, ...] | None:
    peft = package_folder("peft")
    if peft is None:
        return None
    tuners = peft / "tuners"
    files = [peft / "config.py", tuners / "lora" / "config.py"]
    if peft_type != "LORA":
        files += sorted({*tuners.glob("*.py"), *tuners.glob("*/config.py")} - set(files))
    classes: dict[str, ast.ClassDef] = {}
    for file in files:
        tree = installed_tree(file)
        if tree is not None:
            classes |= {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    name = next((name for name, node in classes.items() if _sets_type(node, peft_type)), None)
    return tuple(_dataclass_fields(name, classes)) if name is not None else None


def _sets_type(node: ast.ClassDef, peft_type: str) -> bool:
    """Whether a method of this class says `self.peft_type = PeftType.LORA`."""
    return any(
        isinstance(statement, ast.Assign)
        and ast.unparse(statement.targets[0]) == "self.peft_type"
        and ast.unparse(statement.value) == f"PeftType.{peft_type}"
        for method in node.body
        if isinstance(method, ast.FunctionDef)
        for statement in ast.walk(method)
    )


def _dataclass_fields(name: str, classes: dict[str, ast.ClassDef]) -> dict[str, None]:
    """Names of the init fields of dataclass `name`, in order; a base that is not known has none."""
    fields: dict[str, None] = {}
    node = classes[name]
    for base in reversed(node.bases):
        if isinstance(base, ast.Name) and base.id in classes and base.id != name:
            fields |= _dataclass_fields(base.id, classes)
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(statement.annotation) or _is_init_false(statement.value):
            continue
        fields[statement.target.id] = None
    return fields


def _is_init_false(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and any(
        keyword.arg == "init"
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is False
        for keyword in value.keywords
    )


@functools.cache
def known_architectures() -> tuple[str, ...] | None:
    """The `model_type`s that the installed transformers can configure, sorted, from its source.

    transformers 4 keeps the table in `configuration_auto.py`, 5 generates it into
    `auto_mappings.py` and adds to it in the former; both are read. None when transformers is
    missing or has neither.
    """
    transformers = package_folder("transformers")
    if transformers is None:
        return None
    names: set[str] = set()
    for file in ("auto_mappings.py", "configuration_auto.py"):
        names |= _keys_put_into("CONFIG_MAPPING_NAMES", transformers / "models" / "auto" / file)
    return tuple(sorted(names)) or None


#: ``("llama", "LlamaConfig")``, not as the arguments of a call.
_PAIR = re.compile(r"""(?<![\w\])])\(\s*"([^"\\\n]*)",\s*"[^"\\\n]*",?\s*\)""")
_COMMENT_LINE = re.compile(r"^[ \t]*#.*$", re.MULTILINE)


def _keys_put_into(name: str, file: Path) -> set[str]:
    """The keys of what the statements of an installed file put into a table of this name.

    Only these statements are parsed, and one that has nothing but pairs of texts not even that:
    the rest of these files is most of a run at depth ``static``.
    """
    keys: set[str] = set()
    for text in _statements(name, installed_text(file)):
        bare = _COMMENT_LINE.sub("", text)
        pairs, rest = _PAIR.findall(bare), _PAIR.sub("", bare)
        if pairs and not any(mark in rest for mark in "\"'#"):
            keys.update(pairs)
            continue
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            continue
        for statement in tree.body:
            value = _value_put_into(statement, name)
            if value is not None:
                keys |= _string_keys(value)
    return keys


def _statements(name: str, source: str) -> Iterator[str]:
    """The statements at the left margin that begin with this name; a bracket that closes one stands
    there, too."""
    for found in re.finditer(rf"^{name}\b.*\n?(?:(?:[ \t)\]}}].*)?\n)*", source, re.MULTILINE):
        yield found[0]


def _value_put_into(statement: ast.stmt, name: str) -> ast.expr | None:
    """What `statement` assigns to the variable `name`, or updates it with."""
    if isinstance(statement, ast.Assign):
        targets = statement.targets
        value: ast.expr | None = statement.value
    elif isinstance(statement, ast.AnnAssign):
        targets, value = [statement.target], statement.value
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        function = statement.value.func
        if not isinstance(function, ast.Attribute) or function.attr != "update":
            return None
        targets, value = [function.value], statement.value
    else:
        return None
    named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
    return value if named else None


#: Nothing is inside these; most of a table's nodes are such.
_LEAVES = (ast.Constant, ast.Name, ast.expr_context)


def _string_keys(value: ast.expr) -> set[str]:
    """First members of `("key", "Class")` pairs and keys of `{"key": "Class"}` inside `value`."""
    keys: set[str] = set()
    waiting: list[ast.AST] = [value]
    while waiting:
        node = waiting.pop()
        waiting += [part for part in ast.iter_child_nodes(node) if not isinstance(part, _LEAVES)]
        if isinstance(node, ast.Tuple) and len(node.elts) == 2:
            pairs: list[tuple[ast.expr | None, ast.expr]] = [(node.elts[0], node.elts[1])]
        elif isinstance(node, ast.Dict):
            pairs = list(zip(node.keys, node.values, strict=True))
        else:
            continue
        keys |= {
            key.value
            for key, item in pairs
            if isinstance(key, ast.Constant)
            and isinstance(key.value, str)
            and isinstance(item, ast.Constant)
        }
    return keys


def pretrained_model_generates() -> bool | None:
    """Whether the installed transformers' `PreTrainedModel` is a `GenerationMixin`.

    Until it was not, every class had `prepare_inputs_for_generation`. Read from the class
    statement in the source; None when transformers is missing or written otherwise.
    """
    folder = package_folder("transformers")
    if folder is None:
        return None
    source = installed_text(folder / "modeling_utils.py")
    statement = re.search(r"^class PreTrainedModel\(([^)]*)\)", source, re.MULTILINE)
    return "GenerationMixin" in statement[1] if statement else None
