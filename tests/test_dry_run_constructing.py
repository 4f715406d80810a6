"""Models that are made by calling their class: which of them the guest makes, and which are a part
of another model or the user's own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_doctor.dry_run.acts import constructing
from lora_doctor.dry_run.captured import Captured
from lora_doctor.dry_run.real_widths import has_real_widths
from lora_doctor.guest.replacing import Replacements

_LIBRARY = """
class Base:
    def __init__(self, config):
        self.config = config

def define():
    class Part(Base):
        def __init__(self, config):
            super().__init__(config)
            self.width = config.width

    class Whole(Base):
        def __init__(self, config, more=0):
            super().__init__(config)
            self.part = Part(config)
            self.more = more

    return Part, Whole
"""


class Config:
    def __init__(self, width: int) -> None:
        self.width = width

    def to_json_string(self) -> str:
        return str(self.width)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package with model classes, installed as far as anybody can see."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "models_of_a_library.py").write_text(_LIBRARY, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    import importlib

    yield importlib.import_module("models_of_a_library")
    sys.modules.pop("models_of_a_library", None)


def test_the_outermost_model_of_a_library_is_made_by_the_guest(library: Any) -> None:
    made: list[tuple[str, int]] = []

    def small(original: Any, model: Any, config: Any, more: Any, named: Any) -> None:
        made.append((type(model).__name__, config.width))
        original(model, Config(8), *more, **named)

    acting: Any = SimpleNamespace(replaced=Replacements())
    constructing.watch(acting, library.Base, small)
    part, whole = library.define()

    class Mine(library.Base):  # type: ignore[name-defined, misc]
        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.inner = whole(config, more=3)

    assert whole(Config(64)).part.width == 8
    assert part(config=Config(64)).width == 8
    mine = Mine(Config(64))
    assert (mine.config.width, mine.inner.part.width, mine.inner.more) == (64, 8, 3)
    assert made == [("Whole", 64), ("Part", 64), ("Whole", 64)]
    acting.replaced.undo()
    assert library.define()[0](Config(64)).width == 64


@pytest.mark.parametrize(
    ("message", "theirs"),
    [
        ("mat1 and mat2 shapes cannot be multiplied (8x64 and 768x3)", True),
        ("The size of tensor a (64) must match the size of tensor b (768) at dimension 2", True),
        ("mat1 and mat2 shapes cannot be multiplied (8x100 and 768x3)", False),
        ("Expected input batch_size (64) to match target batch_size (8).", False),
        ("row 64 of 768 has no label", False),
    ],
)
def test_widths_of_the_real_model_in_the_users_code(message: str, theirs: bool) -> None:
    records = [
        {"kind": "model", "time": 1, "steps": ["width: hidden_size 768 -> 64, x 3072 -> 128"]},
        {"kind": "error", "time": 2, "type": "RuntimeError", "message": message, "own": [],
         "traceback": "", "steps": 0},
    ]  # fmt: skip
    assert has_real_widths(Captured(tuple(records))) is theirs
