"""Several processes put together: one of them stands for all, and what differs is told by rank."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_doctor.errors import LoraDoctorError
from lora_doctor.recipe.files.bytes import read_text
from lora_doctor.results.dry_run import ScriptError
from lora_doctor.results.processes import EmptyWeights, Processes, RankError, SavedAdapter

Record = Mapping[str, Any]
#: What is told of every process; of everything else the first rank's word is taken.
_OF_ALL = frozenset({
    "rank", "group", "wrapped", "trainable_sum", "launcher", "saved_adapter", "error", "note",
    "redirected", "folder", "trained", "ended", "stopped", "refused", "no_data", "synthetic",
    "exit", "resumed",
})  # fmt: skip
#: What a process raises because another one is gone, or takes part in no collective operation.
_GONE = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|gloo.*(time|peer|read|write)|Timed out waiting"
    r"|Application timeout|Wait timeout|timed out after|collective operation timeout|NCCL"
    r"|No backend type associated|Socket (Timeout|error)|DistNetworkError|failed to recv"
    r"|monitoredBarrier|Rank \d+ (failed|successfully)",
    re.IGNORECASE,
)
#: Seconds of a training contract beyond which it may be what another process gave up on.
_LONG = 150.0


def rank_of(records: Iterable[Record]) -> dict[int, int]:
    """Process to its rank, for those that have one."""
    found: dict[int, int] = {}
    for record in records:
        if record["kind"] in ("rank", "group"):
            found[record["pid"]] = int(record["rank"])
    return found


def of_first_rank(records: Sequence[Record]) -> list[Record]:
    """The records without those that other ranks repeat."""
    ranks = rank_of(records)
    return [
        record for record in records if not ranks.get(record["pid"], 0) or record["kind"] in _OF_ALL
    ]


def is_of_another(error: Record) -> bool:
    """Whether an exception only says that another process is gone."""
    message = f"{error['type']}: {error['message']}"
    networked = str(error["type"]).endswith(("RuntimeError", "DistBackendError", "DistNetworkError",
                                             "DistStoreError", "TimeoutError"))  # fmt: skip
    return networked and bool(_GONE.search(message))


def waited_for_us(records: Sequence[Record], error: ScriptError) -> bool:
    """Whether a process gave up on another one that was running the training contract."""
    if not is_of_another({"type": error.type, "message": error.message}):
        return False
    began = {record["pid"]: float(record["time"]) for record in _kind(records, "adapted")}
    ended = [one for one in records if one["kind"] in ("contract", "no_contract")]
    took = [float(one["time"]) - began[one["pid"]] for one in ended if one["pid"] in began]
    return max(took, default=0.0) > _LONG


def processes_of(records: Sequence[Record], short: Callable[[str], str]) -> Processes | None:
    """What is known of several processes; ``None`` where one was asked for, and one ran."""
    ranks = rank_of(records)
    launched = [record for record in records if record["kind"] == "rank"]
    groups = [record for record in records if record["kind"] == "group"]
    asked_for = [_number(one["variables"].get("WORLD_SIZE")) for one in launched]
    asked_for += [int(one["processes"]) for one in _kind(records, "launcher")]
    asked = max(asked_for, default=1)
    met = max((int(one["size"]) for one in groups), default=1)
    wrapped = _kind(records, "wrapped")
    kind, where = _asked_type(records, launched)
    if max(asked, met) < 2 and not kind:
        return None
    trained = {
        ranks.get(one["pid"], 0) for one in _kind(records, "trained") if int(one["steps"]) > 0
    }
    variables = launched[0]["variables"] if launched else {}
    return Processes(
        asked=max(asked, met),
        started=len({ranks[one["pid"]] for one in (*launched, *groups)}),
        simple_launcher=_simple_launcher(records),
        met=met,
        trained=tuple(sorted(trained)),
        asked_type=kind,
        asked_in=where,
        ran_type=str(wrapped[-1]["by"]) if wrapped else "",
        backend=str(groups[-1]["backend"]) if groups else "",
        sharded=next((one["classes"] for one in reversed(wrapped) if "classes" in one), {}),
        state_dict=next(
            (str(one["state_dict"]) for one in _kind(records, "fsdp")),
            str(variables.get("FSDP_STATE_DICT_TYPE", "")),
        ),
        **_placed(records, short),
        reentrant=_reentrant(records),
        zero_stage=_zero_stage(records, variables),
        sums={
            str(ranks.get(one["pid"], 0)): float(one["sum"])
            for one in _kind(records, "trainable_sum")
        },
        same_batches=_same_batches(records, ranks, met),
        errors=_errors(records, ranks, short),
        saved=_saved(records, short),
        saved_empty=tuple(_saved_empty(records, short)),
    )


def otherwise_shared(found: Processes) -> str | None:
    """Why this run says nothing about how the processes were to share the model; ``None`` where
    they shared it so."""
    if 0 < found.started < found.asked:
        return f"{found.started} of {found.asked} processes were started on this machine"
    if found.asked > 1 and not found.started and not found.simple_launcher:
        return f"{found.asked} processes were asked for, and without GPUs the launcher started one"
    if found.met < 2 and found.started > 1:
        return f"{found.started} processes were started, and here they did not meet"
    if found.asked_type and found.ran_type != found.asked_type:
        ran = found.ran_type or "neither it nor another kind of sharing"
        where = f" ({found.asked_in})" if found.asked_in else ""
        return f"{found.asked_type} was requested{where}, and {ran} ran here"
    return None


def by_size(records: Sequence[Record], found: Processes) -> str | None:
    """What a policy that counts parameters does at full size is not what it does here."""
    for record in _kind(records, "rank"):
        variables = record["variables"]
        if str(variables.get("FSDP_AUTO_WRAP_POLICY", "")).upper() == "SIZE_BASED_WRAP":
            wrapped = sum(found.sharded.values())
            return (
                "fsdp_min_num_params counts parameters, of which the tiny model has few: "
                f"{wrapped} modules were wrapped here"
            )
    return None


def _kind(records: Iterable[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def _number(text: Any) -> int:
    return int(text) if str(text or "").isdigit() else 0


def _arguments(records: Sequence[Record]) -> Mapping[str, Any]:
    found = _kind(records, "arguments")
    return found[-1]["values"] if found else {}


def _asked_type(records: Sequence[Record], launched: Sequence[Record]) -> tuple[str, str]:
    """How the model was to be shared, and where that stands; twice empty where nothing is said."""
    for record in launched:
        variables = record["variables"]
        if str(variables.get("ACCELERATE_USE_DEEPSPEED", "")).lower() == "true":
            return "DeepSpeed", "accelerate's config"
        if str(variables.get("ACCELERATE_USE_FSDP", "")).lower() == "true":
            version = str(variables.get("FSDP_VERSION", "1"))
            return _fsdp(records, newer=version == "2"), "accelerate's config"
    values = _arguments(records)
    if values.get("deepspeed"):
        return "DeepSpeed", "deepspeed"
    if values.get("fsdp"):
        settings = values.get("fsdp_config")
        given = settings if isinstance(settings, Mapping) else {}
        newer = str(given.get("version", given.get("fsdp_version"))) == "2"
        return _fsdp(records, newer=newer), "fsdp"
    chosen = [name for one in _kind(records, "launcher") for name in one["chosen"]]
    for name, kind in (("use_fsdp", "FSDP"), ("use_deepspeed", "DeepSpeed")):
        if name in chosen:
            return kind, "accelerate's config"
    return "", ""


def _fsdp(records: Sequence[Record], *, newer: bool) -> str:
    """Which FSDP the settings mean: as accelerate has read them, where it came so far; what is not
    said is FSDP 2 by the Trainer of transformers 5, and FSDP 1 before."""
    read = _kind(records, "fsdp")
    return "FSDP2" if (read[0]["version"] == 2 if read else newer) else "FSDP"


def _simple_launcher(records: Sequence[Record]) -> str:
    for record in _kind(records, "launcher"):
        kind = str(record["distributed_type"])
        if int(record["machines"]) == 1 and kind != "MULTI_CPU":
            if record["chosen"] == ["cpu"]:
                return "--cpu"
            if not record["chosen"] and kind:
                return f"distributed_type: {kind}"
    return ""


def _zero_stage(records: Sequence[Record], variables: Mapping[str, Any]) -> int | None:
    ran = [one["zero_stage"] for one in _kind(records, "wrapped") if "zero_stage" in one]
    if ran and isinstance(ran[-1], int):
        return ran[-1]
    stage = variables.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    if stage is not None:
        return _number(stage)
    settings = _settings(_arguments(records).get("deepspeed"))
    zero = settings.get("zero_optimization")
    found = zero.get("stage") if isinstance(zero, Mapping) else None
    return found if isinstance(found, int) else None


def _placed(records: Sequence[Record], short: Callable[[str], str]) -> dict[str, Any]:
    """Where the first model that asks for devices is loaded, and which ones it asks for."""
    for record in _kind(records, "model"):
        asked = record["asked"].get("device_map")
        if asked is not None:
            place = record["place"]
            return {
                "device_map": str(asked),
                "loaded_in": short(place["file"]) if place else "",
                "loaded_line": int(place["line"]) if place else 0,
            }
    return {}


def _settings(value: Any) -> Mapping[str, Any]:
    """Settings of DeepSpeed: as they were given, or out of the file that was named."""
    if isinstance(value, str):
        try:
            value = json.loads(read_text(Path(value)).text)
        except (LoraDoctorError, OSError, ValueError):
            return {}
    return value if isinstance(value, Mapping) else {}


def _reentrant(records: Sequence[Record]) -> bool | None:
    """Whether checkpointing is reentrant; ``None`` where none was seen."""
    found = _kind(records, "checkpointing")
    return bool(found[-1]["reentrant"]) if found else None


def _same_batches(records: Sequence[Record], ranks: Mapping[int, int], met: int) -> int:
    """How many of the first training batches all processes have in common; 0 where one differs,
    where one process has the same batch again and again, where rows were repeated here, or where a
    mesh of several dimensions may have processes share a batch (tensor or context parallel)."""
    found: dict[int, list[Any]] = {}
    for record in _kind(records, "rows"):
        found.setdefault(ranks.get(record["pid"], -1), []).append(record["rows"].get("input_ids"))
    if met < 2 or set(found) != set(range(met)) or _kind(records, "repeated"):
        return 0
    if any(one["dimensions"] > 1 for one in _kind(records, "mesh")):
        return 0
    first, *others = found.values()
    count = min(len(batches) for batches in found.values())
    known = all(batch is not None for batch in first) and first[0] not in first[1:count]
    same = all(batches[:count] == first[:count] for batches in others)
    return count if known and same and count > 1 else 0


def _errors(
    records: Sequence[Record], ranks: Mapping[int, int], short: Callable[[str], str]
) -> tuple[RankError, ...]:
    """The first exception of each rank."""
    found: dict[int, RankError] = {}
    for record in _kind(records, "error"):
        number = ranks.get(record["pid"])
        if number is None or number in found:
            continue
        place = record["own"][-1] if record["own"] else None
        found[number] = RankError(
            number,
            str(record["type"]),
            str(record["message"])[:600],
            file=short(place["file"]) if place else "",
            line=int(place["line"]) if place else 0,
            of_another=is_of_another(record),
        )
    return tuple(found.values())


def _saved(records: Sequence[Record], short: Callable[[str], str]) -> tuple[SavedAdapter, ...]:
    """What each call made of an adapter, of the process that came furthest with it."""
    found: dict[tuple[str, str], SavedAdapter] = {}
    for record in _kind(records, "saved_adapter"):
        place = record.get("place")
        one = SavedAdapter(
            path=str(record["path"]),
            by=str(record["by"]),
            written=bool(record["written"]),
            expected=int(record["expected"]),
            whole=int(record["whole"]),
            empty=tuple(record["empty"]),
            partial=tuple(record["partial"]),
            error=str(record["error"]),
            file=short(place["file"]) if place else "",
            line=int(place["line"]) if place else 0,
        )
        before = found.get((one.path, one.by))
        if before is None or (one.written, one.whole) > (before.written, before.whole):
            found[one.path, one.by] = one
    return tuple(found.values())


def _saved_empty(records: Sequence[Record], short: Callable[[str], str]) -> Iterator[EmptyWeights]:
    for record in _kind(records, "saved_empty"):
        place = record.get("place")
        yield EmptyWeights(
            path=short(record["path"]),
            model_class=str(record["model_class"]),
            tensors=int(record["tensors"]),
            empty=int(record["empty"]),
            names=tuple(record["names"]),
            file=short(place["file"]) if place else "",
            line=int(place["line"]) if place else 0,
        )
