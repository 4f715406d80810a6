"""The registry of patches: found by file, installed once, refused where they do not fit."""

from __future__ import annotations

import functools
import logging
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.errors import InputError
from lora_doctor.prescription import patches
from lora_doctor.prescription.apply import apply
from lora_doctor.prescription.patches import PatchError
from lora_doctor.prescription.patches._support import Changes, Once
from lora_doctor.recipe.edit import Patch
from lora_doctor.recipe.files.prescription import Prescription

peft = pytest.importorskip("peft")

DROP = Patch("drop_none_arguments")
BUILD = Patch("peft_without_generation")
OUTER = Patch("outer_adapter_only")
ALL = (DROP, BUILD, OUTER)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    yield
    assert not patches._installed


def test_every_file_is_a_patch_that_fits_here() -> None:
    assert {patch.name for patch in ALL} <= set(patches.patch_names())
    for name in patches.patch_names():
        module = patches.load_patch(name)
        assert name == module.NAME
        assert module.SUMMARY and "\n" not in module.SUMMARY
        assert module.why_not() is None


@pytest.mark.parametrize("name", ["os", "..errors", "", "lora_doctor.errors", "none"])
def test_only_files_of_the_folder_are_patches(name: str) -> None:
    with pytest.raises(InputError, match="no such patch"):
        patches.install(Patch(name))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NAME = 'half_a_patch'\n", "'half_a_patch': has no SUMMARY, why_not, install; copy "),
        (
            "NAME, SUMMARY = 'another', 'x'\ndef why_not(): pass\ndef install(): pass\n",
            "'half_a_patch': its NAME is 'another'; give it that of its file",
        ),
    ],
)
def test_a_patch_that_lacks_a_part_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    """By every way to it: installing, and checking a prescription."""
    tmp_path.joinpath("half_a_patch.py").write_text(text)
    monkeypatch.setattr(patches, "__path__", [*patches.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{patches.__name__}.half_a_patch", raising=False)
    half = Patch("half_a_patch")
    for action in (patches.install, lambda patch: patches.check_patch(patch, "p.json")):
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            action(half)
        assert "\n" not in str(caught.value)
    sys.modules.pop(f"{patches.__name__}.half_a_patch")


def test_who_prints_what_was_applied_sees_which_patches_are_in_force() -> None:
    applied = apply(Prescription("org/model", patches=(DROP,)))
    assert repr(applied) == (
        "<Applied: prescription for org/model; patches in force: drop_none_arguments>"
    )
    applied.undo()
    assert "patches taken out: drop_none_arguments" in repr(applied)
    assert repr(apply(Prescription("m"))).endswith("patches in force: none>")


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


def run_at_once(*bodies: Callable[[], None]) -> None:
    """All of them in threads of their own, switched often; what one raises is raised."""
    raised: list[BaseException] = []
    start = threading.Barrier(len(bodies))

    def run(body: Callable[[], None]) -> None:
        start.wait()
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if raised:
        raise raised[0]


def places() -> dict[str, Any]:
    """What the patches change."""
    from peft.tuners.tuners_utils import BaseTuner

    return {
        "forward": BaseTuner.forward,
        "adalora": peft.AdaLoraModel.forward,
        "plain": peft.PeftModel.__init__,
        "causal": peft.PeftModelForCausalLM.__init__,
        "generate": peft.PeftModelForCausalLM.generate,
    }


def test_threads_apply_and_undo_in_any_order() -> None:
    """Prescriptions with the same and with other patches, many times: at the end nothing is left
    of any of them, and while one holds a patch nobody else's undoing takes it out."""
    before = places()

    def body(seed: int) -> None:
        chance = random.Random(seed)
        held: list[Any] = []
        for _ in range(40):
            if held and chance.random() < 0.5:
                held.pop(chance.randrange(len(held))).undo()
            else:
                chosen = tuple(chance.sample(ALL, chance.randint(1, len(ALL))))
                held.append(apply(Prescription("m", patches=chosen)))
        while held:
            held.pop(0).undo()

    with apply(Prescription("m", patches=(DROP,))):
        run_at_once(*(functools.partial(body, seed) for seed in range(8)))
        assert places()["forward"] is not before["forward"]
        assert set(patches._installed) == {DROP.name}
    assert places() == before


def test_a_line_is_logged_once_by_many_threads(caplog: pytest.LogCaptureFixture) -> None:
    once = Once()
    with caplog.at_level(logging.INFO, logger="lora_doctor"):
        run_at_once(*(functools.partial(once.warning, "acts") for _ in range(8)))
        assert [record.getMessage() for record in caplog.records] == ["acts"]
        once.forget()
        once.warning("acts")
    assert len(caplog.records) == 2


def test_patches_on_one_method_are_undone_in_any_order() -> None:
    """Two of them change PEFT's constructor: putting back what was there before would take out the
    other one, or leave the first in for ever."""
    original = peft.PeftModel.__init__
    first, second = patches.install(DROP), patches.install(OUTER)
    top = peft.PeftModel.__init__
    first()
    assert peft.PeftModel.__init__ is top, "the second is still in force"
    third = patches.install(DROP)
    second()
    assert peft.PeftModel.__init__ is not original
    third()
    assert peft.PeftModel.__init__ is original


def test_a_change_by_somebody_else_on_top_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other libraries replace methods too: ours goes without taking theirs along."""
    from peft.tuners.tuners_utils import BaseTuner

    original = BaseTuner.forward
    undo = patches.install(DROP)
    ours = BaseTuner.forward

    @functools.wraps(ours)
    def theirs(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    with monkeypatch.context() as other:
        other.setattr(BaseTuner, "forward", theirs)
        undo()
        assert BaseTuner.forward is theirs
    patches.install(DROP)()
    assert BaseTuner.forward is original


class Greeter:
    def greet(self) -> str:
        return "hello"


class Heir(Greeter):
    pass


def louder(original: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda self: original(self) + "!"


def test_a_method_that_was_inherited_is_inherited_again() -> None:
    changes = Changes()
    changes.around(Heir, "greet", louder)
    assert Heir().greet() == "hello!" and Greeter().greet() == "hello"
    changes.undo()
    changes.undo()
    assert "greet" not in vars(Heir) and Heir().greet() == "hello"


def test_half_a_patch_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method is missing in the installed release: what was changed before it is put back."""
    original = Greeter.greet

    def install() -> Callable[[], None]:
        with Changes() as changes:
            changes.around(Greeter, "greet", louder)
            changes.around(Greeter, "leave", louder)
        return changes.undo

    monkeypatch.setattr(patches.load_patch(DROP.name), "install", install)
    with pytest.raises(PatchError, match=r"cannot be installed: AttributeError: .*leave"):
        patches.install(DROP)
    assert Greeter.greet is original


def _other_forward(self: Any, batch: Any) -> Any: ...


def _other_constructor(self: Any, base: Any) -> None: ...


@pytest.mark.parametrize(
    ("patch", "owner", "method", "other", "says"),
    [
        (DROP, "BaseTuner", "forward", _other_forward, "takes no free keyword arguments"),
        (OUTER, "PeftModel", "__init__", _other_constructor, "has other parameters"),
        (BUILD, "PeftModelForCausalLM", "__init__", _other_constructor, "takes no 'model'"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_another_peft_is_refused_and_left_alone(
    patch: Patch, owner: str, method: str, other: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loudly, with the installed version, instead of changing what has become something else."""
    from peft.tuners import tuners_utils

    owning = getattr(tuners_utils if owner == "BaseTuner" else peft, owner)
    monkeypatch.setattr(owning, method, other)
    with pytest.raises(PatchError, match=rf"does not fit.*PEFT {peft.__version__}.*{says}"):
        patches.install(patch)
    assert getattr(owning, method) is other


def test_a_child_process_installs_as_a_script_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in order, one that does not fit refused, and then none of them in force."""
    from peft.tuners.tuners_utils import BaseTuner

    original = BaseTuner.forward
    undone: list[Callable[[], None]] = []
    install = patches.install

    def kept(patch: Patch) -> Callable[[], None]:
        undone.append(install(patch))
        return undone[-1]

    monkeypatch.setattr(patches, "install", kept)
    given = [patch.to_json() for patch in (DROP, DROP, OUTER)]
    assert patches.install_patches(given) == [DROP.name, DROP.name, OUTER.name]
    assert set(patches._installed) == {DROP.name, OUTER.name}
    for undo in undone:
        undo()
    assert BaseTuner.forward is original

    monkeypatch.delattr(peft, "PeftModelForSeq2SeqLM")
    with pytest.raises(PatchError, match="has no PeftModelForSeq2SeqLM"):
        patches.install_patches([DROP.to_json(), BUILD.to_json()])
    assert BaseTuner.forward is original and not patches._installed
