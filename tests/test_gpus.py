"""GPUs by name: what they have, what fits, and what they cannot compute."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_doctor.errors import InputError
from lora_doctor.recipe.gpus import find_gpu, gpu_names, gpus_of, known_gpus, named_gpus
from lora_doctor.recipe.recipe import Recipe, make_recipe
from lora_doctor.results.memory_plan import MemoryPart, MemoryPlan, MemoryVariant, PlannedGpu
from lora_doctor.rules.ld704_does_not_fit import DoesNotFit
from lora_doctor.text import GIB


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_doctor", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_every_card_of_the_file_has_less_than_its_data_sheet_says_and_a_source() -> None:
    for gpu in known_gpus():
        assert 0.9 * gpu.list_memory * GIB < gpu.memory < gpu.list_memory * GIB
        assert gpu.memory_from == "list" or gpu.memory_from.startswith("https://")
        assert (7, 0) <= gpu.capability <= (12, 9) and gpu.title.startswith("NVIDIA ")
        assert find_gpu(gpu.name) is gpu is find_gpu(gpu.title)


def test_names_as_people_write_them() -> None:
    assert gpu_names("A100 80GB, l4,L4") == ["a100-80gb", "l4"]
    assert gpu_names(["H100"]) == ["h100-80gb"]
    assert gpu_names("Cheapest") == ["cheapest"] and gpus_of(["cheapest"]) == known_gpus()
    assert named_gpus(["cheapest"]) == named_gpus(None) == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a100", "did you mean a100-40gb or a100-80gb?"),
        ("l40", "did you mean l40s?"),
        ("abacus", "there are t4, rtx-3090"),
        ("", "such as a100-80gb"),
        ("cheapest,l4", "cheapest alone"),
    ],
)
def test_an_unknown_name_is_told_with_near_misses(text: str, told: str) -> None:
    with pytest.raises(InputError) as raised:
        make_recipe({"gpu": text}, where="options", origin="option")
    assert told in str(raised.value) and "\n" not in str(raised.value)


def plan(total: int, *names: str, any_gpu: bool = False) -> MemoryPlan:
    part = MemoryPart("weights", total * GIB, "", "counted")
    gpus = tuple(PlannedGpu(gpu.name, gpu.title, gpu.memory, gpu.memory_from)
                 for gpu in gpus_of(names))  # fmt: skip
    one = MemoryVariant("recipe", {}, (part,))
    return MemoryPlan(1, 1, "", "", "adamw", {}, one, (), gpus=gpus, any_gpu=any_gpu)


def test_the_cheapest_that_fits_is_the_first_of_the_file_that_does() -> None:
    found = plan(20, "cheapest", any_gpu=True)
    first = found.first_fitting(found.recipe)
    assert first is not None and first.name == "rtx-3090"
    assert found.columns == ((first.name, first.memory),)
    assert plan(500, "cheapest", any_gpu=True).columns[0][0] == known_gpus()[-1].name


def test_named_cards_are_the_columns_and_survive_json() -> None:
    found = plan(30, "l4", "a100-80gb")
    assert [name for name, _ in found.columns] == ["l4", "a100-80gb"]
    data = json.loads(json.dumps(found.to_json()))
    assert data["recipe"]["fits"] == {"l4": False, "a100-80gb": True}
    assert MemoryPlan.from_json(data) == found


def test_each_card_that_is_named_has_to_do_and_of_all_of_them_one() -> None:
    def found(total: int, *names: str) -> list[str]:
        case: Any = SimpleNamespace(
            recipe=Recipe({"gpu": list(names)}),
            memory_plan=plan(total, *names, any_gpu=names == ("cheapest",)),
        )
        return [finding.message for finding in DoesNotFit().check(case)]

    assert [text.partition(" has ")[0][-9:] for text in found(30, "l4", "a100-80gb")] == [
        "NVIDIA L4"
    ]
    assert found(30, "cheapest") == []
    (largest,) = found(500, "cheapest")
    assert "NVIDIA B200 has 174.6 GiB: it does not fit" in largest


def test_several_cards_at_the_command_line(tmp_path: Path) -> None:
    """Each that is named has to do; the table has a column for each."""
    (tmp_path / "lora-doctor.toml").write_text('gpu = ["t4", "l4"]\n')
    check = ("check", "arch:gpt2", "--depth", "meta", "--dtype", "bfloat16", "--max-length", "64")
    done = run(*check, "--batch-size", "1", "--output", "json=r.json", cwd=tmp_path)
    data = json.loads((tmp_path / "r.json").read_text())
    assert done.returncode == 1, done.stderr
    assert [one["name"] for one in data["memory_plan"]["gpus"]] == ["t4", "l4"]
    assert data["memory_plan"]["recipe"]["fits"] == {"t4": True, "l4": True}
    assert [one["rule"] for one in data["findings"]] == ["LD713"]
    assert "which NVIDIA T4 does" in " ".join(done.stdout.split())


def test_the_cheapest_at_the_command_line(tmp_path: Path) -> None:
    """Without those that would have to emulate what the recipe computes in."""
    check = ("check", "arch:gpt2", "--depth", "meta", "--dtype", "bfloat16", "--gpu", "cheapest")
    done = run(*check, "--batch-size", "1", "--max-length", "64", "--select", "LD7", cwd=tmp_path)
    assert done.returncode == 0 and "cheapest that fits: rtx-3090" in done.stdout, done.stderr
    assert "t4, v100-16gb, v100-32gb: left out" in done.stdout
