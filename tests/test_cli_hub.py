"""A hub id on the command line, against a real server on loopback that speaks the hub's API."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import Result, lora_doctor, needs_phi3
from tests.fake_hub import FakeHub

CONFIG = {
    "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "dtype": "bfloat16",
}  # fmt: skip


def safetensors(names: dict[str, list[int]]) -> bytes:
    """A safetensors file of zeros."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in names.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as running:
        running.add_model(
            "someone/phi",
            {
                "config.json": json.dumps(CONFIG).encode(),
                "model.safetensors": safetensors({"model.embed_tokens.weight": [256, 64]}),
            },
        )
        running.add_model("someone/gated", {"config.json": b"{}"}, gated=True)
        yield running


@pytest.fixture
def ask(hub: FakeHub, tmp_path: Path):  # type: ignore[no-untyped-def]
    def run(*arguments: str, **env: str) -> Result:
        return lora_doctor(
            *arguments, env={"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), **env}
        )

    return run


@needs_phi3
def test_a_hub_model_is_checked_without_its_weights(ask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = ask(
        "check", "someone/phi", "--target-modules", "q_proj,o_proj", "--output-format", "json"
    )
    diagnosis = json.loads(result.out)
    assert result.code == 1, result
    assert "LD202" in {finding["rule"] for finding in diagnosis["findings"]}
    assert diagnosis["model"]["revision"] and diagnosis["model"]["model_type"] == "phi3"
    assert list(tmp_path.rglob("config.json")) and not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("model", "says"), [("someone/nothing", "someone/nothing"), ("someone/gated", "gated")]
)
def test_what_cannot_be_read_is_one_line(ask, model: str, says: str) -> None:  # type: ignore[no-untyped-def]
    result = ask("check", model)
    assert result.code == 2 and says in result.one_line_error


def test_no_network_is_said_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    result = lora_doctor(
        "check", "someone/phi", "--depth", "static",
        env={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip
    assert result.code == 2 and "someone/phi" in result.one_line_error
    assert time.monotonic() - start < 30


def test_a_hub_that_hangs_ends_at_the_time_limit(hub: FakeHub, ask) -> None:  # type: ignore[no-untyped-def]
    hub.mode = "hang"
    start = time.monotonic()
    result = ask("check", "someone/phi", "--depth", "static", "--hub-time-limit", "2")
    assert result.code == 2 and "someone/phi" in result.one_line_error
    assert time.monotonic() - start < 30


@needs_phi3
def test_offline_uses_the_cache(ask) -> None:  # type: ignore[no-untyped-def]
    first = ask("check", "someone/phi", "--depth", "static")
    assert first.code == 0, first
    again = ask("check", "someone/phi", "--depth", "static", HF_HUB_OFFLINE="1")
    assert again.code == 0, again
    missing = ask("check", "someone/other", "--depth", "static", HF_HUB_OFFLINE="1")
    assert missing.code == 2 and "someone/other" in missing.one_line_error


@pytest.mark.slow
def test_real_weights_of_a_hub_model_are_fetched_only_when_asked_for(
    hub: FakeHub,
    ask,  # type: ignore[no-untyped-def]
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch")
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path / "model"
    transformers.LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    hub.add_model("someone/real", {path.name: path.read_bytes() for path in folder.iterdir()})
    result = ask(
        "verify", "someone/real", "--depth", "full", "--device", "cpu",
        "--target-modules", "q_proj,v_proj", "--output-format", "json",
    )  # fmt: skip
    assert result.code == 0, result
    verification = json.loads(result.out)["verification"]["before"]
    assert verification["depth"] == "full" and verification["outcome"] == "passed"


@pytest.mark.parametrize(("key", "code"), [("lora_r", 2), ("lora_rr", 1)])
def test_a_frameworks_file_is_read_without_the_model_that_it_names(
    tmp_path: Path, key: str, code: int
) -> None:
    """On a machine without a network its own mistakes are still told, and nothing is proven."""
    (tmp_path / "qlora.yml").write_text(
        "base_model: org/never-fetched\nadapter: lora\n"
        f"{key}: 16\nlora_alpha: 32\nlora_target_linear: true\n"
        "datasets:\n  - path: org/rows\n    type: alpaca\nlearning_rate: 2.0e-4\n"
    )
    result = lora_doctor(
        "check", "qlora.yml", "--output-format", "json", cwd=tmp_path,
        env={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip
    assert result.code == code, result.err
    answer = json.loads(result.out)
    found = [one["rule"] for one in answer["findings"] if one["severity"] != "info"]
    assert found == (["LD530"] if code == 1 else [])
    assert answer["reached"] == "static"
    assert answer["undetermined"].startswith("only qlora.yml was read: org/never-fetched is not")
