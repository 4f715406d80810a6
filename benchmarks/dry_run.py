"""What a dry run costs beside what nobody can save: the imports of the script and its own data.

    python benchmarks/dry_run.py [--rounds N] [--limit 1.5] [--json FILE]

Each round runs the first part of a script (imports, and the rows made as the dry run makes them),
and then the dry run of the whole script, up to its verdict. Told is the ratio of the two, the
median over the rounds, in seconds on the clock and in processor seconds of all processes: on a
machine that is busy with something else the second says more. With ``--limit`` the exit code is 1
where the ratio on processor seconds is above it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: A Llama of 7 billion parameters; only its config is there.
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000,
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
#: Nobody can do without this part.
PREPARATION = """\
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator

rows = []
for number in range(64):
    ids = [1, *((number + place) % 30000 + 3 for place in range(126)), 2]
    rows.append({"input_ids": ids, "attention_mask": [1] * 128, "labels": ids})
"""
TRAINING = """
model = get_peft_model(
    AutoModelForCausalLM.from_pretrained("model", torch_dtype=torch.bfloat16),
    LoraConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
trainer = Trainer(
    model,
    TrainingArguments("out", per_device_train_batch_size=4, bf16=True, report_to=[]),
    train_dataset=rows,
    data_collator=default_data_collator,
)
trainer.train()
trainer.save_model("out")
"""


def main() -> None:
    """Measure, print, and keep what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
        (folder / "preparation.py").write_text(PREPARATION)
        (folder / "train.py").write_text(PREPARATION + TRAINING)
        measure(folder, "preparation.py")  # files into the cache of the system
        for _ in range(options.rounds):
            plain = measure(folder, "preparation.py")
            whole = measure(folder, "-m", "lora_doctor", "dry-run", "train.py")
            rounds.append((plain, whole))
            print(f"preparation {words(plain)}; dry run {words(whole)}", flush=True)
    clock, cpu = (statistics.median(whole[n] / plain[n] for plain, whole in rounds) for n in (0, 1))
    print(f"a dry run takes {clock:.2f} x the time and {cpu:.2f} x the processor of its imports")
    if options.json:
        options.json.write_text(json.dumps({"clock": clock, "cpu": cpu, "rounds": rounds}))
    if options.limit is not None and cpu > options.limit:
        raise SystemExit(1)


def measure(folder: Path, *words: str) -> tuple[float, float]:
    """Seconds on the clock, and of processors, of one run that has to succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # Installed packages are compiled; a checkout would be compiled anew in each process.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before, began = children(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, check=False
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit((done.stdout + done.stderr).decode(errors="replace"))
    return seconds, children() - before


def children() -> float:
    """Processor seconds of all children that have ended, theirs included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def words(pair: tuple[float, float]) -> str:
    """Such as ``5.1 s (4.8 s of processors)``."""
    return f"{pair[0]:.1f} s ({pair[1]:.1f} s of processors)"


if __name__ == "__main__":
    main()
