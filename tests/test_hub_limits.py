"""A hub that sends too much, or names that lead elsewhere: memory, time and cache stay bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_hub import FakeHub, endless, packed, with_headers

pytest.importorskip("huggingface_hub")

CONFIG = json.dumps({"model_type": "llama", "hidden_size": 64}).encode()
CHILD = """
import json, resource, sys, time
from lora_doctor.errors import InputError
from lora_doctor.static.hub.hub import fetch_small_files
from huggingface_hub.utils import get_session
get_session()
start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    found = fetch_small_files("org/name", **json.loads(sys.argv[1]))
    answer = {"reasons": {f.name: f.reason for f in found.files if f.reason},
              "from_cache": found.from_cache, "weights": found.weights and found.weights.reason}
except InputError as error:
    answer = {"error": str(error)}
answer["seconds"] = time.monotonic() - start
time.sleep(0.5)  # whatever goes on behind the error goes on here
answer["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
print(json.dumps(answer))
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        server.add_model("org/name", {"config.json": CONFIG, "tokenizer.json": b"{}"})
        yield server


def ask(hub: FakeHub, home: Path, **options: Any) -> dict[str, Any]:
    """What a fresh process says about the model, within the time limit and some patience."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "*"}
    environment |= {"HF_TOKEN": "hf_letmein"}
    run = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps({"time_limit": 5.0, **options})],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(run.stdout)
    assert answer["seconds"] < 8
    assert answer["memory"] < 300 << 20
    assert "\n" not in answer.get("error", "")
    return answer


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


LISTING = "/api/models/org/name"


@pytest.mark.parametrize("answer", [endless(), packed(2 << 30)], ids=["endless", "packed"])
def test_a_listing_without_end_is_not_swallowed(hub: FakeHub, tmp_path: Path, answer: Any) -> None:
    hub.hostile[LISTING] = answer
    found = ask(hub, tmp_path)
    assert "is not in the cache, and" in found["error"]
    assert size_of(tmp_path) == 0


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("answer", [endless(), packed(2 << 30)], ids=["endless", "packed"])
def test_a_file_without_end_leaves_nothing_in_the_cache(
    hub: FakeHub, tmp_path: Path, name: str, answer: Any
) -> None:
    hub.hostile[f"/{name}"] = answer
    for _ in range(2):  # nor does it grow from run to run
        found = ask(hub, tmp_path)
        assert name in found.get("error", "") or name in found["reasons"]
    kept = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert name not in kept and not any(each.endswith(".incomplete") for each in kept)
    assert size_of(tmp_path) < 1_000


def test_weights_without_end_are_read_up_to_their_header(hub: FakeHub, tmp_path: Path) -> None:
    hub.add_model("org/name", {"config.json": CONFIG, "model.safetensors": b""})
    hub.hostile["/model.safetensors"] = endless(b"\xff" * 7 + b"\0")
    assert "announces a header" in ask(hub, tmp_path)["weights"]


def _listed(*siblings: Any, **more: Any) -> Any:
    return with_headers({}, json.dumps({"sha": "0" * 40, "siblings": siblings, **more}).encode())


def test_a_listing_of_very_many_files_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    many = [{"rfilename": f"f{n}.py", "size": 1} for n in range(300_000)]
    hub.hostile[LISTING] = _listed({"rfilename": "config.json", "size": 2}, *many)
    assert "values, more than the" in ask(hub, tmp_path)["error"]
    hub.hostile[LISTING] = _listed({"rfilename": "config.json", "size": 2}, *many[:60_000])
    assert "60,001 files, more than the 50,000" in ask(hub, tmp_path)["error"]


@pytest.mark.parametrize(
    ("siblings", "says"),
    [
        ([{"rfilename": "config.json", "size": "big"}], "gives 'config.json' the size 'big'"),
        ([{"rfilename": "config.json", "size": -1}], "the size -1"),
        ([{"rfilename": "config.json", "size": True}], "the size True"),
        ([{"rfilename": 7}], "lists {'rfilename': 7} as a file"),
        (["config.json"], "lists 'config.json' as a file"),
        ({"config.json": 1}, "as the list of files"),
    ],
)  # fmt: skip
def test_junk_in_a_listing_is_a_sentence(
    hub: FakeHub, tmp_path: Path, siblings: Any, says: str
) -> None:
    body = json.dumps({"sha": "0" * 40, "siblings": siblings}).encode()
    hub.hostile[LISTING] = with_headers({}, body)
    error = ask(hub, tmp_path)["error"]
    assert "does not answer like a model hub" in error and says in error


@pytest.mark.parametrize("sha", [None, 3, "../../../../x", "0" * 39, "0" * 40 + "\n"])
def test_a_commit_that_is_none_names_no_folder(hub: FakeHub, tmp_path: Path, sha: Any) -> None:
    body = json.dumps({"sha": sha, "siblings": [{"rfilename": "config.json"}]}).encode()
    hub.hostile[LISTING] = with_headers({}, body)
    assert "names no commit" in ask(hub, tmp_path)["error"]
    assert size_of(tmp_path) == 0


@pytest.mark.parametrize(
    "etag", ['"../../../../../out"', '"/tmp/lora-doctor-etag"', '".."', '"a/b"']
)
def test_an_etag_names_no_file(hub: FakeHub, tmp_path: Path, etag: str) -> None:
    home = tmp_path / "home"
    headers = {"ETag": etag, "X-Repo-Commit": "../../../../../commit", "X-Linked-Etag": etag}
    hub.hostile["/config.json"] = with_headers(headers, CONFIG)
    assert "error" not in ask(hub, home)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    written = {path.name for path in home.rglob("*") if path.is_file()}
    assert written == {"config.json", "tokenizer.json", "main"}
    assert not Path("/tmp/lora-doctor-etag").exists()


def test_the_librarys_own_downloads_refuse_such_an_etag(hub: FakeHub, tmp_path: Path) -> None:
    """At depth `full` the library downloads the weights: in a child, with its answers looked at."""
    hub.hostile["/config.json"] = with_headers({"ETag": '"../../../../../out"'}, CONFIG)
    assert "as ETag, which is not a file name" in download(hub, tmp_path / "home", 1_000)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


DOWNLOAD = """
import json, sys
from lora_doctor.errors import EvidenceError
from lora_doctor.evidence.full import allowed_downloads, weights_folder
from lora_doctor.static.hub.hub_library import guard_downloads
guard_downloads(allowed_downloads("org/name", json.loads(sys.argv[1])))
source = {"kind": "hub", "name": "org/name", "revision": None, "trust_remote_code": False}
try:
    print(weights_folder(source))
except EvidenceError as error:
    print(error)
"""


def download(hub: FakeHub, home: Path, listed: int | None) -> str:
    """What the child of depth `full` says when it downloads the weights of a listing so large."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "*"}
    run = subprocess.run(
        [sys.executable, "-c", DOWNLOAD, json.dumps(listed)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


WEIGHTS = bytes(3 << 20)


@pytest.mark.parametrize(
    "answer",
    [
        endless(bytes(8), {"ETag": '"abc"', "X-Repo-Commit": "0" * 40, "X-Linked-Size": "99"}),
        with_headers({"ETag": '"abc"', "X-Repo-Commit": "0" * 40, "Content-Length": "9" * 12}),
        with_headers({"ETag": '"abc"', "X-Repo-Commit": "0" * 40, "X-Linked-Size": "9" * 12}),
    ],
    ids=["without end", "a length", "a size elsewhere"],
)
def test_weights_are_downloaded_up_to_what_is_listed(
    hub: FakeHub, tmp_path: Path, answer: Any
) -> None:
    files = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    hub.add_model("org/name", files)
    listed = sum(map(len, files.values()))
    folder = Path(download(hub, tmp_path / "good", listed))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    hub.hostile["/model.safetensors"] = answer
    said = download(hub, tmp_path / "bad", listed)
    assert "the weights of org/name cannot be obtained: what the server sends has" in said
    assert "more than the" in said and "is listed with 3 MiB" in said
    assert size_of(tmp_path / "bad") <= 2 * listed + (17 << 20)


def test_without_a_listing_weights_are_downloaded_as_far_as_the_disk_goes(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from lora_doctor.evidence.full import allowed_downloads

    assert Path(download(hub, tmp_path, None).rpartition(" holds no weights")[0]).is_dir()
    free = type("Usage", (), {"free": 1 << 30})()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    for listed in (None, 5 << 30):
        allowed = allowed_downloads("org/name", listed)
        assert allowed.most == 1 << 30 and "HF_HUB_CACHE" in allowed.why


def test_sizes_that_are_not_the_listed_ones_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.hostile["/tokenizer.json"] = with_headers({}, b"{ }")
    assert "3 bytes, more than the 2" in ask(hub, tmp_path)["reasons"]["tokenizer.json"]
    hub.hostile["/tokenizer.json"] = with_headers({}, b"{")
    assert "1 bytes, 2 are listed" in ask(hub, tmp_path / "2")["reasons"]["tokenizer.json"]


def test_the_token_stays_with_its_host(hub: FakeHub, tmp_path: Path) -> None:
    """A redirect to another host is followed without the token."""
    with FakeHub() as other:
        other.hostile["/elsewhere"] = with_headers({}, CONFIG)
        where = other.url.replace("127.0.0.1", "localhost") + "/elsewhere"
        hub.hostile["/config.json"] = with_headers({"Location": where}, b"", status=302)
        assert "error" not in ask(hub, tmp_path)
        assert [token for path, token in other.tokens if path == "/elsewhere"] == [None]
    assert ("/org/name/resolve", "Bearer hf_letmein") in {
        (path[:17], token) for path, token in hub.tokens
    }


def test_a_cache_that_cannot_be_written_is_a_sentence(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("a file where the folder should be")
    error = ask(hub, tmp_path)["error"]
    assert "cannot be written" in error and "set HF_HUB_CACHE to another folder" in error
