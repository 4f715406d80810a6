"""The registry of patches: found by file, installed once, refused where they do not fit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from lora_doctor import patches
from lora_doctor.errors import InputError
from lora_doctor.fixes import Patch
from lora_doctor.patches import PatchError

peft = pytest.importorskip("peft")

DROP = Patch("drop_none_arguments")
BUILD = Patch("peft_without_generation")


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    yield
    assert not patches._installed


def test_every_file_is_a_patch_that_fits_here() -> None:
    assert {"drop_none_arguments", "peft_without_generation"} <= set(patches.patch_names())
    for name in patches.patch_names():
        module = patches.load_patch(name)
        assert name == module.NAME
        assert module.SUMMARY and "\n" not in module.SUMMARY
        assert module.why_not() is None


@pytest.mark.parametrize("name", ["os", "..errors", "", "lora_doctor.errors", "none"])
def test_only_files_of_the_folder_are_patches(name: str) -> None:
    with pytest.raises(InputError, match="no such patch"):
        patches.install(Patch(name))


def test_twice_is_once_and_the_last_one_out_undoes() -> None:
    from peft.tuners.tuners_utils import BaseTuner

    original = BaseTuner.forward
    first = patches.install(DROP)
    patched = BaseTuner.forward
    second = patches.install(DROP)
    assert BaseTuner.forward is patched is not original
    first()
    first()
    assert BaseTuner.forward is patched
    second()
    assert BaseTuner.forward is original


def test_all_or_none() -> None:
    with pytest.raises(InputError):
        patches.install_all([DROP, Patch("nonsense")])
    assert not patches._installed


def test_parameters_are_checked() -> None:
    with pytest.raises(PatchError, match="wrong parameters"):
        patches.install(Patch("drop_none_arguments", {"nonsense": 1}))


def test_a_patch_that_does_not_fit_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(peft, "PeftModelForSeq2SeqLM")
    with pytest.raises(PatchError, match="has no PeftModelForSeq2SeqLM"):
        patches.install(BUILD)


def test_threads_install_once() -> None:
    from peft.tuners.tuners_utils import BaseTuner

    original = BaseTuner.forward
    undos: list[Callable[[], None]] = []
    threads = [
        threading.Thread(target=lambda: undos.append(patches.install(DROP))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert BaseTuner.forward.__wrapped__ is original
    for undo in undos:
        undo()
    assert BaseTuner.forward is original
