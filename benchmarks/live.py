"""What watching a training costs after its first steps: seconds of a step with and without it.

    python benchmarks/live.py [--device cpu|cuda] [--rounds N] [--limit 1.02] [--json FILE]

Two equal models are trained in turns, a few steps each, one of them with ``lora_doctor.watch``
whose first steps are over. Told is the median over the rounds of the ratio of two neighbours, on
the clock and in processor seconds of this process: on a machine that is busy with something else
the second says more. A step has to take 50 ms at least. With ``--limit`` the exit code is 1 where
the ratio (on the clock on a GPU, else in processor seconds) is above it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

#: Steps of a turn; on a GPU what is queued in one turn runs without waiting for the host.
STEPS = {"cpu": 2, "cuda": 10}
#: Hidden size, layers, rows and tokens of a row.
SIZES = {"cpu": (128, 4, 2, 96), "cuda": (2048, 16, 8, 1024)}
LEAST_SECONDS = 0.05


def model_on(device: str) -> Any:
    import peft
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    hidden, layers, _, tokens = SIZES[device]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, vocab_size=8000,
        max_position_embeddings=tokens,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_config(config)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=16, target_modules=names)
    model = peft.get_peft_model(base.to(torch.bfloat16) if device == "cuda" else base, lora)
    return model.to(device).train()


class Loop:
    """One training; ``watched``: with ``lora_doctor.watch``."""

    def __init__(self, device: str, *, watched: bool) -> None:
        import torch

        import lora_doctor

        _, _, rows, tokens = SIZES[device]
        self.device = device
        self.model = model_on(device)
        adapters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(adapters, lr=1e-4)
        ids = torch.randint(0, 8000, (rows, tokens), device=device)
        self.batch = {"input_ids": ids, "labels": ids}
        self.watch: Any = None
        if watched:
            self.watch = lora_doctor.watch(self.model, self.optimizer, contract=False)

    def turn(self, steps: int) -> tuple[float, float]:
        """Seconds of a step on the clock, and of this process's processors."""
        import torch

        began, used = time.perf_counter(), time.process_time()
        for _ in range(steps):
            loss = self.model(**self.batch).loss
            loss.backward()
            if self.watch is not None:
                self.watch.step(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / steps, (time.process_time() - used) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--limit", type=float)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    import torch

    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    plain, watched = Loop(device, watched=False), Loop(device, watched=True)
    for loop in (plain, watched):
        loop.turn(6)
    pairs = []
    for number in range(given.rounds):
        first, second = (plain, watched) if number % 2 else (watched, plain)
        times = {id(loop): loop.turn(STEPS[device]) for loop in (first, second)}
        pairs.append((times[id(plain)], times[id(watched)]))
    result = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "step_seconds": statistics.median(one[0] for one, _ in pairs),
        "clock_ratio": statistics.median(two[0] / one[0] for one, two in pairs),
        "processor_ratio": statistics.median(two[1] / one[1] for one, two in pairs),
        "rounds": given.rounds,
    }
    print(json.dumps(result, indent=1))
    if given.json:
        given.json.write_text(json.dumps(result))
    if result["step_seconds"] < LEAST_SECONDS:
        sys.exit(f"a step takes {result['step_seconds']:.3f} s, less than {LEAST_SECONDS}")
    ratio = result["clock_ratio" if device == "cuda" else "processor_ratio"]
    if given.limit and ratio > given.limit:
        sys.exit(f"the ratio {ratio:.4f} is above {given.limit}")


if __name__ == "__main__":
    main()
