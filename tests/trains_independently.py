"""The rows that a census calls trained, tried again with nothing but transformers and PEFT.

    lora-doctor census -o OUT --keep-models MODELS
    python tests/trains_independently.py OUT/census.json MODELS [NAME...]

Each kept tiny model is loaded with `from_pretrained`, wrapped with the printed recipe, and takes
three optimizer steps on the kept batch: the loss must fall, nothing but adapters and what
`modules_to_save` names may be trainable, and all of it must move, by its gradient alone (no weight
decay). One expert of a list that no
token was sent to has no gradient to move by; that is seen by a hook, counted and printed, and
counts only where another expert of the same list did move. A recipe that names layers by number
names those of the full model; the kept `recipe.json` has the numbers of the tiny one, and such rows
are printed. Nothing of lora-doctor is imported.
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


def main(table: Path, models: Path, names: list[str]) -> int:
    rows = json.loads(table.read_text())["rows"]
    trained = [row for row in rows if row["cells"]["recipe"]["status"] == "yes"]
    trained = [row for row in trained if not names or row["model_type"] in names]
    wrong = adapters = 0
    without_token: dict[str, int] = {}
    renumbered: list[str] = []
    for row in trained:
        name = f"{row['auto_class']}-{row['model_type']}"
        try:
            tried = gentlest(row, models / name)
        except Exception as error:  # noqa: BLE001 - it is this row's answer
            tried = Tried(" ".join(f"{type(error).__name__}: {error}".split()))
        adapters += tried.adapters
        if recipe_of(row, models / name) != row["recipe"]:
            renumbered.append(name)
        if tried.without_token:
            without_token[name] = tried.without_token
        if tried.reason:
            wrong += 1
            print(f"{name}: {tried.reason}", flush=True)
    for name in renumbered:
        print(f"{name}: the recipe names layers by number, tried with those of the tiny model")
    for name, count in without_token.items():
        print(f"{name}: {count} adapter weights of experts that got no token, not judged")
    print(f"{adapters} adapter weights, {sum(without_token.values())} of them without a token")
    print(f"{len(trained) - wrong} of {len(trained)} rows called trained do train")
    return 1 if wrong or not trained else 0


@dataclasses.dataclass
class Tried:
    """``reason``: why this row does not train; empty when it does. Counts are of weights."""

    reason: str = ""
    adapters: int = 0
    without_token: int = 0


def gentlest(row: dict[str, Any], folder: Path) -> Tried:
    batch = {**json.loads((folder / "batch.json").read_text())}
    batch.update(load_file(str(folder / "batch.safetensors")))
    tried = Tried("no rate")
    for rate in RATES:
        tried = one_try(row, folder, batch, rate)
        if not tried.reason:
            break
    return tried


def recipe_of(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    file = folder / "recipe.json"
    recipe: dict[str, Any] = json.loads(file.read_text()) if file.exists() else row["recipe"]
    return recipe


def one_try(row: dict[str, Any], folder: Path, batch: dict[str, Any], rate: float) -> Tried:
    torch.manual_seed(0)
    model = getattr(transformers, row["model_class"]).from_pretrained(folder)
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    config = peft.LoraConfig(**{k: v for k, v in recipe_of(row, folder).items() if k in known})
    model = peft.get_peft_model(model, config)
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # What `modules_to_save` names is trained beside the adapters, and has to move as they do.
    saved = ".modules_to_save." if config.modules_to_save else "lora_"
    strays = [name for name in adapters if "lora_" not in name and saved not in name]
    if strays or not adapters:
        return Tried(f"{len(strays)} of {len(adapters)} trainable weights are no adapters {strays}")
    before = {name: p.detach().clone() for name, p in adapters.items()}
    optimizer = torch.optim.AdamW(adapters.values(), lr=rate, weight_decay=0.0)
    fed, hooks = watched(model)
    first = measured(model, batch)
    for _ in range(STEPS):
        model.train()
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    last = measured(model, batch)
    for hook in hooks:
        hook.remove()
    moved = {name: not torch.equal(p, before[name]) for name, p in adapters.items()}
    kinds_moved = {kind_of(name) for name, has_moved in moved.items() if has_moved}
    still = [name for name, has_moved in moved.items() if not has_moved]
    starved = {
        name
        for name in still
        if kind_of(name) != name and kind_of(name) in kinds_moved and owner_of(name) not in fed
    }
    found = Tried(adapters=len(adapters), without_token=len(starved))
    dead = [name for name in still if name not in starved]
    if dead:
        found.reason = f"{len(dead)} of {len(adapters)} adapters did not move: {dead[0]}"
    elif not first - last > 1e-6 * max(abs(first), 1e-3):
        found.reason = f"the loss went from {first:.7g} to {last:.7g}"
    return found


def kind_of(name: str) -> str:
    """The name with the number of an expert left out; the same where it is of no expert."""
    return re.sub(r"\bexperts\.(expert_)?\d+\.", "experts.*.", name)


def owner_of(name: str) -> str:
    """The adapted layer that an adapter weight belongs to."""
    return re.split(r"\.lora_", name)[0]


def watched(model: Any) -> tuple[set[str], list[Any]]:
    """Paths of adapted layers, filled as they are run on at least one number."""
    fed: set[str] = set()

    def hook_of(path: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            if any(isinstance(value, torch.Tensor) and value.numel() for value in inputs):
                fed.add(path)

        return hook

    layers = {owner_of(name) for name, p in model.named_parameters() if p.requires_grad}
    return fed, [
        module.register_forward_hook(hook_of(path))
        for path, module in model.named_modules()
        if path in layers
    ]


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
    if len(sys.argv) < 3:
        sys.exit("trains_independently.py: give census.json and the folder of kept models")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
