"""The wheel, installed where no training stack is and outside the checkout; and light imports."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cli import ROOT

PACKAGES = ("lora_doctor", "rules", "reports")
HEAVY = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy")


def run(*command: str | Path, cwd: Path, expect: int = 0) -> str:
    """What the command prints on stdout; nothing of the checkout is on its path."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**environment, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == expect, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local model folder: a config and a safetensors file of one tensor."""
    folder = tmp_path_factory.mktemp("model")
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 256, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tensor = {"dtype": "BF16", "shape": [256, 64], "data_offsets": [0, 256 * 64 * 2]}
    header = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(256 * 64 * 2)
    (folder / "model.safetensors").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves files behind, and a stale build/ would put
    files into the next wheel that are gone from the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", built, ".", cwd=source)
    (found,) = built.glob("lora_doctor-*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment with the wheel and its base dependencies, nothing else."""
    place = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", place / "env", cwd=place)
    python = place / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", wheel, cwd=place)
    return python


@pytest.mark.network
def test_everything_is_inside_and_nothing_beside(wheel: Path) -> None:
    """`rules` and `reports` are names of other people's packages on PyPI."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"lora_doctor"}
    places = {"lora_doctor": "lora_doctor", "rules": "lora_doctor/rules",
              "reports": "lora_doctor/reports"}  # fmt: skip
    sources = {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in places.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources - names == set(), "in the checkout, not in the wheel"
    assert names - sources == set(), "in the wheel, not in the checkout"
    assert "lora_doctor/py.typed" in names


@pytest.mark.network
def test_without_a_training_stack(python: Path, model: Path, tmp_path: Path) -> None:
    """A CI image without torch: what needs no torch works, the rest says what is missing."""
    command = python.parent / "lora-doctor"
    installed = json.loads(run(python, "-m", "pip", "list", "--format", "json", cwd=tmp_path))
    assert not {package["name"] for package in installed} & set(HEAVY)
    assert "check" in run(command, "--help", cwd=tmp_path)
    assert "LD201" in run(command, "rules", cwd=tmp_path)
    assert "What happens" in run(command, "explain", "LD201", cwd=tmp_path)
    run(command, "env", cwd=tmp_path)
    for name in ("full", "concise", "json", "html"):
        run(command, "check", model, "--depth", "static", "--output-format", name, cwd=tmp_path)
    run(command, "check", model, "--depth", "tiny", cwd=tmp_path, expect=2)
    code = "import lora_doctor.rules as r; print(r.__file__)"
    assert "site-packages" in run(python, "-c", code, cwd=tmp_path)
    for name in ("rules", "reports"):
        code = f"import importlib.util as u; print(u.find_spec({name!r}))"
        assert run(python, "-c", code, cwd=tmp_path).strip() == "None"


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        ["--help"],
        ["check", "--help"],
        ["rules"],
        ["explain", "LD201"],
        ["check", "MODEL", "--depth", "static"],
        ["check", "MODEL", "--depth", "static", "--output-format", "json"],
    ],
    ids=lambda value: " ".join(value) if value else "import lora_doctor",
)
def test_what_is_light_imports_nothing_heavy(arguments: list[str] | None, model: Path) -> None:
    """The import of torch costs seconds; who asks for help or reads files does not pay them."""
    code = "import sys, json; import lora_doctor; before = set(sys.modules)\n"
    if arguments is not None:
        words = [str(model) if word == "MODEL" else word for word in arguments]
        code += f"from lora_doctor.cli.main import main; assert main({words!r}) in (0, 1)\n"
    code += f"print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))), file=sys.stderr)\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "name", ["rules", "reports", "lora_doctor.lora_doctor", "lora_doctor.tests"]
)
def test_a_checkout_as_working_directory_brings_no_second_copy(name: str) -> None:
    """Its folders are on the import path then: a rule would be two classes of one code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and f"{name}" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith(("ImportError", "ModuleNotFoundError"))
