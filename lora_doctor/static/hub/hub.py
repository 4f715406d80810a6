"""The small files of a hub model, within one time limit, and never its weights.

`huggingface_hub` gives the session and the cache. What it lacks is an end: name resolution,
connecting, retries and downloads each have their own patience, and their sum has none (74 s were
measured without a network); and what a server sends has no end either. So each answer is read up
to a number of bytes (`bounded_http`), all of it in daemon threads, and the caller waits for these
until one deadline; a thread that is still stuck then is left to die with the process.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from lora_doctor.errors import EvidenceError, InputError, LimitError
from lora_doctor.limits import FETCHED_BYTES, HEADER_BYTES, HUB_SECONDS, LISTING_BYTES
from lora_doctor.static.hub.bounded_http import Allowance, Wanted, get
from lora_doctor.static.hub.deadline import Deadline
from lora_doctor.static.hub.hub_cache import remember, snapshot_folder, store
from lora_doctor.static.hub.hub_files import (
    ADAPTER,
    MODEL,
    Contents,
    check_model_id,
    check_revision,
    choose,
    most_bytes,
)
from lora_doctor.static.hub.hub_library import THREAD, quiet, root_cause
from lora_doctor.static.hub.listing import Listing, parse_listing
from lora_doctor.static.hub.snapshot import HubFile, HubSnapshot
from lora_doctor.static.piece import gather, inside, read_json_object, shown
from lora_doctor.static.weights import (
    HeaderAllowance,
    Tensor,
    Weights,
    merge,
    parse_header,
    read_header,
    shard_names,
)

T = TypeVar("T")

# 97 % of the headers on the hub are shorter than this.
_FIRST_RANGE = 100_000


class _Unreachable(Exception):
    """The hub gives no answer that says anything about the model; the cache may have it."""


def fetch_small_files(
    model_id: str,
    *,
    revision: str | None = None,
    time_limit: float = HUB_SECONDS,
    token: str | None = None,
    cache_dir: Path | None = None,
    contents: Contents = MODEL,
) -> HubSnapshot:
    """Config, code and tokenizer files of `model_id`, and the headers of its weights; with
    `contents` an adapter's config and the header of its weights, and nothing else.

    All of it ends within `time_limit` seconds. What is optional and late or too large is recorded
    with its reason. When the hub cannot be asked, the cache answers if it has the model.
    `token` None means the one the user logged in with, as everywhere with the hub.

    Raises InputError, in one line, when there is no such model or revision, access is refused, or
    neither the hub nor the cache can answer; AdapterInstead where the repository holds an adapter
    and no model.
    """
    start = time.monotonic()
    check_model_id(model_id)
    check_revision(revision)
    request = _Request(model_id, revision, time_limit, token, cache_dir)
    request.contents = contents
    with quiet():
        if request.offline:
            snapshot = request.cached("HF_HUB_OFFLINE is set", "unset it, or give a local folder")
        else:
            try:
                snapshot = request.fetch()
            except _Unreachable as error:
                advice = "check the network and HF_ENDPOINT, or give a local folder"
                snapshot = request.cached(str(error), advice)
    return dataclasses.replace(snapshot, seconds=time.monotonic() - start)


# --- the request ----------------------------------------------------------------------------


class _Request:
    """One call of `fetch_small_files`: its settings, its deadline, its steps."""

    def __init__(
        self,
        model_id: str,
        revision: str | None,
        time_limit: float,
        token: str | None,
        cache_dir: Path | None,
    ) -> None:
        import huggingface_hub
        from huggingface_hub import constants, utils

        self.hub: Any = huggingface_hub
        self.utils: Any = utils
        self.model_id = model_id
        self.revision = revision
        self.token = token
        self.contents = MODEL
        # The library reads these once, when it is imported; set later, they count here as well.
        environment = os.environ
        self.endpoint = (environment.get("HF_ENDPOINT") or str(constants.ENDPOINT)).rstrip("/")
        truth = environment.get("HF_HUB_OFFLINE", "").upper()
        self.offline = bool(constants.HF_HUB_OFFLINE) or truth in {"1", "ON", "YES", "TRUE"}
        self.cache_dir = Path(cache_dir or constants.HF_HUB_CACHE)
        self.allowance = Allowance(FETCHED_BYTES)
        self.headers = HeaderAllowance()
        utils.get_session()  # imported at first use: that is none of the network's time
        self.deadline = Deadline(time_limit)

    def fetch(self) -> HubSnapshot:
        """Ask the hub. InputError for answers that settle it, _Unreachable for none."""
        listing = self._one(self._listing)
        commit, sizes = listing.commit, listing.sizes
        config = self.contents.config
        if config not in sizes:
            raise self.contents.instead(self.model_id, sizes)
        chosen, reasons = choose(sizes, self.contents.wanted)
        folder = snapshot_folder(self.cache_dir, self.model_id, commit)
        steps = {name: self._downloading(name, commit, sizes[name]) for name in chosen}
        if config not in steps:
            raise InputError(f"{self.model_id}: {config} {reasons[config]}")
        try:
            self._one(steps.pop(config))
        except EvidenceError as error:
            raise InputError(f"{self.model_id}: {error}; give a local folder") from None
        # So that the cache knows what was asked for when there is no network.
        remember(self.cache_dir, self.model_id, self.revision or "main", commit)
        outcome = self._many(steps)
        reasons |= {
            name: str(late) for name, late in outcome.items() if isinstance(late, Exception)
        }
        late = {name for name, error in outcome.items() if isinstance(error, _Unreachable)}
        source = f"{self.endpoint}/{self.model_id}@{commit[:12]}"
        return HubSnapshot(
            model_id=self.model_id,
            revision=self.revision,
            commit=commit,
            endpoint=self.endpoint,
            folder=folder,
            files=tuple(
                HubFile(name, sizes[name], reasons.get(name), name in late)
                for name in sorted(sizes)
            ),
            weights=gather(source, lambda: self._weights(folder, commit, sizes)),
            gated=listing.gated,
            from_cache=False,
            note=None,
            seconds=0.0,
        )

    def cached(self, why: str, advice: str) -> HubSnapshot:
        """What the cache has, with the note `why`; InputError with `advice` when it has nothing."""
        found = self._in_cache(self.contents.config)
        if found is None:
            if self.contents is MODEL and self._in_cache(ADAPTER.config) is not None:
                raise MODEL.instead(self.model_id, {ADAPTER.config: None})
            at = f" at revision {self.revision}" if self.revision else ""
            near = self._near_in_cache() if self.offline else ""
            raise InputError(f"{self.model_id}{at} is not in the cache, and {why}{near}; {advice}")
        folder = Path(found).parent
        return HubSnapshot(
            model_id=self.model_id,
            revision=self.revision,
            commit=folder.name,
            endpoint=self.endpoint,
            folder=folder,
            files=(),
            weights=None,
            gated=False,
            from_cache=True,
            note=f"{why}; the files in the cache were used",
            seconds=0.0,
        )

    def _in_cache(self, name: str) -> str | None:
        found = self.hub.try_to_load_from_cache(
            self.model_id, name, cache_dir=self.cache_dir, revision=self.revision
        )
        return found if isinstance(found, str) else None

    # --- single steps, run in threads ---

    def _listing(self) -> Listing:
        at = f"/revision/{quote(self.revision, safe='')}" if self.revision else ""
        url = f"{self.endpoint}/api/models/{self.model_id}{at}?blobs=true"
        try:
            return parse_listing(self._get(url, Wanted("its list of files", LISTING_BYTES)))
        except EvidenceError as error:
            raise _Unreachable(
                f"{self.endpoint} does not answer like a model hub: {error}"
            ) from None

    def _downloading(self, name: str, commit: str, size: int | None) -> Callable[[], Path]:
        def download() -> Path:
            path = snapshot_folder(self.cache_dir, self.model_id, commit) / name
            if path.is_file():  # a commit never changes
                return path
            most = most_bytes(name, self.contents.wanted) if size is None else size
            wanted = Wanted(name, most, allowance=self.allowance)
            content = self._get(self._url(name, commit), wanted)
            if size is not None and len(content) != size:
                raise EvidenceError(
                    f"{name} has {len(content):,} bytes, {size:,} are listed", remedy="hub"
                )
            return store(self.cache_dir, self.model_id, commit, name, content)

        return download

    def _url(self, name: str, commit: str) -> str:
        return str(
            self.hub.hf_hub_url(self.model_id, name, revision=commit, endpoint=self.endpoint)
        )

    def _get(self, url: str, wanted: Wanted, more: Mapping[str, str] | None = None) -> bytes:
        """The content of `url`; `more` are headers. Raises what a refusal of the hub means."""
        headers = {**self.utils.build_hf_headers(token=self.token), **(more or {})}
        answer = get(self.utils.get_session(), url, headers, self.deadline, wanted)
        if answer.status not in (200, 206):
            raise self._refused(answer.status, answer.headers)
        return answer.content

    def _weights(self, folder: Path, commit: str, sizes: Mapping[str, int | None]) -> Weights:
        """Headers of the checkpoint's files; EvidenceError when there are none."""
        single = self.contents.weights
        if single in sizes:
            names = [single]
        elif (folder / f"{single}.index.json").is_file():
            index = read_json_object(folder / f"{single}.index.json")
            names = shard_names(index, f"{single}.index.json")
        else:
            raise EvidenceError(f"the repository has no {single} and no index of shards")
        unread = {n: f"{shown(n)} is named but not there" for n in names if n not in sizes}
        steps = {n: self._heading(folder, n, commit) for n in names if n in sizes}
        headers = {}
        for name, outcome in self._many(steps).items():
            if isinstance(outcome, Exception):
                unread[name] = str(outcome)
            else:
                headers[name] = outcome
        if not headers:
            raise EvidenceError(
                next(iter(unread.values()), "the index names no file"), remedy="hub"
            )
        return merge(headers, unread)

    def _heading(
        self, folder: Path, name: str, commit: str
    ) -> Callable[[], tuple[dict[str, Tensor], dict[str, str]]]:
        def read() -> tuple[dict[str, Tensor], dict[str, str]]:
            if (folder / name).exists():  # the weights are in the cache: nothing to ask for
                return read_header(inside(folder, name), name)
            start = self._range(name, commit, _FIRST_RANGE)
            if len(start) < 8:
                raise EvidenceError(f"{name} is cut off", remedy="file")
            (length,) = struct.unpack("<Q", start[:8])
            if length > HEADER_BYTES:
                raise LimitError(
                    f"{name} announces a header of {length:,} bytes, more than the "
                    f"{HEADER_BYTES:,} that are read"
                )
            self.headers.take(length, name)
            if length + 8 > len(start):
                start = self._range(name, commit, length + 8)
            return parse_header(start[8 : 8 + length], name)

        return read

    def _range(self, name: str, commit: str, size: int) -> bytes:
        """The first `size` bytes of a file, not one more even from a server that ignores ranges."""
        headers = {"Range": f"bytes=0-{size - 1}"}
        return self._get(self._url(name, commit), Wanted(name, size, cut=True), headers)

    # --- waiting ---

    def _one(self, step: Callable[[], T]) -> T:
        """The result of `step` before the deadline; raises its failure in words."""
        outcome = self._many({"": step})[""]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _many(self, steps: Mapping[str, Callable[[], T]]) -> dict[str, T | Exception]:
        """Results by name; for each step that failed or was late, its failure in words.

        A server that is down for two files is down for the others: these are not tried.
        """

        def explained(step: Callable[[], T]) -> Callable[[], T]:
            def run() -> T:
                try:
                    return step()
                except Exception as error:
                    raise self._explained(error) from error

            return run

        outcomes = self.deadline.run(
            [explained(step) for step in steps.values()],
            late=self._late(),
            hopeless=lambda error: isinstance(error, _Unreachable),
            name=THREAD,
        )
        return dict(zip(steps, outcomes, strict=True))

    # --- failures in words ---

    def _explained(self, error: Exception) -> Exception:
        """`error` as InputError, EvidenceError or _Unreachable, in one line."""
        if isinstance(error, (_Unreachable, EvidenceError, InputError)):
            return error
        if self.deadline.passed:
            return self._late()
        return _Unreachable(f"{self.endpoint} cannot be reached ({root_cause(error)})")

    def _late(self) -> _Unreachable:
        return _Unreachable(f"{self.endpoint} did not answer within {self.deadline.seconds:g} s")

    def _refused(self, status: int, headers: Mapping[str, str]) -> Exception:
        """What the status and the hub's own code in the headers of an answer mean."""
        code, model = headers.get("x-error-code"), self.model_id
        page = f"{self.endpoint}/{model}"
        login = "log in with `hf auth login` or set HF_TOKEN"
        if code == "GatedRepo":
            return InputError(f"{model} is gated; accept its terms at {page}, and {login}")
        if code == "RevisionNotFound":
            return InputError(
                f"{model} has no revision {shown(self.revision)}; its revisions are at {page}/tree"
            )
        wrong_token = "Invalid credentials" in headers.get("x-error-message", "")
        # To those who may not know of it the hub answers as if there were no such repository.
        if code == "RepoNotFound" or (status == 401 and not wrong_token):
            return InputError(
                f"{model} was not found at {self.endpoint}{self._near_in_cache()}; check the "
                f"spelling, or, if it is private, {login}"
            )
        if status in (401, 403):
            return InputError(f"{self.endpoint} refuses access to {model} ({status}); {login}")
        if code == "EntryNotFound":
            return EvidenceError("it is in the listing, but not in the repository", remedy="hub")
        if status == 429:
            return _Unreachable(f"{self.endpoint} has too many requests from here (429)")
        return _Unreachable(f"{self.endpoint} answers with error {status}")

    def _near_in_cache(self) -> str:
        """A hint at a model of a similar name that the cache holds."""
        known = [
            folder.name.removeprefix("models--").replace("--", "/")
            for folder in self.cache_dir.glob("models--*")
        ]
        near = difflib.get_close_matches(self.model_id, known, n=1, cutoff=0.8)
        return f" (did you mean {near[0]!r}?)" if near and near[0] != self.model_id else ""
