"""Write the schema of the diagnosis: `python -m tools.json_schema`.

Shapes come from the annotations of the dataclasses in `lora_doctor/results/`, descriptions from the
`#:` lines above their fields and from the docstrings of classes and properties. A test fails when
the committed schema is stale. What is said here is only where the JSON differs from the fields:
`Diagnosis.to_json`, `Edit.to_json` and the sums of a memory plan.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lora_doctor.recipe.edit import Edit
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.recipe.set_up import SetUp
from lora_doctor.results.diagnosis import SCHEMA_VERSION, AppliedFix, Diagnosis
from lora_doctor.results.fix import Fix
from lora_doctor.results.from_json import FOR_TYPE_CHECKERS
from lora_doctor.results.memory_plan import MemoryVariant
from lora_doctor.results.structure import Structure
from lora_doctor.results.supervision import Supervision
from lora_doctor.static.installed.environment import Environment
from lora_doctor.static.model_source import ModelSource

PAGE = (
    Path(__file__).resolve().parent.parent
    / "lora_doctor" / "schema" / f"diagnosis-{SCHEMA_VERSION}.json"
)  # fmt: skip
ABOUT = (
    "The result of `lora-doctor check`, `fix` or `verify`, written by --output-format json. Within "
    f"version {SCHEMA_VERSION} keys are only added, never renamed or taken away. Numbers that are "
    "not finite are written as the strings NaN, Infinity and -Infinity; lone surrogates in strings "
    "become question marks. Strings may come from a model repository: treat them as data."
)
NUMBER = {
    "description": "A number; one that is not finite is a string, because JSON has no word for it.",
    "anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}],
}
#: Fields that are not written: they live in the process.
_UNWRITTEN: Mapping[type, tuple[str, ...]] = {
    ModelSource: (
        "module",
        "snapshot",
        "preferred_class",
        "adapter",
        "rows",
        "entries",
        "unknown_entries",
        "script",
        "out_of_reach",
    ),
    Recipe: ("file", "written", "impossible"),
    SetUp: ("read",),
}
#: Properties that are written beside the fields.
_SUMS: Mapping[type, tuple[str, ...]] = {
    MemoryVariant: ("total", "low", "high"),
    Supervision: ("share",),
}
_SCALARS = {str: "string", int: "integer", bool: "boolean", NoneType: "null"}


def field_docs(cls: type) -> dict[str, str]:
    """Each field of a dataclass with the `#:` lines above it, as one line.

    Raises:
        ValueError: a field has none.
    """
    lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
    tree = ast.parse("\n".join(lines)).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for node in tree.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        start = node.lineno - 1
        while lines[start - 1].lstrip().startswith("#:"):
            start -= 1
        said = [line.strip().removeprefix("#:").strip() for line in lines[start : node.lineno - 1]]
        if not said:
            raise ValueError(f"{cls.__module__}.{cls.__name__}.{node.target.id}: has no #: line")
        docs[node.target.id] = plain_text(" ".join(said))
    return docs


def plain_text(text: str) -> str:
    """Without the markup of a docstring; `None` is null here, `True` and `False` are lower case."""
    text = re.sub(r":\w+:`([^`]+)`", r"\1", " ".join(text.split()))
    text = (
        text.replace("``None``", "null").replace("``True``", "true").replace("``False``", "false")
    )
    return text.replace("``", "")


class _Schema:
    """The schema while it is made: `definitions` collects every dataclass that is met."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {"number": NUMBER}

    def of(self, kind: Any) -> dict[str, Any]:
        """What a value of this annotation looks like."""
        origin, inner = get_origin(kind), get_args(kind)
        if kind is Any:
            return {}
        if kind in _SCALARS:
            return {"type": _SCALARS[kind]}
        if kind is float:
            return {"$ref": "#/$defs/number"}
        if origin in (Union, UnionType):
            return self._union(inner)
        if origin is Literal:
            return {"enum": list(inner)}
        if origin is tuple:
            return self._array(inner)
        if origin in (Mapping, dict):
            item = self.of(inner[1])
            return {"type": "object", **({"additionalProperties": item} if item else {})}
        if is_dataclass(kind) and isinstance(kind, type):
            return self._reference(kind)
        raise TypeError(f"{kind!r}: this tool has no JSON for it; teach it")

    def _union(self, kinds: tuple[Any, ...]) -> dict[str, Any]:
        parts = [self.of(kind) for kind in kinds]
        if all(part.keys() == {"type"} for part in parts):
            return {"type": [part["type"] for part in parts]}
        if len(parts) == 2 and "enum" in parts[0] and parts[1] == {"type": "null"}:
            return {"enum": [*parts[0]["enum"], None]}
        return {"anyOf": parts}

    def _array(self, inner: tuple[Any, ...]) -> dict[str, Any]:
        array: dict[str, Any] = {"type": "array", "items": self.of(inner[0])}
        if inner[-1] is not Ellipsis:
            assert len(set(inner)) == 1, "a tuple of several kinds"
            array |= {"minItems": len(inner), "maxItems": len(inner)}
        return array

    def _reference(self, cls: type) -> dict[str, Any]:
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        if name not in self.definitions:
            self.definitions[name] = {}  # holds the place: a class may hold its own kind
            self.definitions[name] = self._edit() if cls is Edit else self.object(cls)
        return {"$ref": f"#/$defs/{name}"}

    def object(self, cls: type) -> dict[str, Any]:
        """A dataclass, field by field."""
        properties = {**self.fields(cls)}
        for name in _SUMS.get(cls, ()):
            properties[name] = self.property(cls, name)
        if cls is MemoryVariant:
            properties["fits"] = {
                "description": "GiB of a card to whether the variant fits; null: not sure.",
                "type": "object",
                "additionalProperties": {"type": ["boolean", "null"]},
            }
        return _object(plain_text(_summary(cls)), properties)

    @cache  # noqa: B019 - the schema lives as long as the tool
    def fields(self, cls: type) -> dict[str, Any]:
        """Each field with its description and shape."""
        docs, hints = field_docs(cls), get_type_hints(cls, localns=FOR_TYPE_CHECKERS)
        names = [item.name for item in fields(cls) if item.name not in _UNWRITTEN.get(cls, ())]
        return {name: {"description": docs[name], **self.of(hints[name])} for name in names}

    def property(self, cls: type, name: str) -> dict[str, Any]:
        """A property, with its docstring and what it returns."""
        getter = inspect.getattr_static(cls, name).fget
        kind = get_type_hints(getter)["return"]
        return {"description": plain_text(getter.__doc__), **self.of(kind)}

    def _edit(self) -> dict[str, Any]:
        said = self.fields(Edit)
        taken = {"description": "Takes the key out.", "const": True}
        return {
            "description": plain_text(_summary(Edit)),
            "oneOf": [
                _object("Sets the key.", said),
                _object("Takes the key out.", {"key": said["key"], "remove": taken}),
            ],
        }


def _object(description: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _summary(cls: type) -> str:
    """The first paragraph of the docstring."""
    return (inspect.getdoc(cls) or "").split("\n\n")[0]


def diagnosis_schema() -> dict[str, Any]:
    """The JSON schema of `Diagnosis.to_json`, draft 2020-12."""
    schema = _Schema()
    said, structure = schema.fields(Diagnosis), schema.fields(Structure)
    model = schema.object(ModelSource)
    for name, source in (
        ("model_class",) * 2,
        ("model_type",) * 2,
        ("parameters", "total_parameters"),
    ):
        model["properties"][name] = _nullable(structure[source])
    model["required"] = list(model["properties"])
    applied = {"rule": schema.fields(AppliedFix)["rule"], **schema.fields(Fix)}
    properties = {
        "schema_version": {"description": "Version of this contract.", "const": SCHEMA_VERSION},
        "model": {**model, "description": "The model source, and what it turned out to be."},
        "recipe": said["recipe"],
        # Older and newer versions of lora-doctor may have more to say about where it ran.
        "environment": {
            "description": said["environment"]["description"],
            "type": "object",
            "properties": schema.fields(Environment),
        },
        **{key: said[key] for key in ("depth", "reached")},
        "verdict": schema.property(Diagnosis, "verdict"),
        **{
            key: said[key]
            for key in ("undetermined", "limit", "findings", "remaining", "passed", "skipped")
        },
        "applied": {
            "description": said["applied"]["description"],
            "type": "array",
            "items": _object(plain_text(_summary(AppliedFix)), applied),
        },
        **{key: said[key] for key in ("fixed_recipe", "recipe_diff", "written_to")},
        "verification": _object(
            "The training contract before and after the fixes.",
            {key: said[key] for key in ("before", "after")},
        ),
        **{
            key: said[key]
            for key in (
                "structure",
                "memory_plan",
                "dry_run",
                "supervision",
                "next_command",
                "notes",
                "accepted",
                "budgets",
            )
        },
        "timings": _object(
            "What it cost.", {"total_seconds": said["seconds"], "evidence": said["gathered"]}
        ),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:lora-doctor:schema:diagnosis-{SCHEMA_VERSION}",
        "title": f"lora-doctor diagnosis, version {SCHEMA_VERSION}",
        **_object(ABOUT, properties),
        "$defs": dict(sorted(schema.definitions.items())),
    }


def _nullable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what may not have been looked at."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    said = schema["description"].rstrip(".") + "; null when the model was not built."
    return {**schema, "description": said, "type": [*dict.fromkeys([*kinds, "null"])]}


def text() -> str:
    """What the file holds."""
    return json.dumps(diagnosis_schema(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    PAGE.write_text(text(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
