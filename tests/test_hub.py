"""Hub models, against a real server on loopback that also hangs, resets and fails.

Each call runs in a process of its own: the library reads its settings when it is imported, and a
process that cannot end because of a stuck thread is one of the failures looked for.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from lora_doctor.errors import InputError
from lora_doctor.static.hub.hub import fetch_small_files
from lora_doctor.static.hub.hub_files import choose
from lora_doctor.static.model_files import gather_static
from lora_doctor.static.remote_code.remote_code import nested_adapter_calls, read_remote_code
from tests.fake_hub import FakeHub

pytest.importorskip("huggingface_hub")

CONFIG = json.dumps({"model_type": "llama", "hidden_size": 64}).encode()
CHILD = """
import json, sys, time
from pathlib import Path
from lora_doctor.errors import InputError
from lora_doctor.static.hub.hub import fetch_small_files
from lora_doctor.static.hub.hub_files import AdapterInstead
from lora_doctor.static.model_files import gather_static
model, options = sys.argv[1], json.loads(sys.argv[2])
from huggingface_hub import HfApi
start = time.monotonic()
try:
    found = fetch_small_files(model, **options)
    weights = found.weights
    static = gather_static(
        found.folder, source=found.source, listing=found.listing, weights=weights)
    answer = {
        "commit": found.commit, "from_cache": found.from_cache, "note": found.note,
        "fetched": sorted(p.relative_to(found.folder).as_posix()
                          for p in found.folder.rglob("*") if p.is_file()),
        "reasons": {f.name: f.reason for f in found.files if f.reason},
        "listing": static.listing,
        "tensors": {n: [t.dtype, list(t.shape)] for n, t in (static.weights.value.tensors if
                    static.weights.value else {}).items()},
        "no_weights": static.weights.reason,
        "unread": static.weights.value.unread if static.weights.value else {},
        "gated": found.gated, "model_type": static.model_type, "source": static.source,
    }
except (InputError, AdapterInstead) as error:
    answer = {"error": str(error)}
answer["seconds"] = time.monotonic() - start
answer["heavy"] = sorted({"torch", "transformers"} & set(sys.modules))
print(json.dumps(answer))
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        yield server


def safetensors(*names: str) -> bytes:
    header = {
        name: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [12 * i, 12 * i + 12]}
        for i, name in enumerate(names)
    }
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + bytes(12 * len(names))


def ask(
    url: str, home: Path, model: str = "org/name", env: dict[str, str] | None = None, **options: Any
) -> dict[str, Any]:
    """What a fresh process gets to know about `model` from the hub at `url`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "*"} | (env or {})
    run = subprocess.run(
        [sys.executable, "-c", CHILD, model, json.dumps(options)],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr == "", "nothing of the library's reaches the terminal"
    answer: dict[str, Any] = json.loads(run.stdout)
    assert answer["heavy"] == []
    assert "\n" not in answer.get("error", "")
    return answer


# --- a hub that answers ---------------------------------------------------------------------


def test_only_small_files_and_headers_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    files = {
        "config.json": CONFIG,
        "tokenizer.json": b"{}",
        "modeling_x.py": b"class X: ...",
        "nested/helper.py": b"",
        "speech/adapter_config.json": b"{}",
        "model.safetensors": safetensors("a", "b") + bytes(3_000_000),
        "pytorch_model.bin": bytes(1000),
        "huge.json": b" " * (6 << 20),
        "README.md": b"# x",
    }
    commit = hub.add_model("org/name", files)
    found = ask(hub.url, tmp_path)
    assert found["commit"] == commit and not found["from_cache"]
    assert found["source"] == f"org/name@{commit[:12]}"
    assert found["fetched"] == [
        "config.json", "modeling_x.py", "nested/helper.py", "speech/adapter_config.json",
        "tokenizer.json",
    ]  # fmt: skip
    assert found["listing"] == sorted(files)
    assert found["tensors"] == {"a": ["BF16", [2, 3]], "b": ["BF16", [2, 3]]}
    assert "larger" in found["reasons"]["huge.json"]
    assert not any("model.bin" in path or "README" in path for _, path in hub.requests)


def test_long_headers_and_shards(hub: FakeHub, tmp_path: Path) -> None:
    many = safetensors(*(f"layer.{i}.weight" for i in range(3000)))
    assert len(many) > 200_000
    weight_map = {"a": "one.safetensors", "b": "two.safetensors", "c": "../three.safetensors"}
    hub.add_model(
        "org/name",
        {
            "config.json": CONFIG,
            "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
            "one.safetensors": many,
            "two.safetensors": b"broken, and certainly no safetensors file",
        },
    )
    found = ask(hub.url, tmp_path)
    assert len(found["tensors"]) == 3000
    assert "announces a header" in found["unread"]["two.safetensors"]
    assert "named but not there" in found["unread"]["../three.safetensors"]


def test_the_second_time_the_cache_serves_offline(hub: FakeHub, tmp_path: Path) -> None:
    hub.add_model("org/name", {"config.json": CONFIG})
    online = ask(hub.url, tmp_path)
    asked = len(hub.requests)
    offline = ask(hub.url, tmp_path, env={"HF_HUB_OFFLINE": "1"})
    assert offline["commit"] == online["commit"] and offline["from_cache"]
    assert offline["note"] == "HF_HUB_OFFLINE is set; the files in the cache were used"
    assert len(hub.requests) == asked, "offline means no request at all"
    missing = ask(hub.url, tmp_path, "org/nane", env={"HF_HUB_OFFLINE": "yes"})
    assert missing["error"] == (
        "org/nane is not in the cache, and HF_HUB_OFFLINE is set (did you mean 'org/name'?); "
        "unset it, or give a local folder"
    )
    hub.mode = 500
    down = ask(hub.url, tmp_path)
    assert down["from_cache"] and "answers with error 500; the files in the cache" in down["note"]


def test_code_of_a_hub_model_is_read_not_run(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub to the finding, in a process that had imported the library long before."""
    code = """
        raise SystemExit("executed")
        from torch import nn
        from peft import LoraConfig, get_peft_model
        class Inner(nn.Module): ...
        class Head(nn.Module):
            def __init__(self, config):
                self.model = Inner()
                get_peft_model(self.model, LoraConfig(task_type="CAUSAL_LM"))
    """
    config = {"model_type": "x", "auto_map": {"AutoModelForCausalLM": "modeling_x.Head"}}
    files = {"config.json": json.dumps(config).encode(), "modeling_x.py": dedent(code).encode()}
    hub.add_model("org/name", files)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found = fetch_small_files("org/name", cache_dir=tmp_path)
    static = gather_static(found.folder, source=found.source, listing=found.listing)
    (call,) = nested_adapter_calls(read_remote_code(found.folder, static))
    assert (str(call.at), call.inner_class) == ("modeling_x.py:9", "Inner")
    assert call.inner_has_prepare_inputs is False


def test_revisions(hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.add_model("org/name", {"config.json": CONFIG}, revisions=("main", "refs/pr/1"))
    assert ask(hub.url, tmp_path, revision="refs/pr/1")["commit"] == commit
    assert ask(hub.url, tmp_path / "2", revision=commit)["commit"] == commit
    error = ask(hub.url, tmp_path, revision="v9")["error"]
    assert error.startswith("org/name has no revision 'v9'; its revisions are at ")


def test_refusals_say_what_to_do(hub: FakeHub, tmp_path: Path) -> None:
    hub.add_model("org/gated", {"config.json": CONFIG}, gated=True)
    hub.add_model("org/private", {"config.json": CONFIG}, private=True)
    hub.add_model("org/adapter", {"adapter_config.json": b"{}"})
    gated = ask(hub.url, tmp_path, "org/gated")["error"]
    assert gated.startswith(f"org/gated is gated; accept its terms at {hub.url}/org/gated, and log")
    assert ask(hub.url, tmp_path, "org/gated", token="hf_letmein")["gated"] is True
    assert "was not found at" in ask(hub.url, tmp_path, "org/private")["error"]
    assert "error" not in ask(hub.url, tmp_path, "org/private", env={"HF_TOKEN": "hf_letmein"})
    assert "was not found at" in ask(hub.url, tmp_path, "org/nothing")["error"]
    assert "is an adapter; give its base model" in ask(hub.url, tmp_path, "org/adapter")["error"]
    for status in (401, 403):
        hub.mode = status
        error = ask(hub.url, tmp_path, "org/other")["error"]
        assert "log in with" in error and "hf_letmein" not in error


# --- a hub that does not --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hang", "reset", 500, 429, 502])
@pytest.mark.parametrize("only", ["", "/resolve/"])
def test_a_failing_hub_costs_the_limit_at_most(
    hub: FakeHub, tmp_path: Path, mode: str | int, only: str
) -> None:
    """The whole process ends in time, and the server is not hammered meanwhile."""
    hub.add_model("org/name", {"config.json": CONFIG, "tokenizer.json": b"{}", "a.py": b""})
    hub.mode, hub.only = mode, only
    found = ask(hub.url, tmp_path, time_limit=2.0)
    assert found["seconds"] < 3.5
    assert "is not in the cache, and http://127.0.0.1" in found["error"]
    assert len(hub.requests) <= 5, hub.requests
    if not only and mode != "hang":
        assert found["seconds"] < 1.5, "an answer that settles it is not waited out"


@pytest.mark.parametrize("mode", ["hang", "reset", 500, 429])
def test_optional_files_fail_alone(hub: FakeHub, tmp_path: Path, mode: str | int) -> None:
    """config.json came: the rest is recorded with reasons, and still within the limit."""
    hub.add_model(
        "org/name", {"config.json": CONFIG, "tokenizer.json": b"{}", "model.safetensors": b""}
    )
    hub.mode, hub.only = mode, "/tokenizer.json"
    found = ask(hub.url, tmp_path, time_limit=2.0)
    assert found["seconds"] < 3.5 and found["model_type"] == "llama"
    assert found["reasons"]["tokenizer.json"]
    hub.only = "/model.safetensors"
    found = ask(hub.url, tmp_path / "2", time_limit=2.0)
    assert found["seconds"] < 3.5 and found["no_weights"]


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    found = ask(url, tmp_path)
    assert "cannot be reached (Connection refused)" in found["error"] and found["seconds"] < 2
    found = ask("http://no-such-host.invalid", tmp_path)
    assert "cannot be reached" in found["error"]


def test_an_endpoint_that_is_no_hub(hub: FakeHub, tmp_path: Path) -> None:
    """A captive portal answers everything with 200 and a page."""
    hub.mode = 200
    assert "is not in the cache, and" in ask(hub.url, tmp_path)["error"]


# --- before any request ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    ["", "a b", "a/b/c", "../x", "/etc/passwd", "a--b", "x.git", "org/", "é/x", "a\n", "x" * 97,
     "-a/b", "org/.name", "a\x1b[2J"],
)  # fmt: skip
def test_malformed_ids_are_refused_unasked(model: str) -> None:
    with pytest.raises(InputError) as caught:
        fetch_small_files(model)
    assert "is not a model id" in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("revision", ["", "../../x", "a//b", "-x", "a b", "/etc", "x\n"])
def test_malformed_revisions_are_refused_unasked(revision: str) -> None:
    with pytest.raises(InputError, match="is not a revision"):
        fetch_small_files("org/name", revision=revision)


def test_what_is_chosen() -> None:
    sizes: dict[str, int | None] = {
        "tokenizer.json": 17_000_000,
        "config.json": 700,
        "x.py": 10,
        "../evil.py": 1,
        "a/../b.py": 1,
        "onnx/model.json": 10,
        "model-00001-of-00002.safetensors": 5_000_000_000,
    } | {f"m{i}.py": 2_000_000 for i in range(40)}
    chosen, reasons = choose(sizes)
    assert chosen[0] == "config.json" and "x.py" not in reasons
    assert "../evil.py" in reasons and "a/../b.py" in reasons and "onnx/model.json" in reasons
    assert sum(sizes[name] or 0 for name in chosen) <= 64 << 20
    assert set(chosen) | set(reasons) == set(sizes) and not set(chosen) & set(reasons)
