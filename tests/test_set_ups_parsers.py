"""The frameworks' own parsers read the same set-ups: they accept each file, before and after edits
and fixes, and make of it what lora-doctor makes of it. ``nox -s set_ups`` installs them; skipped
without."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.prescription.write_fix import Plan
from lora_doctor.recipe.edit import Edit
from lora_doctor.recipe.files.document import read_document
from lora_doctor.recipe.files.format import framework_of
from lora_doctor.recipe.files.read_write import apply_edits, read_recipe
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.installed.framework_fields import installed_fields
from tests.set_up_files import TWINS, Twin

EDITS = (
    Edit("r", 4),
    Edit("lora_dropout", 0.25),
    Edit("target_modules", ["o_proj", "down_proj"]),
    Edit("per_device_train_batch_size", 3),
    Edit("learning_rate", 0.003),
)


def words_of(path: Path) -> list[str]:
    """The set-up as words of a command line, those of the script behind those of its file."""
    words: list[str] = []
    for name, value in read_document(path).entries.items():
        if value is not None and name not in ("env", "ENV"):
            items = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(str(item) for item in items)]
    return words


def by_llamafactory(path: Path) -> dict[str, Any]:
    parser = importlib.import_module("llamafactory.hparams.parser")
    entries = {**read_document(path).entries, "use_cpu": True}  # no GPU here, which bf16 asks for
    words = [*words_of(path), "--use_cpu", "true"]
    model, data, training, tuning, _ = parser.get_train_args(
        words if path.suffix == ".sh" else entries
    )
    targets = tuning.lora_target
    return {
        "r": tuning.lora_rank, "lora_alpha": tuning.lora_alpha,
        "lora_dropout": tuning.lora_dropout,
        "target_modules": "all-linear" if targets == ["all"] else targets,
        "modules_to_save": tuning.additional_target, "use_dora": tuning.use_dora,
        "gradient_checkpointing": not model.disable_gradient_checkpointing,
        "dtype": str(model.compute_dtype).removeprefix("torch."), "max_length": data.cutoff_len,
        "learning_rate": training.learning_rate, "packing": data.packing,
        "per_device_train_batch_size": training.per_device_train_batch_size,
    }  # fmt: skip


def by_axolotl(path: Path) -> dict[str, Any]:
    schemas = importlib.import_module("axolotl.utils.schemas.config")
    entries = read_document(path).entries
    found = schemas.AxolotlInputConfig(**entries)
    targets = found.lora_target_modules
    return {
        "r": found.lora_r, "lora_alpha": found.lora_alpha, "lora_dropout": found.lora_dropout,
        "target_modules": "all-linear" if found.lora_target_linear else targets,
        "modules_to_save": found.lora_modules_to_save, "max_length": found.sequence_len,
        "learning_rate": float(found.learning_rate), "packing": found.sample_packing,
        "per_device_train_batch_size": found.micro_batch_size,
        "attn_implementation": found.attn_implementation,
    }  # fmt: skip


def by_trl(path: Path) -> dict[str, Any]:
    trl = importlib.import_module("trl")
    scripts = importlib.import_module("trl.scripts.utils")
    parser = scripts.TrlParser((trl.ScriptArguments, trl.SFTConfig, trl.ModelConfig))
    words = words_of(path)
    if path.suffix == ".yaml":
        words = ["--config", str(path)]
    words += ["--use_cpu", "true"]  # no GPU here, which bf16 asks for
    _, training, model = parser.parse_args_and_config(words)
    config = trl.get_peft_config(model)
    assert config is not None, "a healthy set-up trains an adapter"
    targets = config.target_modules
    return {
        "r": config.r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout,
        "target_modules": sorted(targets) if isinstance(targets, set) else targets,
        "modules_to_save": config.modules_to_save, "dtype": model.dtype,
        "gradient_checkpointing": training.gradient_checkpointing,
        "learning_rate": training.learning_rate, "packing": training.packing,
        "max_length": training.max_length, "bf16": training.bf16,
        "per_device_train_batch_size": training.per_device_train_batch_size,
    }  # fmt: skip


def by_ms_swift(path: Path) -> dict[str, Any]:
    arguments = importlib.import_module("swift.arguments")
    utils = importlib.import_module("swift.utils")

    class Parsed(arguments.SftArguments):  # type: ignore[name-defined,misc]
        """Without what fetches the model."""

        def __post_init__(self) -> None:
            if self.target_regex:
                self.target_modules = self.target_regex

    found, rest = utils.parse_args(Parsed, words_of(path))
    assert not rest, f"ms-swift refuses {rest}"
    targets = found.target_modules
    return {
        "r": found.lora_rank, "lora_alpha": found.lora_alpha, "lora_dropout": found.lora_dropout,
        "target_modules": "all-linear" if targets == ["all-linear"] else targets,
        "modules_to_save": found.modules_to_save or None, "dtype": found.torch_dtype,
        "gradient_checkpointing": found.gradient_checkpointing, "packing": found.packing,
        "per_device_train_batch_size": found.per_device_train_batch_size,
    }  # fmt: skip


PARSERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "llamafactory": by_llamafactory,
    "axolotl": by_axolotl,
    "trl": by_trl,
    "ms_swift": by_ms_swift,
}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=1) as shared:
        yield shared


def _parsed(twin: Twin, path: Path) -> tuple[Recipe, dict[str, Any]]:
    document = read_document(path)
    framework = framework_of(document.format)
    assert framework is not None
    if installed_fields(framework.sources) is None:
        pytest.skip(f"{document.format.NAME} is not installed")
    return document.read(), PARSERS[twin.name.partition("/")[0]](path)


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.id)
def test_the_framework_reads_what_we_read(twin: Twin, tmp_path: Path) -> None:
    """Its own parser accepts the set-up, and decides the same."""
    recipe, theirs = _parsed(twin, twin.copy(tmp_path, broken=False))
    _agree(recipe, theirs)


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.id)
def test_the_framework_accepts_what_we_write(twin: Twin, tmp_path: Path) -> None:
    """And reads the edited values."""
    path = twin.copy(tmp_path, broken=False)
    if not twin.given:  # what a script hands on is edited where it stands, in two files
        apply_edits(path, EDITS)
    recipe, theirs = _parsed(twin, path)
    _agree(recipe, theirs)
    if not twin.given:
        assert read_recipe(path).get("r") == 4 and theirs["r"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.id)
def test_the_framework_accepts_what_a_fix_writes(
    twin: Twin, tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mended file is one that its own parser takes, and trains adapters with what we say."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "healthy").mkdir()
    _, healthy = _parsed(twin, twin.copy(tmp_path / "healthy", broken=False))
    path = twin.copy(tmp_path, broken=True)
    (tmp_path / "out").mkdir()
    plan = Plan.make(path, str(tmp_path / "out"), True)
    plan.write(plan.with_diff(lora_doctor.fix(path, unsafe_fixes=twin.unsafe, worker=worker)))
    recipe, theirs = _parsed(twin, path)
    _agree(recipe, theirs)
    for key, value in healthy.items():
        meant = twin.rule in ("LD201", "LD202", "LD209") and key in ("target_modules",
                                                                     "modules_to_save")  # fmt: skip
        assert meant or theirs[key] == value, key


def _agree(recipe: Recipe, theirs: dict[str, Any]) -> None:
    for key, value in theirs.items():
        ours = recipe.get(key)
        if isinstance(value, (list, set)) and isinstance(ours, list):
            assert sorted(ours) == sorted(value), key
        elif key == "target_modules" and isinstance(ours, list) and isinstance(value, str):
            assert value.endswith(f".{ours[0]}"), key  # an expression of one name
        else:
            assert ours == value or (not ours and not value), (key, ours, value)
