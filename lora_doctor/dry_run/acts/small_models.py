"""A small model of a class and a config: made once, saved, and loaded as the user loads theirs."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting

#: Parameters that the inner layers of a small model may have.
_INNER = 5_000_000
#: The width that the rows of a vocabulary have at first, and the tables that are that long.
_WIDTH, _TABLES = 64, 2
#: Where a config holds the attention that was asked for.
_ATTENTION = "_attn_implementation_internal"
#: Parameters of a model that keeps its widths; six times as many where it cannot be smaller.
_WITH_WIDTHS = 40_000_000


@dataclass(frozen=True)
class Small:
    """``folder``: what ``from_pretrained`` takes. ``steps``: what was changed in the config."""

    folder: Path
    steps: tuple[str, ...]


#: Models that were loaded in this process, and what for.
_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
#: Likewise the widths of those that they stand for.
_widths: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def remember(model: Any, name: str, config: Any = None) -> None:
    """That this model stands for the one of this name, and of this config."""
    _names[model] = name
    width = _width(config)
    if width:
        _widths[model] = width


def width_share(model: Any) -> tuple[float, int]:
    """The width of a model as a share of that of the model that it stands for, and the width; 1 and
    0 where one of them is not known."""
    for part in model.modules():
        if part in _widths:
            width = _width(getattr(part, "config", None))
            return (width / _widths[part], width) if width else (1.0, 0)
    return 1.0, 0


def _width(config: Any) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    width = getattr(text, "hidden_size", None)
    return width if isinstance(width, int) else 0


def name_of(model: Any) -> str | None:
    """What the model stands for; ``None`` where it was made otherwise."""
    return _names.get(model)


def of(acting: Acting, model_class: Any, config: Any) -> Small:
    """The small model of this class and config; every process of a run has the same one.

    Raises:
        DryRunEnd: none can be made, which ends the run.
    """
    key = _key(model_class, config)
    folder = acting.session.models / key
    if not folder.exists():
        _make(acting, model_class, config, folder)
    steps = (folder / "steps.txt").read_text(encoding="utf-8").splitlines()
    return Small(folder, tuple(steps))


def _key(model_class: Any, config: Any) -> str:
    text = f"{model_class.__module__}.{model_class.__qualname__}\n{config.to_json_string()}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _make(acting: Acting, model_class: Any, config: Any, folder: Path) -> None:
    from lora_doctor.model.zero_weights import wake_zero_weights
    from lora_doctor.tiny_model.shrink.shrink import DATA_ROLES, WIDTH_ROLES, ShrinkError, shrink
    from lora_doctor.tiny_model.statistics import fit_statistics

    native = _native_dtype(config)
    widths = bool(acting.session.options.get("widths"))
    try:
        shrunk = shrink(
            _without_flash(config),
            lambda small: model_class(small),
            max_parameters=_WITH_WIDTHS if widths else _INNER + _rows(config) * _WIDTH * _TABLES,
            keep_roles=DATA_ROLES | WIDTH_ROLES if widths else DATA_ROLES,
        )
    except ShrinkError as error:
        kind = (
            "with the widths of the real one, which the command's own code has, " if widths else ""
        )
        acting.stop(f"no small {model_class.__name__} {kind}can be made: {error.reason}")
        return
    wake_zero_weights(shrunk.model)
    if shrunk.batch is not None:
        fit_statistics(shrunk.model, shrunk.batch)
    if hasattr(shrunk.model.config, "problem_type"):
        # A forward with labels of ours has set which loss the head takes: the user's labels decide.
        shrunk.model.config.problem_type = getattr(config, "problem_type", None)
    made = Path(tempfile.mkdtemp(dir=acting.session.models))
    model = shrunk.model if native is None else shrunk.model.to(native)
    if hasattr(model, "should_save_on_this_rank"):  # else only the first process saves weights
        model.should_save_on_this_rank = lambda is_main_process: True
    model.eval().save_pretrained(made)
    (made / "steps.txt").write_text("\n".join(shrunk.steps), encoding="utf-8")
    try:
        os.rename(made, folder)
    except OSError:  # another process of this run was first
        shutil.rmtree(made, ignore_errors=True)


def _without_flash(config: Any) -> Any:
    """A copy whose class picks its attention by itself: flash attention may not be installed."""
    own = copy.deepcopy(config)
    for part in (own, *(one for one in vars(own).values() if hasattr(one, _ATTENTION))):
        if "flash" in str(getattr(part, _ATTENTION, None)):
            setattr(part, _ATTENTION, None)
    return own


def _native_dtype(config: Any) -> Any:
    import torch

    for part in (config, getattr(config, "text_config", None)):
        for name in ("dtype", "torch_dtype"):
            value = getattr(part, name, None)
            if isinstance(value, str):
                value = getattr(torch, value, None)
            if isinstance(value, torch.dtype):
                return value
    return None


def _rows(config: Any) -> int:
    """Rows of all vocabularies and tables of positions, which keep their sizes."""
    from lora_doctor.tiny_model.config_roles import flat_ints, role_of, tree

    rows = 0
    for node in tree(copy.deepcopy(config)).walk():
        for key, value in node.values.items():
            if role_of(key, value) in ("vocab", "positions", "tokens"):
                rows += sum(number for number in flat_ints(value) if 0 < number < 2_000_000)
    return rows
