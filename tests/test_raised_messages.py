"""Where an installed package says a message, read off its sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_doctor.static.installed import raised_messages
from lora_doctor.static.installed.raised_messages import raised_message
from tests import cli

SOURCE = """
import warnings


class Config:
    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"`rank` has to be at least one for this kind, but it is {self.rank}.")
        elif self.wide:
            message = (
                f"A wide adapter of {self.rank} needs a base model whose hidden size "
                f"is a multiple of {self.block}"
            )
            raise ValueError(message + ", or no blocks at all.")


def load(name):
    assert name.isascii(), "The name of an adapter has to consist of plain letters only"
    if not name:
        raise KeyError("There is no adapter called %s among those that were loaded" % name)
    else:
        warnings.warn("An adapter named {} replaces the one that was there before".format(name))
    raise RuntimeError("short text")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed PEFT of one file; none of the other packages."""
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "config.py").write_text(SOURCE)
    folders = {"peft": tmp_path / "peft"}
    monkeypatch.setattr(raised_messages, "package_folder", folders.get)
    return tmp_path


@pytest.mark.parametrize(
    ("message", "function", "condition"),
    [
        (
            "ValueError: rank has to be at least one for this kind, but it is -3.",
            "Config.__post_init__", "self.rank < 1",
        ),
        (
            "a log line\nValueError: A wide adapter of 8 needs a base model whose hidden\n"
            "size is a multiple of 7, or no blocks at all.",
            "Config.__post_init__", "self.wide",
        ),
        (
            "KeyError: 'There is no adapter called sql among those that were loaded'",
            "load", "not name",
        ),
        (
            "An adapter named sql replaces the one that was there before",
            "load", "not (not name)",
        ),
        (
            "AssertionError: The name of an adapter has to consist of plain letters only",
            "load", "not (name.isascii())",
        ),
    ],
)  # fmt: skip
def test_the_place_and_its_condition(
    package: Path, message: str, function: str, condition: str
) -> None:
    found = raised_message(message)
    assert found is not None and (found.function, found.condition) == (function, condition)
    line = SOURCE.splitlines()[found.line - 1]
    assert found.place == f"peft/config.py:{found.line}"
    assert ("warn" in line) == found.warns and found.others == 0


@pytest.mark.parametrize(
    "message",
    [
        "RuntimeError: short text",
        "ValueError: rank has to be at least one",
        "AttributeError: 'Config' object has no attribute 'rank'",
        "It does not work for my model and I have no idea why that is.",
        "",
    ],
)
def test_other_texts_are_nobodys(package: Path, message: str) -> None:
    assert raised_message(message) is None


def test_explain_tells_where_the_installed_peft_raises_what_no_rule_knows() -> None:
    pytest.importorskip("peft")
    text = "ValueError: Provided path (out/adapter.bin) should be a directory, not a file"
    result = cli.lora_doctor("explain", text)
    assert result.code == 2
    assert "no rule knows this message. The installed peft" in result.one_line_error
    assert "raises it in peft/config.py:" in result.err and "where `" in result.err
