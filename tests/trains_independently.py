"""The rows that a census calls trained, tried again with nothing but transformers and PEFT.

    lora-doctor census -o OUT --keep-models MODELS
    python tests/trains_independently.py OUT/census.json MODELS

Each kept tiny model is loaded with `from_pretrained`, wrapped with the printed recipe, and takes
three optimizer steps on the kept batch: the loss must fall and every adapter must move. Nothing
of lora-doctor is imported.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file

STEPS = 3
#: Gentler ones follow where a step overshoots.
RATES = (1e-2, 1e-3, 1e-4)


def main(table: Path, models: Path) -> int:
    rows = json.loads(table.read_text())["rows"]
    trained = [row for row in rows if row["cells"]["recipe"]["status"] == "yes"]
    wrong = 0
    for row in trained:
        name = f"{row['auto_class']}-{row['model_type']}"
        try:
            reason = objection(row, models / name)
        except Exception as error:  # noqa: BLE001 - it is this row's answer
            reason = " ".join(f"{type(error).__name__}: {error}".split())
        if reason:
            wrong += 1
            print(f"{name}: {reason}", flush=True)
    print(f"{len(trained) - wrong} of {len(trained)} rows called trained do train")
    return 1 if wrong or not trained else 0


def objection(row: dict[str, Any], folder: Path) -> str:
    """Why this row does not train; empty when it does."""
    batch = {**json.loads((folder / "batch.json").read_text())}
    batch.update(load_file(str(folder / "batch.safetensors")))
    reason = ""
    for rate in RATES:
        reason = one_try(row, folder, batch, rate)
        if not reason:
            break
    return reason


def one_try(row: dict[str, Any], folder: Path, batch: dict[str, Any], rate: float) -> str:
    torch.manual_seed(0)
    model = getattr(transformers, row["model_class"]).from_pretrained(folder)
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    config = peft.LoraConfig(**{k: v for k, v in row["recipe"].items() if k in known})
    model = peft.get_peft_model(model, config)
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in adapters.items()}
    optimizer = torch.optim.AdamW(adapters.values(), lr=rate)
    first = measured(model, batch)
    for _ in range(STEPS):
        model.train()
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    last = measured(model, batch)
    moved: dict[str, bool] = {}
    for name, parameter in adapters.items():
        # One expert of many may get no token of so small a batch; then its neighbours did.
        kind = re.sub(r"\.experts\.\d+\.", ".experts.*.", name)
        moved[kind] = moved.get(kind, False) or not torch.equal(parameter, before[name])
    still = [name for name, has_moved in moved.items() if not has_moved]
    if still:
        return f"{len(still)} of {len(moved)} adapters did not move: {still[0]}"
    return "" if last < first else f"the loss went from {first:.6g} to {last:.6g}"


def loss_of(model: Any, batch: dict[str, Any]) -> Any:
    result = model(**batch)
    loss = getattr(result, "loss", None)
    return loss if loss is not None else result.logits.float().pow(2).mean()


def measured(model: Any, batch: dict[str, Any]) -> float:
    """The loss without dropout."""
    model.eval()
    with torch.no_grad():
        torch.manual_seed(0)
        return float(loss_of(model, batch))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("trains_independently.py: give census.json and the folder of kept models")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
