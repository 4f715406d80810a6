"""Adapters whose weights are a pickle: judged by names and shapes, and never loaded."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import lora_doctor
from lora_doctor.errors import EvidenceError
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.pickled_weights import read_pickled
from tests import saved_adapters as made


def codes(diagnosis: Diagnosis) -> list[str]:
    return [finding.rule for finding in diagnosis.findings]


def test_names_and_shapes_are_those_of_torch(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(2, 3, dtype=torch.bfloat16),
        "b": torch.zeros(()),
        "part": torch.zeros(9, 4)[3:7].half(),
        "parameter": torch.nn.Parameter(torch.zeros(5)),
        "shared": torch.zeros(4, 1).expand(4, 6),
    }
    torch.save(tensors, tmp_path / "adapter_model.bin")
    read = read_pickled(tmp_path / "adapter_model.bin").tensors
    assert {name: item.shape for name, item in read.items()} == {
        name: tuple(value.shape) for name, value in tensors.items()
    }
    assert [item.dtype for item in read.values()] == ["BF16", "F32", "F16", "F32", "F32"]
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).state_dict()
    torch.save(layers, tmp_path / "adapter_model.bin")
    assert list(read_pickled(tmp_path / "adapter_model.bin").tensors) == list(layers)


class _Runs:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_is_no_state_dict_is_refused_and_nothing_of_it_runs(tmp_path: Path) -> None:
    path, trace = tmp_path / "adapter_model.bin", tmp_path / "ran"
    for content, words in (
        ({"a": _Runs(trace)}, "it calls"),
        ({"state_dict": {"a": torch.zeros(1)}}, "is not a tensor"),
        ([torch.zeros(1)], "no state dict"),
        (torch.nn.Linear(2, 2), "is a pickle"),
    ):
        torch.save(content, path)
        with pytest.raises(EvidenceError, match=words):
            read_pickled(path)
    for raw in (b"", b"PK\x03\x04", b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(raw)
        with pytest.raises(EvidenceError, match="is a pickle, which is not loaded"):
            read_pickled(path)
    assert not trace.exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_damaged_archive_is_refused(tmp_path: Path, method: int) -> None:
    path = tmp_path / "adapter_model.bin"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", bytes(range(256)) * 20)
    content = bytearray(path.read_bytes())
    start = content.index(b"data.pkl") + len("data.pkl")
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(EvidenceError, match="not an archive of torch"):
        read_pickled(path)


@pytest.mark.slow
def test_a_pickled_adapter_is_judged_by_its_names_and_shapes(worker: Worker) -> None:
    """PEFT loads such files, so what goes wrong is the same."""
    for case, expected in ((made.in_a_pickle(), []), (made.of_a_distributed_model(), ["LD620"])):
        base, options = case
        folder = Path(options["adapter"])
        if not (folder / "adapter_model.bin").exists():
            made.pickled(folder)
        diagnosis = lora_doctor.check(base, depth="meta", worker=worker, **options)
        assert codes(diagnosis) == [*expected, "LD643"]
        assert diagnosis.verdict == ("findings" if expected else "undetermined")


@pytest.mark.slow
def test_what_is_not_read_leaves_the_question_open(worker: Worker) -> None:
    base, options = made.in_a_pickle()
    deep = lora_doctor.check(base, depth="full", worker=worker, **options)
    assert (deep.verdict, codes(deep)) == ("undetermined", ["LD643"])
    assert "convert it to safetensors" in str(deep.undetermined)
    torch.save({"weights": {}}, Path(options["adapter"]) / "adapter_model.bin")
    diagnosis = lora_doctor.check(base, depth="meta", worker=worker, **options)
    assert (diagnosis.verdict, codes(diagnosis)) == ("undetermined", ["LD643"])
