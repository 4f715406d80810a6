"""A diagnosis that was stored is read again and rendered in every format, old ones too; and the
schema of what is stored is made of the fields, with their own documentation."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lora_doctor import reports, results
from lora_doctor.errors import InputError
from lora_doctor.recipe.edit import Edit, Patch
from lora_doctor.recipe.files.prescription import Prescription
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.injection import Converted, RenamedTensor, Unmatched
from lora_doctor.results.stored import parse_diagnosis, read_diagnosis
from tests import diagnoses
from tools import json_schema

#: Written by lora-doctor before version 2 of the schema: `fix arch:gpt2 --memory` with two target
#: modules of which one matches nothing; only alternatives of the memory plan were taken out.
VERSION_1 = Path(__file__).parent / "data" / "diagnosis-1.json"


def schema(version: str) -> Any:
    folder = resources.files("lora_doctor").joinpath("schema")
    return json.loads(folder.joinpath(f"diagnosis-{version}.json").read_text(encoding="utf-8"))


def public_dataclasses() -> list[type]:
    """Those of every module in results/, and what a user makes or is handed besides."""
    modules = [
        importlib.import_module(f"{results.__name__}.{info.name}")
        for info in pkgutil.iter_modules(results.__path__)
    ]
    found = [
        item
        for module in modules
        for item in vars(module).values()
        if isinstance(item, type)
        and dataclasses.is_dataclass(item)
        and item.__module__ == module.__name__
    ]
    return [*found, Recipe, Edit, Patch, Prescription]


# --- the schema is made of the fields ---


def test_the_schema_is_fresh() -> None:
    """Whoever adds a field to the result adds it to the contract."""
    written = json_schema.PAGE.read_text(encoding="utf-8")
    assert written == json_schema.text(), "stale; run `python -m tools.json_schema` and commit it"


@pytest.mark.parametrize("cls", public_dataclasses(), ids=lambda cls: str(cls.__name__))
def test_every_field_is_documented_where_it_stands(cls: type) -> None:
    docs = json_schema.field_docs(cls)
    assert list(docs) == [item.name for item in dataclasses.fields(cls)]
    assert all(text.endswith((".", ")")) and len(text) > 8 for text in docs.values()), docs


def test_a_field_without_a_word_is_refused() -> None:
    @dataclasses.dataclass
    class Bare:
        #: Documented,
        #: on two lines.
        one: int
        two: int = 0

    with pytest.raises(ValueError, match=r"Bare.two: has no #: line"):
        json_schema.field_docs(Bare)


def test_the_schema_says_what_the_fields_say() -> None:
    """Descriptions, nullable fields, enums and fixed lengths come through."""
    definitions = schema("2")["$defs"]
    measured = definitions["norm_reading"]["properties"]["variance"]
    assert (measured["minItems"], measured["maxItems"]) == (3, 3)
    assert definitions["memory_part"]["properties"]["bytes"]["type"] == ["integer", "null"]
    assert definitions["memory_part"]["properties"]["bytes"]["description"].startswith(
        "Its size in bytes;"
    )
    assert definitions["finding"]["properties"]["severity"]["enum"] == ["error", "warning", "info"]


# --- what was stored is read again ---


def stored(diagnosis: Diagnosis) -> Any:
    return json.loads(reports.render(diagnosis, "json"))


@pytest.mark.parametrize("name", diagnoses.ALL)
def test_what_was_written_is_read(name: str, tmp_path: Path) -> None:
    """Nothing that is written is lost: the second text is the first."""
    path = tmp_path / "diagnosis.json"
    text = reports.render(diagnoses.ALL[name](), "json")
    path.write_text(text)
    read = read_diagnosis(path)
    assert reports.render(read, "json") == text


@pytest.mark.parametrize("format", reports.find_formats())
def test_what_was_read_is_rendered_as_what_was_written(format: str) -> None:
    diagnosis = diagnoses.vision_language()
    read = parse_diagnosis(stored(diagnosis), "d.json")
    again = reports.render(read, format, verbose=True)
    assert again == reports.render(diagnosis, format, verbose=True)


def test_a_diagnosis_without_loose_values_is_read_as_it_was() -> None:
    diagnosis = diagnoses.phi3()
    read = Diagnosis.from_json(diagnosis.to_json())
    assert dataclasses.replace(read, seconds=diagnosis.seconds) == diagnosis


def test_version_1_is_rendered_in_every_format() -> None:
    data = json.loads(VERSION_1.read_text())
    jsonschema.Draft202012Validator(schema("1")).validate(data)
    diagnosis = read_diagnosis(VERSION_1)
    assert diagnosis.verdict == data["verdict"]
    assert diagnosis.applied[0].rule == data["applied"][0]["rule"]
    assert diagnosis.memory_plan is not None
    assert diagnosis.after is not None and diagnosis.after.outcome == "passed"
    jsonschema.Draft202012Validator(schema("2")).validate(stored(diagnosis))
    for format in reports.find_formats():
        text = reports.render(diagnosis, format, verbose=True)
        for part in (data["findings"][0]["rule"], "v_proj"):
            assert part in text, (format, part)
        for note in data["notes"]:
            whole = format in ("full", "html", "json")  # the others hold the findings
            assert not whole or note[:40] in " ".join(text.split()), (format, note)


def test_what_version_1_said_in_sentences_is_read_as_what_it_means() -> None:
    data = json.loads(VERSION_1.read_text())
    data["notes"] = ["no batch with audio: why", "no adapters on x", "4-bit is not proven", "other"]
    data["structure"] |= {
        "own_adapters": ["speech"],
        "input_embeddings_error": "NotImplementedError: not here",
        "input_gradients_error": "it failed",
    }
    data["structure"]["injection"] |= {
        "unmatched": ["target_modules: a: b", "modules_to_save: head"],
        "converted": ["experts -> a.gate, a.down"],
        "not_reloaded_example": "old.name -> new.name",
    }
    seen = data["verification"]["before"]["observations"]
    seen["misfits"] = [
        {"path": "a", "class_name": "B", "put_out": "a tuple", "expected": "a tensor"}
    ]
    seen["idle"] = [
        {"pattern": "a.*", "paths": ["a.0"], "class_name": "B", "why": "zero", "where": "",
         "inside": ""}
    ]  # fmt: skip
    jsonschema.Draft202012Validator(schema("1")).validate(data)
    diagnosis = parse_diagnosis(data, "d.json")
    kinds = [note.kind for note in diagnosis.notes]
    assert kinds == ["not-fed", "not-adapted", "not-proven", "step"]
    assert [note.text for note in diagnosis.notes] == data["notes"]
    structure, before = diagnosis.structure, diagnosis.before
    assert structure is not None and before is not None
    assert structure.built_in_adapters == ("speech",)
    assert structure.input_embeddings_error == ErrorReport("NotImplementedError", "not here")
    assert structure.input_gradients_error == ErrorReport("", "it failed")
    assert structure.injection.unmatched == (
        Unmatched("target_modules", "a: b"), Unmatched("modules_to_save", "head"),
    )  # fmt: skip
    assert structure.injection.converted == (Converted("experts", ("a.gate", "a.down")),)
    assert structure.injection.not_reloaded_example == RenamedTensor("old.name", "new.name")
    assert before.observations.non_linear_outputs[0].output == "a tuple"
    assert before.observations.unused_adapters[0].why == "zero"


def without(data: Any, key: str) -> None:
    del data[key]


def broken(change: Callable[[Any], Any]) -> Any:
    data = stored(diagnoses.phi3())
    changed = change(data)
    return data if changed is None else changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version="9"), "has schema_version '9', this lora-doctor reads"),
        (lambda d: without(d, "schema_version"), "has schema_version None"),
        (lambda d: [d], "has schema_version None"),
        (lambda d: without(d, "timings"), "is not a result of lora-doctor"),
        (lambda d: without(d["findings"][0], "rule"), "is not a result of lora-doctor"),
        (lambda d: d.update(findings=3), "findings has another type"),
        (lambda d: d["findings"][0].update(severity="bad"), "findings[0].severity has another"),
        (lambda d: d["structure"].update(total_parameters="1"), "structure.total_parameters has"),
        (lambda d: d["verification"].update(before=[]), "before has another type"),
        (lambda d: d["recipe"].update(values=3), "is not a result of lora-doctor"),
    ],
)
def test_what_is_no_diagnosis_is_one_line(change: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_diagnosis(broken(change), "d.json")
    assert str(caught.value).startswith("d.json: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 100_000, b"NaN"])
def test_files_that_are_no_json_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_diagnosis(path)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(InputError, match="cannot be read"):
        read_diagnosis(tmp_path / "none.json")


def test_it_is_read_where_nothing_else_was_imported() -> None:
    """Annotations are resolved when it is read: a name that only some other import brings in fails
    in a script that does nothing else, and in no other test."""
    code = f"import lora_doctor; print(lora_doctor.read_diagnosis({str(VERSION_1)!r}).verdict)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "findings"
