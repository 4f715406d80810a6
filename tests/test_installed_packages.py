"""Installed packages that do not fit each other: what the files tell is what importing raises."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import lora_doctor
from lora_doctor.static.installed import import_chain, pair_repair
from tests.package_copy import python

_FOLDERS = Path(__file__).parent / "installed"
_TOLD = (
    "from lora_doctor.static.installed.import_chain import missing_imports\n"
    "print([one.message for one in missing_imports() if one.root == 'import peft'])"
)
_LORA = (
    "import peft, torch\n"
    "model = torch.nn.Sequential(torch.nn.Linear(2, 2))\n"
    "peft.get_peft_model(model, peft.LoraConfig(target_modules=['0']))"
)


def _with(folder: str) -> Path:
    here = Path(lora_doctor.__file__).parent.parent
    return Path(f"{_FOLDERS / folder}{os.pathsep}{here}")


@pytest.mark.slow
def test_an_import_fails_with_the_name_that_was_told(tmp_path: Path) -> None:
    """On the way that Python takes, the first name that is missing."""
    path = _with("older_accelerate")
    told = python(path, "-c", _TOLD, cwd=tmp_path).stdout.strip().strip("[]\"'")
    raised = python(path, "-c", "import peft", cwd=tmp_path)
    assert raised.returncode
    assert told and told in raised.stderr


@pytest.mark.slow
def test_a_torchao_that_is_refused_ends_every_lora(tmp_path: Path) -> None:
    """PEFT raises for the version that LD707 names, on a layer that has nothing of torchao."""
    from lora_doctor.static.installed.refused_versions import LORA

    path = _with("older_torchao")
    told = python(
        path, "-c",
        "from lora_doctor.static.installed.refused_versions import refused_versions\n"
        "print(*[(one.by, one.package) for one in refused_versions()])", cwd=tmp_path,
    )  # fmt: skip
    raised = python(path, "-c", _LORA, cwd=tmp_path)
    assert (str((LORA, "torchao")) in told.stdout) == ("version of torchao" in raised.stderr)


@pytest.mark.slow
def test_guarded_imports_are_no_finding(tmp_path: Path) -> None:
    """What the reader passes over, Python passes over."""
    done = python(_with("guarded_imports"), "-c", "import bitsandbytes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_healthy_stack_has_nothing() -> None:
    """The packages that these tests run with are imported by the others."""
    pytest.importorskip("peft")
    assert import_chain.missing_imports() == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from transformers import (\n    A,  # one (of two)\n    B as C,\n)\n",
         [("transformers", "A", 1), ("transformers", "B", 1)]),
        ("x = 1\nfrom .models import A, \\\n    B\nimport peft.utils as u, os\n",
         [("trl.models", "A", 2), ("trl.models", "B", 2), ("peft.utils", None, 4),
          ("os", None, 4)]),
        ("if x:\n    from transformers import A\n", []),
        ("from transformers import *\n", [("transformers", "*", 1)]),
    ],
)  # fmt: skip
def test_imports_at_the_margin(text: str, found: list[tuple[str, str | None, int]]) -> None:
    read = import_chain._read_imports(text, "trl", is_package=True)
    assert [(item.module, item.name, item.line) for item in read] == found


def test_a_name_that_a_package_gives_as_a_dummy_imports_nothing() -> None:
    """transformers 4 has classes for TensorFlow in its table; without it they are dummies, whatever
    the file that would define them imports."""
    guarded = (
        "try:\n    if not is_{0}_available():\n        raise OptionalDependencyNotAvailable()\n"
        "except OptionalDependencyNotAvailable:\n    from .utils import dummies\nelse:\n"
        '    _import_structure["{0}_models"] = ["{1}"]\n'
    )
    text = (
        '_import_structure = {\n    "plain": ["Plain"],\n}\n'
        + guarded.format("peft", "Model")
        + guarded.format("tf_of_nobody", "TFModel")
        + guarded.format("peft", "Other")
    )
    assert import_chain._read_lazy_table(text, "lazy") == {
        "Plain": "lazy.plain", "Model": "lazy.peft_models", "Other": "lazy.peft_models",
    }  # fmt: skip


def test_a_text_that_looks_like_an_import_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A documented example at the margin is no import, though the pattern finds it."""
    package = tmp_path / "bitsandbytes"
    package.mkdir()
    (package / "__init__.py").write_text(
        '"""Use it so:\n\nfrom transformers import NoSuchName\n"""\nimport os\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for cached in (import_chain._margin_imports, import_chain.module_file):
        cached.cache_clear()
    monkeypatch.setattr(import_chain, "module_file", {"bitsandbytes": package / "__init__.py"}.get)
    assert import_chain._first_missing("bitsandbytes", None) is None


@pytest.mark.parametrize(
    ("known", "installed", "older"),
    [("5.17.0", "4.37.2", "transformers"), ("4.54.0", "5.24.0", "peft"), (None, "5.24.0", None)],
)
def test_the_older_one_of_a_pair(
    known: str | None, installed: str, older: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that compares with versions newer than the installed one is the newer."""
    from packaging.version import Version

    newest = Version(known) if known else None
    monkeypatch.setattr(pair_repair, "_newest_known", lambda importer, provider: newest)
    monkeypatch.setattr(pair_repair, "installed_version", lambda package: installed)
    pair_repair.older_of.cache_clear()
    assert pair_repair.older_of("peft", "transformers") == older
    pair_repair.older_of.cache_clear()
