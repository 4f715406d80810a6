"""Adapters on a hub: `check BASE --adapter ORG/NAME`, and the id of an adapter as MODEL, against a
real server on loopback."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.errors import InputError
from lora_doctor.sandbox.worker import Worker
from tests import saved_adapters as made
from tests.fake_hub import FakeHub, with_headers

for library in ("torch", "transformers", "peft", "huggingface_hub"):
    pytest.importorskip(library)

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that this process, and those that it starts, take for theirs; with an empty cache."""
    from huggingface_hub import constants

    cache = str(tmp_path / "hf" / "hub")
    with FakeHub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_CACHE", cache)
        monkeypatch.setenv("HF_TOKEN", "hf_letmein")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
        yield running


def publish(hub: FakeHub, name: str, folder: str | Path, **options: Any) -> str:
    files = {item.name: item.read_bytes() for item in Path(folder).iterdir() if item.is_file()}
    return hub.add_model(name, files, **options)


def check(model: Any, **options: Any) -> lora_doctor.Diagnosis:
    return lora_doctor.check(model, **{"depth": "static", **options})


def codes(diagnosis: lora_doctor.Diagnosis) -> list[str]:
    return [finding.rule for finding in diagnosis.findings]


def refusal(model: Any, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        check(model, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_config_and_the_header_are_all_that_is_fetched(
    hub: FakeHub, tmp_path: Path, worker: Worker
) -> None:
    base, options = made.of_a_distributed_model()
    folder = Path(options["adapter"])
    (folder / "tokenizer.json").write_text("{}")
    commit = publish(hub, "someone/ddp", folder)
    files = hub.models["someone/ddp"].files
    (length,) = struct.unpack("<Q", files["adapter_model.safetensors"][:8])
    # The header alone is asked for, whatever follows.
    files["adapter_model.safetensors"] += bytes(3_000_000)

    diagnosis = check(base, adapter="someone/ddp", depth="meta", worker=worker)
    (finding,) = diagnosis.findings
    assert finding.rule == "LD620" and "8 of 8 tensors" in finding.message
    assert finding.location.path == f"someone/ddp@{commit[:12]}/adapter_model.safetensors"
    assert "hf download someone/ddp" in finding.fixes[0].title

    cached = {path.name for path in (tmp_path / "hf").rglob("*") if path.is_file()}
    assert cached == {"adapter_config.json", "main"}
    asked = {path.rpartition("/")[2] for _, path in hub.requests if "someone/ddp" in path}
    assert asked == {"ddp?blobs=true", "adapter_config.json", "adapter_model.safetensors"}
    assert hub.ranges == ["bytes=0-99999"] and length < 99_999


def test_the_id_of_an_adapter_stands_for_its_base_as_well(hub: FakeHub) -> None:
    base, options = made.of_zero_stage_3()
    folder = Path(options["adapter"])
    made.rewrite(folder, made.unchanged, base_model_name_or_path="someone/base", revision="v2")
    publish(hub, "someone/base", base, revisions=("main", "v2"))
    publish(hub, "someone/lora", folder)
    diagnosis = check("someone/lora")
    assert codes(diagnosis) == ["LD623"] and diagnosis.model.name == "someone/base"
    assert any("/api/models/someone/base/revision/v2" in path for _, path in hub.requests)
    here = check(str(folder))  # a folder whose base is on the hub
    assert codes(here) == ["LD623"] and here.model.name == "someone/base"

    trusted = refusal("someone/lora", trust_remote_code=True)
    assert "give someone/base as MODEL" in trusted
    twice = refusal("someone/lora", adapter="someone/lora")
    assert "is an adapter; give its base model" in twice


def test_numbers_are_fetched_at_full_depth_and_trained_on(hub: FakeHub, tmp_path: Path) -> None:
    base, options = made.lora()
    publish(hub, "someone/lora", options["adapter"])
    diagnosis = check(base, adapter="someone/lora", depth="full", device="cpu")
    assert diagnosis.verdict == "healthy" and "LD625" in diagnosis.passed
    assert diagnosis.before is not None
    started = diagnosis.before.check("starts-at-base")
    assert started is not None and started.detail == "training goes on from a saved adapter"
    assert list((tmp_path / "hf").rglob("adapter_model.safetensors"))


def test_offline_the_cache_answers(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, options = made.of_zero_stage_3()
    publish(hub, "someone/zero", options["adapter"])
    assert codes(check(base, adapter="someone/zero")) == ["LD623"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # The header was read and not kept.
    assert "no adapter_model.safetensors" in refusal(base, adapter="someone/zero")
    (config,) = (tmp_path / "hf").rglob("adapter_config.json")
    weights = hub.models["someone/zero"].files["adapter_model.safetensors"]
    (config.parent / "adapter_model.safetensors").write_bytes(weights)
    assert codes(check(base, adapter="someone/zero")) == ["LD623"]


def test_a_revision_of_the_adapter(hub: FakeHub) -> None:
    base, options = made.of_zero_stage_3()
    commit = publish(hub, "someone/zero", options["adapter"], revisions=("v1",))
    for revision in ("v1", commit):
        assert codes(check(base, adapter=f"someone/zero@{revision}")) == ["LD623"]
    assert "has no revision 'v9'" in refusal(base, adapter="someone/zero@v9")


def test_what_cannot_be_read_is_one_sentence(hub: FakeHub) -> None:
    base, options = made.lora()
    config = (Path(options["adapter"]) / "adapter_config.json").read_bytes()
    hub.add_model("a/without", {"adapter_config.json": config})
    hub.add_model("a/model", {"config.json": b"{}"})
    hub.add_model("a/folders", {"last/adapter_config.json": config, "config.json": b"{}"})
    hub.add_model("a/gated", {"adapter_config.json": config}, gated=True, token="another")
    hub.add_model("a/cut", {"adapter_config.json": config, "adapter_model.safetensors": b"123"})
    no_base = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": EMPTY}
    hub.add_model("a/baseless", no_base)
    for name, words in {
        "a/without": "has no adapter_model.safetensors",
        "a/model": "holds a model and no adapter_config.json; give it as MODEL",
        "a/folders": "has its adapters in folders ('last'); download one",
        "a/gated": "is gated",
        "a/cut": "is cut off",
        "a/nothing": "no such folder, and a/nothing was not found at",
    }.items():
        assert words in refusal(base, adapter=name), name
    assert "names no base model" in refusal("a/baseless")


def test_a_pickle_is_not_fetched(hub: FakeHub) -> None:
    base, options = made.lora()
    config = (Path(options["adapter"]) / "adapter_config.json").read_bytes()
    hub.add_model("a/pickled", {"adapter_config.json": config, "adapter_model.bin": b"x"})
    diagnosis = check(base, adapter="a/pickled")
    assert diagnosis.verdict == "undetermined" and codes(diagnosis) == ["LD643"]
    assert "on the hub is a pickle" in str(diagnosis.undetermined)


#: A safetensors file without tensors.
EMPTY = struct.pack("<Q", 8) + b"{}      "


def test_the_token_stays_with_its_host(hub: FakeHub) -> None:
    """The weights of a real hub lie elsewhere: the redirect is followed without the token."""
    base, options = made.of_zero_stage_3()
    publish(hub, "someone/zero", options["adapter"])
    weights = hub.models["someone/zero"].files["adapter_model.safetensors"]
    with FakeHub() as other:
        other.hostile["/elsewhere"] = with_headers({}, weights)
        where = other.url.replace("127.0.0.1", "localhost") + "/elsewhere"
        hub.hostile["/adapter_model.safetensors"] = with_headers({"Location": where}, b"", 302)
        assert codes(check(base, adapter="someone/zero")) == ["LD623"]
        assert [token for path, token in other.tokens if path == "/elsewhere"] == [None]
    assert {token for path, token in hub.tokens if "someone" in path} == {"Bearer hf_letmein"}
