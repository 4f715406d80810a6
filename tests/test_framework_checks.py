"""What a framework's own checks refuse, read off their source: held against the parsers."""

from __future__ import annotations

import ast
import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lora_doctor.recipe.files.format import framework_named, remarks_of
from lora_doctor.static.installed.framework_checks import Check, Condition, Reader

#: What is tried for an argument that is on, by its type.
_ON = (True, 1, "steps", ["x"], {"x": 1}, 0.5)
_OPPOSITE = {"==": "!=", "!=": "==", "in": "not in", "not in": "in", "<": ">=", ">": "<=",
             "<=": ">", ">=": "<"}  # fmt: skip


def _ways(condition: Condition, holds: bool = True) -> list[list[tuple[str, Any]]]:
    """Ways in which a condition holds: each argument with the values to try (``None``: without)."""
    operation, *operands = condition
    if operation == "not":
        return _ways(operands[0], not holds)
    if operation in ("and", "or"):
        parts = [_ways(one, holds) for one in operands]
        if (operation == "and") == holds:
            return [list(itertools.chain(*one)) for one in itertools.product(*parts)]
        return list(itertools.chain(*parts))
    operation, name = operation.removeprefix("get "), operands[0]
    if operation in ("is", "has"):
        return [[(name, _ON if holds else (None,))]]
    value = operands[1]
    operation = operation if holds else _OPPOSITE[operation]
    tried: dict[str, tuple[Any, ...]] = {
        "==": (value,), "in": tuple(value) if operation == "in" else (),
        "!=": _ON if value is None else (None, "full", "x"), "not in": (None, "full"),
    }  # fmt: skip
    if operation in tried:
        return [[(name, tried[operation])]]
    return [[(name, (value + 1, 0.5) if ">" in operation else (value - 0.5,))]]


def _entries(condition: Condition) -> Iterator[dict[str, Any]]:
    for way in _ways(condition):
        for values in itertools.islice(itertools.product(*(tried for _, tried in way)), 200):
            yield {name: value for (name, _), value in zip(way, values, strict=True)
                   if value is not None}  # fmt: skip


def _by_axolotl() -> tuple[dict[str, Any], Callable[[dict[str, Any]], object]]:
    schemas = importlib.import_module("axolotl.utils.schemas.config")
    base = {"base_model": "x", "datasets": [{"path": "x", "type": "alpaca"}], "micro_batch_size": 1,
            "gradient_accumulation_steps": 1, "num_epochs": 1, "learning_rate": 1e-4}  # fmt: skip
    return base, lambda entries: schemas.AxolotlInputConfig(**entries)


def _by_llamafactory() -> tuple[dict[str, Any], Callable[[dict[str, Any]], object]]:
    parser = importlib.import_module("llamafactory.hparams.parser")
    base = {"model_name_or_path": "x", "dataset": "x", "template": "default", "output_dir": "x",
            "do_train": True, "use_cpu": True, "report_to": "none"}  # fmt: skip
    return base, parser.get_train_args


@pytest.mark.parametrize(
    ("name", "by"), [("axolotl", _by_axolotl), ("LLaMA-Factory", _by_llamafactory)],
    ids=["axolotl", "llamafactory"],
)  # fmt: skip
def test_the_parser_refuses_what_its_checks_do(
    name: str, by: Callable[[], tuple[dict[str, Any], Callable[[dict[str, Any]], object]]]
) -> None:
    """Whatever a check applies to is refused, most of it in the words of the check."""
    fields = framework_named(name).fields()
    assert fields is not None
    if not fields.installed:
        pytest.skip(f"{name} is not installed")
    base, parse = by()
    in_its_words = 0
    for check in fields.checks:
        words = check.message.partition(": ")[2].partition("...")[0][:50]
        said = set()
        for given in _entries(check.condition):
            entries = {name: value for name, value in base.items() if name not in check.names}
            if not check.applies({**entries, **given}, fields.defaults):
                continue
            try:
                parse({**entries, **given})
            except ImportError:
                continue  # a package of its own that is missing here
            except (ValueError, TypeError, AssertionError) as error:
                said.add(words in str(error))
            else:
                raise AssertionError(f"{check} applies to {given}, which is accepted")
            if True in said:
                break
        in_its_words += True in said
    assert in_its_words > 2 / 3 * len(fields.checks)


@pytest.mark.parametrize(
    ("name", "entries", "refused"),
    [
        ("axolotl", {"warmup_steps": 10, "warmup_ratio": 0.1}, ["warmup_steps", "warmup_ratio"]),
        ("axolotl", {"warmup_steps": 10, "warmup_ratio": 0.0}, []),
        ("axolotl", {"warmup_steps": 10, "warmup_ratio": None}, []),
        ("axolotl", {"base_model": "x"}, []),  # data sets may be named on the command line
        ("axolotl", {"batch_size": 8, "gradient_accumulation_steps": 2},
         ["gradient_accumulation_steps", "batch_size"]),
        ("LLaMA-Factory", {"stage": "rm", "load_best_model_at_end": "true"},
         ["stage", "load_best_model_at_end"]),
        ("LLaMA-Factory", {"stage": "rm", "load_best_model_at_end": "false"}, []),
        ("LLaMA-Factory", {"mask_history": True, "train_on_prompt": True},
         ["mask_history", "train_on_prompt"]),
        ("LLaMA-Factory", {"use_galore": True}, ["use_galore"]),  # LoRA is the default
        ("LLaMA-Factory", {"use_galore": True, "finetuning_type": "full"}, []),
        ("LLaMA-Factory", {"streaming": True, "val_size": "0.1", "max_steps": "9"},
         ["streaming", "val_size"]),
    ],
)  # fmt: skip
def test_entries_are_refused_as_by_its_checks(
    name: str, entries: dict[str, Any], refused: list[str]
) -> None:
    """Also where the framework is not installed, and a command line writes every value as text."""
    found = [one for one in remarks_of(name, entries) if one.kind == "refused"]
    assert [list(one.names) for one in found] == ([refused] if refused else [])


_SOURCE = """
def __post_init__(self):
    if self.a is None:
        self.changed = 1
    if self.a and self.b != "x":
        raise ValueError("both")
    elif self.c > 0.5:
        raise ValueError(f"c of {self.c}")
    if self.changed:
        raise ValueError("of what it sets itself")
    if self.a and somewhere.else_():
        raise ValueError("of something else")
    for one in self.b:
        if self.c:
            raise ValueError("in a loop")
    if self.d:
        return
    if self.b:
        raise ValueError("without d")
    if somewhere.else_():
        return
    if self.a:
        raise ValueError("perhaps")
"""


def test_a_check_is_read_where_its_whole_condition_is_known() -> None:
    (function,) = ast.parse(_SOURCE).body
    assert isinstance(function, ast.FunctionDef)
    reader = Reader(frozenset({"a", "b", "c", "d", "changed"}))
    reader.read(function, "file.py")
    assert [(one.message, one.names) for one in reader.checks] == [
        ("ValueError: both", ("a", "b")),
        ("ValueError: c of ...", ("a", "b", "c")),
        ("ValueError: without d", ("d", "b")),
    ]
    both, of_c, without = reader.checks
    assert both.applies({"a": 1}, {"b": None}) and not both.applies({"a": 1, "b": "x"}, {})
    assert not both.applies({"a": 1}, {}), "a default that is not known"
    assert of_c.applies({"a": 0, "c": "0.75"}, {"b": None})
    assert without.applies({"d": "false", "b": 1}, {})
    assert all(Check.from_json(one.to_json()) == one for one in reader.checks)
