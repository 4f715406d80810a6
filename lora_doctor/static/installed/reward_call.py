"""How the installed trainers of TRL call a reward function: read, never imported."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.static.installed.environment import installed_tree, package_folder
from lora_doctor.static.installed.trainer_calls import file_of_trainer
from lora_doctor.static.python_source import last_name, walk

_FUNCTION = re.compile(r"reward_func\w*")
_MORE = "reward_kwargs"


@dataclass(frozen=True)
class RewardCall:
    """The call of a reward function in a trainer."""

    #: Names of the arguments that are always passed.
    names: tuple[str, ...]
    #: Names that may be passed besides them and the columns of the rows.
    others: tuple[str, ...]
    #: File from the package on, and line.
    place: str


@functools.cache
def reward_call(trainer: str) -> RewardCall | None:
    """Of ``trl.GRPOTrainer``; ``None`` where TRL is not installed, or its call is another one."""
    folder = package_folder("trl")
    file = file_of_trainer(trainer)
    tree = installed_tree(folder / file) if folder is not None else None
    if tree is None:
        return None
    for call in _calls(tree):
        names = tuple(one.arg for one in call.keywords if one.arg is not None)
        place = f"trl/{file}:{call.lineno}"
        return RewardCall(names, tuple(dict.fromkeys(_added(tree))), place)
    return None


def _calls(tree: ast.Module) -> Iterator[ast.Call]:
    """Calls by name with the completions, the names that are passed and ``**reward_kwargs``."""
    for node in walk(tree):
        if not isinstance(node, ast.Call) or node.args:
            continue
        if _FUNCTION.fullmatch(last_name(node.func)) is None:
            continue
        if "completions" in [one.arg for one in node.keywords] and any(
            one.arg is None and getattr(one.value, "id", "") == _MORE for one in node.keywords
        ):
            yield node


def _added(tree: ast.Module) -> Iterator[str]:
    """``trainer_state`` of ``reward_kwargs["trainer_state"] = …``."""
    for node in walk(tree):
        if not isinstance(node, ast.Subscript) or getattr(node.value, "id", "") != _MORE:
            continue
        if isinstance(node.slice, ast.Constant) and isinstance(node.ctx, ast.Store):
            yield str(node.slice.value)
