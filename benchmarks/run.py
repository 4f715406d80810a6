"""Time and memory of the main paths, as ratios to the plain import of the training stack.

    python benchmarks/run.py [--rounds N] [--json FILE]

Whatever a machine does, importing torch, transformers and peft is the price that everybody pays;
so each case is run right after such an import, in turn, and the ratio of the two is taken (median
over the rounds). `cpu` is the same ratio in processor seconds of the whole process tree: on a
machine that is busy with something else it says more than the time on the clock. Memory is
measured in a run of its own, because looking costs time. Checks are asked with `--no-cache`; one
case is the same question again, answered from a cache in the benchmark's own folder.

One case is compared with what people do today instead: build the 1B model with random weights, put
the adapters in, take one training step. The census has rows per minute; it is taken once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from dry_run import PREPARATION, TRAINING  # beside this file

ROOT = Path(__file__).resolve().parent.parent
IMPORT = [sys.executable, "-c", "import torch, transformers, peft"]
DOCTOR = [sys.executable, "-m", "lora_doctor"]
GIB = 1 << 30
SAMPLE_SECONDS = 0.02
#: What the census is timed on; `--census '*'` takes all.
CENSUS_SAMPLE = "AutoModelForSeq2SeqLM"

# The published sizes of Llama 3.2 1B and Llama 3.1 405B.
LLAMA_1B = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_405B = {
    "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
    "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
#: What somebody does today to see whether a recipe trains.
USERS_WAY = f"""
import torch, transformers, peft
model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**{LLAMA_1B!r}))
model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=16,
                                                   target_modules="all-linear"))
optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
ids = torch.randint(0, model.config.vocab_size, (2, 16))
model(input_ids=ids, labels=ids).loss.backward()
optimizer.step()
"""
#: Names of GPT-2: on Llama they match nothing.
BAD_RECIPE = "target_modules: [c_attn, c_proj]\nr: 16\nlora_alpha: 32\ntask_type: CAUSAL_LM\n"


@dataclass(frozen=True)
class Case:
    """One command line; ``target`` is the ratio to stay under, ``base`` what it is a ratio to."""

    name: str
    arguments: tuple[str, ...]
    target: float
    memory_target: int | None = None
    exit_codes: tuple[int, ...] = (0, 1)
    base: tuple[str, ...] = tuple(IMPORT)


@dataclass
class Result:
    """Seconds and ratios are medians. Memory in bytes: ``tree``, the largest sum over all
    processes at one moment, shared pages counted once where the system tells (Linux);
    ``largest``, the resident peak of the largest single process."""

    name: str
    target: float
    seconds: float
    ratio: float
    spread: tuple[float, float]
    cpu_ratio: float
    tree: int
    largest: int
    base_tree: int
    memory_target: int | None = None
    rounds: list[dict[str, float]] = field(default_factory=list)


def write_model(folder: Path, sizes: Mapping[str, Any], *, weights: bool) -> Path:
    """A local model folder; its weights are a header and a hole in the file."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "rms_norm_eps": 1e-05, **sizes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    if weights:
        write_weights(folder / "model.safetensors", sizes)
    return folder


def write_weights(path: Path, sizes: Mapping[str, Any]) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors(sizes):
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def tensors(sizes: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of a Llama checkpoint with tied embeddings."""
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    narrow = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    yield "model.embed_tokens.weight", [sizes["vocab_size"], hidden]
    yield "model.norm.weight", [hidden]
    for number in range(sizes["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm.weight", [hidden]
        yield f"{layer}.post_attention_layernorm.weight", [hidden]
        for name, rows in (("q", hidden), ("k", narrow), ("v", narrow), ("o", hidden)):
            yield f"{layer}.self_attn.{name}_proj.weight", [rows, hidden]
        yield f"{layer}.mlp.gate_proj.weight", [inner, hidden]
        yield f"{layer}.mlp.up_proj.weight", [inner, hidden]
        yield f"{layer}.mlp.down_proj.weight", [hidden, inner]


def cases(folder: Path) -> list[Case]:
    small = str(write_model(folder / "llama-1b", LLAMA_1B, weights=True))
    large = str(write_model(folder / "model", LLAMA_405B, weights=False))
    (folder / "train.py").write_text(PREPARATION + TRAINING, encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(BAD_RECIPE, encoding="utf-8")
    return [
        Case("--help", ("--help",), 0.05),
        Case("check --depth static, 1B, bad recipe",
             ("check", small, "--depth", "static", "--recipe", str(recipe), "--no-cache"), 0.1),
        Case("check --depth meta, 1B", ("check", small, "--depth", "meta", "--no-cache"), 1.3),
        Case("check --depth meta, 405B", ("check", large, "--depth", "meta", "--no-cache"),
             1.3, 3 * GIB),
        Case("dry-run of a Trainer script, 405B", ("dry-run", "train.py"), 2.5, 3 * GIB),
        Case("check (tiny), arch:llama", ("check", "arch:llama", "--no-cache"), 2.0),
        Case("the same question again, from the cache", ("check", "arch:llama"), 0.1),
        Case("check (tiny), to a 1B model's first step", ("check", "arch:llama", "--no-cache"), 0.5,
             base=(sys.executable, "-c", USERS_WAY)),
    ]  # fmt: skip


def run(command: Sequence[str], folder: Path, exit_codes: tuple[int, ...]) -> tuple[float, float]:
    """Seconds on the clock, and processor seconds of the command and all its descendants."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL, capture_output=True
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in exit_codes:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr.decode()}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def environment(folder: Path) -> dict[str, str]:
    # The commands are run where nothing of the checkout lies, with its code.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # Not the user's cache: it may hold the answer, and is not ours to fill.
    cache = str(folder / "cache")
    values = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": cache}
    # Installed packages come compiled, as ours does from a wheel: not to be compiled at each start.
    values.pop("PYTHONDONTWRITEBYTECODE", None)
    return values


def peak_memory(
    command: Sequence[str], folder: Path, every: float = SAMPLE_SECONDS
) -> tuple[int, int]:
    """Bytes: the largest sum over the process tree, and the largest single process."""
    process = subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    largest_sum = largest = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal largest_sum, largest
        root = psutil.Process(process.pid)
        while not over.is_set():
            sizes = []
            try:
                family = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for member in family:
                try:
                    # Forked processes share most of their pages; the proportional size counts
                    # each page once.
                    full = member.memory_full_info()
                    sizes.append(getattr(full, "pss", full.rss))
                    largest = max(largest, full.rss)
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue  # it has ended between the listing and the look
            largest_sum = max(largest_sum, sum(sizes))
            over.wait(every)

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait()
    over.set()
    watcher.join()
    return largest_sum, largest


def measure(case: Case, folder: Path, rounds: int, import_tree: int) -> Result:
    command = [*DOCTOR, *case.arguments]
    # Once beforehand: files into the cache of the system, the answer into ours where it is asked.
    run(command, folder, case.exit_codes)
    taken = []
    for _ in range(rounds):
        base, base_cpu = run(case.base, folder, (0,))
        seconds, cpu = run(command, folder, case.exit_codes)
        taken.append({
            "seconds": seconds, "base_seconds": base, "ratio": seconds / base,
            "cpu_ratio": cpu / base_cpu,
        })  # fmt: skip
    ratios = [round_["ratio"] for round_ in taken]
    tree, largest = peak_memory(command, folder)
    return Result(
        name=case.name,
        target=case.target,
        seconds=statistics.median(round_["seconds"] for round_ in taken),
        ratio=statistics.median(ratios),
        spread=(min(ratios), max(ratios)),
        cpu_ratio=statistics.median(round_["cpu_ratio"] for round_ in taken),
        tree=tree,
        largest=largest,
        base_tree=import_tree if case.base == tuple(IMPORT) else peak_memory(case.base, folder)[0],
        memory_target=case.memory_target,
        rounds=taken,
    )


@dataclass
class CensusResult:
    """What `lora-doctor census` cost: ``processor_seconds`` a row are of the whole process tree,
    imports of the libraries included; ``median_seconds`` is a row's time on the clock."""

    select: str
    rows: int
    seconds: float
    processor_seconds: float
    median_seconds: float
    tree: int


def measure_census(select: str, folder: Path) -> CensusResult:
    command = [*DOCTOR, "census", "--select", select, "-o", "census"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    tree, _ = peak_memory(command, folder, every=0.5)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = (folder / "census" / "rows.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    each = [json.loads(line)["seconds"] for line in lines]
    if not each:
        sys.exit(f"{' '.join(command)}: made no row")
    return CensusResult(
        select, len(each), seconds, processor / len(each), statistics.median(each), tree
    )


def conditions(folder: Path, rounds: int) -> dict[str, Any]:
    import importlib.metadata

    tree, largest = peak_memory(IMPORT, folder)
    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")
    }
    return {
        "rounds": rounds,
        "python": platform.python_version(),
        "versions": versions,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "import_memory": {"tree": tree, "largest": largest},
    }  # fmt: skip


def table(about: Mapping[str, Any], results: Sequence[Result]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    imports = [item for item in results if item.base_tree == about["import_memory"]["tree"]]
    lines = [
        f"Python {about['python']}, {versions}; {about['cores']} cores, "
        f"load {about['load_before']:.1f} before; {about['rounds']} rounds",
    ]
    if imports:
        base = statistics.median(r["base_seconds"] for item in imports for r in item.rounds)
        lines.append(
            f"1 = python -c 'import torch, transformers, peft': {base:.2f} s, "
            f"{about['import_memory']['tree'] / GIB:.2f} GiB"
        )
    lines += [
        "",
        f"{'':40} {'ratio':>6} {'target':>7} {'min to max':>12} {'cpu':>6} {'seconds':>8} "
        f"{'memory':>9} {'target':>8}",
    ]
    for item in results:
        memory_target = f"{item.memory_target / GIB:.0f} GiB" if item.memory_target else ""
        target = f"< {item.target:g}"
        lines.append(
            f"{item.name:40} {item.ratio:6.2f} {target:>7} {item.spread[0]:5.2f} "
            f"{item.spread[1]:6.2f} {item.cpu_ratio:6.2f} {item.seconds:8.2f} "
            f"{item.tree / GIB:5.2f} GiB {'< ' + memory_target if memory_target else '':>8}"
        )  # fmt: skip
    others = [item for item in results if item not in imports]
    for item in others:
        base_seconds = statistics.median(round_["base_seconds"] for round_ in item.rounds)
        lines.append(
            f"{item.name}: 1 = {base_seconds:.1f} s, {item.base_tree / GIB:.2f} GiB; "
            f"memory {item.tree / item.base_tree:.2f} of it"
        )
    return "\n".join(lines)


def census_table(found: CensusResult) -> str:
    return (
        f"census of {found.select}: {found.rows} rows in {found.seconds:.0f} s, "
        f"{found.rows / found.seconds * 60:.0f} rows per minute, "
        f"{found.processor_seconds:.1f} processor seconds a row (mean, imports included), "
        f"a row {found.median_seconds:.1f} s (median, on the clock), "
        f"{found.tree / GIB:.2f} GiB (< 4)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each case (default 5)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--census", default=CENSUS_SAMPLE, metavar="PATTERN",
                        help="rows of the census to time (default %(default)s)")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="also write every single run to FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        about = conditions(folder, options.rounds)
        chosen = [case for case in cases(folder) if options.only in case.name]
        results = []
        for case in chosen:
            print(f"{case.name} ...", file=sys.stderr, flush=True)
            import_tree = about["import_memory"]["tree"]
            results.append(measure(case, folder, options.rounds, import_tree))
        census = None
        if options.only in "census":
            print(f"census of {options.census} ...", file=sys.stderr, flush=True)
            census = measure_census(options.census, folder)
    if results:
        print(table(about, results))
    if census is not None:
        print(census_table(census))
    if options.json:
        data = {
            **about,
            "cases": [asdict(result) for result in results],
            "census": asdict(census) if census is not None else None,
        }
        Path(options.json).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
