"""What is installed, read from metadata and sources, equals what importing it would tell."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lora_doctor.static.installed import devices, environment


def test_versions_are_those_of_the_packages() -> None:
    found = environment.gather_environment()

    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert set(found.packages) == set(environment.PACKAGES)
    torch = pytest.importorskip("torch")
    assert found.version("torch") == torch.__version__
    assert found.version("no-such-package") is None


def test_missing_packages_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("certainly-not-installed-anywhere",))
    assert environment.gather_environment().packages == {"certainly-not-installed-anywhere": None}


def test_lora_config_fields_are_those_of_the_dataclass() -> None:
    """Every recipe key is checked against these, so they must be exact on every release."""
    peft = pytest.importorskip("peft")
    expected = tuple(field.name for field in dataclasses.fields(peft.LoraConfig) if field.init)
    assert environment.lora_config_fields() == expected


def test_known_architectures_are_those_of_transformers() -> None:
    pytest.importorskip("transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert environment.known_architectures() == tuple(sorted(CONFIG_MAPPING_NAMES))


def test_without_the_stack_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """None says "cannot tell"; an empty tuple would say "nothing is allowed"."""
    monkeypatch.setattr(environment, "package_folder", lambda package: None)
    for ask in (environment.lora_config_fields, environment.known_architectures):
        assert ask.__wrapped__() is None


def test_nothing_of_the_stack_is_imported() -> None:
    code = (
        "import sys; from lora_doctor.static.installed import environment as e;"
        "e.gather_environment(); e.lora_config_fields(); e.known_architectures();"
        "bad = {'torch', 'transformers', 'peft', 'huggingface_hub', 'numpy'} & set(sys.modules);"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_devices_are_tried_and_can_be_sent_as_json() -> None:
    pytest.importorskip("torch")
    found = devices.gather_devices()
    assert found.torch and found.reason is None
    assert found.cpu_dtypes["float32"] is None
    assert set(found.cpu_dtypes) == {"float32", "bfloat16", "float16"}
    assert "cpu" in found.bitsandbytes
    assert json.loads(json.dumps(dataclasses.asdict(found)))["torch"] == found.torch


def test_a_broken_torch_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = devices.gather_devices()
    assert found.torch is None
    assert found.reason is not None and "cannot be imported" in found.reason


@pytest.mark.parametrize(
    "source",
    [
        'CONFIG_MAPPING_NAMES = OrderedDict(\n    [\n        ("a", "AConfig"),\n'
        '        # Add configs here\n        (\n            "b-c",\n            "BConfig",\n'
        "        ),\n    ]\n)\n",
        "CONFIG_MAPPING_NAMES = OrderedDict([('a', 'AConfig'), (\"b-c\", 'BConfig')])\n",
        'CONFIG_MAPPING_NAMES: dict[str, str] = {"a": "AConfig"}\n'
        'OTHERS = OrderedDict([("x", "XConfig")])\n'
        'CONFIG_MAPPING_NAMES.update({"b-c": "BConfig"})\n',
        'CONFIG_MAPPING_NAMES = OrderedDict([("a", "AConfig"),\n'
        '    # ("x", "XConfig"),\n    ("b-c", "BConfig"),  # ("y", "YConfig")\n])\n',
        'CONFIG_MAPPING_NAMES = OrderedDict(**{"b-c": "BConfig"}, **CONFIG_MAPPING_NAMES)\n'
        'CONFIG_MAPPING_NAMES.update(pairs("x", "XConfig"))\n'
        'CONFIG_MAPPING_NAMES = OrderedDict([("a", "AConfig")])\nDEFAULT = ("z", "ZConfig")\n',
    ],
    ids=["pairs", "quotes", "dict", "comments", "calls"],
)
def test_architectures_are_read_however_the_table_is_written(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = tmp_path / "models" / "auto"
    auto.mkdir(parents=True)
    (auto / "configuration_auto.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(environment, "package_folder", lambda package: tmp_path)
    environment.known_architectures.cache_clear()
    try:
        assert environment.known_architectures() == ("a", "b-c")
    finally:
        environment.known_architectures.cache_clear()
