"""Stored answers: the same question is answered from the cache, and no other one."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.api.cache_key import NotCachedError, key_of, listing_of
from lora_doctor.api.cache_store import MOST_SECONDS, CacheStore, user_cache
from lora_doctor.api.opening import open_case
from lora_doctor.api.options import DEFAULTS
from lora_doctor.cli.main import main
from lora_doctor.errors import InputError
from lora_doctor.recipe.files.read_write import read_recipe
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.hub.snapshot import HubFile, HubSnapshot
from tests import diagnoses

FOLDER = Path(__file__).parent / "folders" / "chat_model"
KEY, OTHER = "a" * 64, "b" * 64

# --- the key --------------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A question about a model's folder, a recipe file, rows and a rule of the user's own."""
    model = tmp_path / "model"
    shutil.copytree(FOLDER, model)
    (tmp_path / "sft.yaml").write_text("target_modules: [q_proj]\nr: 8\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "acme101_rule.py").write_text("x = 1\n")
    site = tmp_path / "site"
    (site / "other-1.0.dist-info").mkdir(parents=True)
    (site / "other-1.0.dist-info" / "METADATA").write_text("Name: other\nVersion: 1.0\n")
    (site / "patched").mkdir()
    (site / "patched" / "__init__.py").write_text("x = 1\n")
    (site / "sitecustomize.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    return {
        "model": "model",
        "options": {"depth": "meta", "data": "rows.jsonl", "samples": "none", "rules": ["mine"]},
    }


def key(asked: dict[str, Any], model: Any = None, **options: Any) -> str:
    given: Any = {**asked["options"], **options}
    recipe = read_recipe("sft.yaml")
    with open_case(model or asked["model"], recipe, given, eager=False) as case:
        return key_of(case, {**DEFAULTS, **given})


def edit(name: str, old: str, new: str) -> Callable[[], None]:
    def change() -> None:
        path = Path(name)
        status = path.stat()
        path.write_text(path.read_text("utf-8").replace(old, new, 1), "utf-8")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as some tools set it back

    return change


def rewrite(name: str) -> Callable[[], None]:
    return lambda: edit(name, "x = 1", "x = 12")()


def new_weights() -> None:
    path = Path("model/model.safetensors")
    path.write_bytes(b"\0" * 64)


CHANGES: dict[str, Callable[[], None]] = {
    "a value of the recipe": edit("sft.yaml", "r: 8", "r: 9"),
    "a comment of the recipe, which may accept a finding": edit("sft.yaml", "\nr", " # x\nr"),
    "the model's config": edit("model/config.json", "{", "{ "),
    "its chat template or tokenizer": edit("model/tokenizer_config.json", "{", "{ "),
    "weights that came": new_weights,
    "a row": edit("rows.jsonl", "a", "b"),
    "a rule of one's own": edit("mine/acme101_rule.py", "1", "2"),
    "an installed package": edit("site/other-1.0.dist-info/METADATA", "1.0", "1.0.1"),
    "another package": lambda: Path("site/new-1.0.dist-info").mkdir(),
    "a module that may take precedence": lambda: Path("peft.py").touch(),
    "a package on PYTHONPATH": rewrite("site/patched/__init__.py"),
    "what Python runs at its start": rewrite("site/sitecustomize.py"),
    "a variable of the libraries": lambda: os.environ.__setitem__("HF_NEW_SETTING", "1"),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_every_change_of_what_is_looked_at_is_another_question(
    name: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_NEW_SETTING", raising=False)
    before = key(asked)
    assert key(asked) == before
    CHANGES[name]()
    changed = key(asked)
    monkeypatch.setenv("HF_NEW_SETTING", "")  # so that it is taken back
    assert changed != before


@pytest.mark.parametrize(
    "option",
    [{"depth": "tiny"}, {"steps": 5}, {"select": ("LD2",)}, {"ignore": ("LD201",)}, {"rows": 7},
     {"strict": True}, {"memory": True}, {"budgets": {"rows-cut": {"max": 0}}}],
    ids=str,
)  # fmt: skip
def test_every_option_counts(option: dict[str, Any], asked: dict[str, Any]) -> None:
    assert key(asked, **option) != key(asked)


@pytest.mark.parametrize(
    ("model", "option", "why"),
    [
        (None, {"samples": "people"}, "texts of rows"),
        (None, {"trust_remote_code": True}, "code of the model's repository"),
        (None, {"device": "cuda"}, "on a GPU"),
        (None, {"depth": "full"}, "only depths meta and tiny"),
        ("tests.models:tiny_llama", {}, "code of the user's"),
    ],
)
def test_in_doubt_there_is_no_key(
    model: str | None, option: dict[str, Any], why: str, asked: dict[str, Any]
) -> None:
    with pytest.raises(NotCachedError, match=why):
        key(asked, model, **{"data": None, **option} if model else option)


@pytest.mark.parametrize("folder", ["templates", "."])
def test_a_folder_that_the_recipe_names_may_hold_anything(
    folder: str, asked: dict[str, Any]
) -> None:
    Path("templates").mkdir()
    edit("sft.yaml", "r: 8", f"chat_template_path: {folder}")()
    with pytest.raises(NotCachedError, match=f"names the folder {folder}"):
        key(asked)


def test_a_commit_of_which_the_hub_said_nothing_is_another_question() -> None:
    """What was answered without the hub must not be the answer once it can be asked."""
    files = (HubFile("config.json", 10), HubFile("model.safetensors", 1 << 30, "large"))
    told = HubSnapshot(
        "org/name", None, "c" * 40, "https://huggingface.co", Path("snapshot"), files,
        None, gated=False, from_cache=False, note=None, seconds=0.1,
    )  # fmt: skip
    silent = replace(told, files=(), from_cache=True, note="the hub did not answer")
    assert listing_of(told) == listing_of(replace(told, seconds=9.0))
    assert listing_of(told) != listing_of(silent)


# --- the store ------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> CacheStore:
    return CacheStore(tmp_path / "cache" / "answers")


def entry(store: CacheStore) -> Path:
    (path,) = store.folder.iterdir()
    return path


@pytest.mark.parametrize("name", ["phi3", "vision_language", "static_only"])
def test_an_answer_is_found_as_it_was_stored(name: str, store: CacheStore) -> None:
    given = diagnoses.ALL[name]()
    store.put(KEY, given)
    found = store.get(KEY)
    assert found is not None
    assert json.dumps(found.diagnosis.to_json()) == json.dumps(given.to_json())
    assert store.get(OTHER) is None
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert entry(store).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", ["cut", "zeros", "text", "another's"])
def test_a_damaged_answer_is_told_once_and_gone(damage: str, store: CacheStore) -> None:
    store.put(KEY, diagnoses.phi3())
    path = entry(store)
    data = path.read_bytes()
    asked = KEY
    if damage == "another's":
        asked = OTHER
        path.rename(path.with_name(path.name.replace(KEY, OTHER)))
    else:
        broken = {"cut": data[:-20], "zeros": b"\0" * len(data), "text": b"{}"}[damage]
        path.write_bytes(broken)
    with pytest.raises(InputError, match="is damaged"):
        store.get(asked)
    assert store.get(asked) is None and not list(store.folder.iterdir())


def test_a_folder_that_others_can_write_to_is_not_used(store: CacheStore) -> None:
    store.put(KEY, diagnoses.phi3())
    store.folder.chmod(0o777)
    assert store.get(KEY) is None
    store.put(OTHER, diagnoses.phi3())
    assert len(list(store.folder.iterdir())) == 1


def test_the_oldest_go_first_and_old_answers_are_not_found(
    store: CacheStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_doctor.api.cache_store.MOST_ENTRIES", 2)
    for number, name in enumerate("123"):
        store.put(name * 64, diagnoses.phi3())
        for path in store.folder.glob(f"{name}*"):
            os.utime(path, (number, number))
    store.put(KEY, diagnoses.phi3())
    assert {path.name[0] for path in store.folder.iterdir()} == {"3", "a"}
    later = time.time() + MOST_SECONDS + 1
    monkeypatch.setattr("lora_doctor.api.cache_store.time.time", lambda: later)
    assert store.get(KEY) is None


def test_runs_that_store_and_read_the_same_at_once_see_it_whole(store: CacheStore) -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                store.put(KEY, diagnoses.phi3())
                assert store.get(KEY) is not None
        except BaseException as error:  # noqa: BLE001 - handed over to the test
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(list(store.folder.iterdir())) == 1


def test_where_the_cache_is(tmp_path: Path) -> None:
    given = user_cache({"XDG_CACHE_HOME": str(tmp_path)})
    assert given.folder == tmp_path / "lora-doctor" / "answers"
    assert user_cache({"XDG_CACHE_HOME": "relative"}).folder.is_absolute()


# --- at the command line --------------------------------------------------------------------------


@pytest.fixture
def with_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LORA_DOCTOR_CHECK_NO_CACHE")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def no_child(*_: Any, **__: Any) -> None:
    raise AssertionError("a child process was started")


def test_the_same_question_again_starts_no_process(
    with_cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Findings, exit code and next command are those of the first answer; it says of when it is."""
    (with_cache / "sft.yaml").write_text("target_modules: [c_proj, q_proj]\n")
    check = ["check", "arch:gpt2", "--recipe", "sft.yaml", "--depth", "meta"]
    assert main([*check, "--output-format", "json"]) == 1
    first = json.loads(capfd.readouterr().out)
    assert not [note for note in first["notes"] if note["kind"] == "cached"]
    monkeypatch.setattr(Worker, "start", no_child)
    assert main([*check, "--output-format", "json"]) == 1
    told = capfd.readouterr()
    again = json.loads(told.out)
    assert "cached: this is the answer of" in told.err
    assert again["notes"][-1]["kind"] == "cached"
    for name in ("findings", "passed", "skipped", "structure", "recipe", "next_command", "verdict"):
        assert again[name] == first[name], name
    assert main(check) == 1
    assert "--no-cache asks again" in " ".join(capfd.readouterr().out.split())
    (with_cache / "sft.yaml").write_text("target_modules: [c_attn]\n")
    assert main(check) == 2
    assert "a child process was started" in capfd.readouterr().err
