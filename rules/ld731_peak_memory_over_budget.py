"""LD731: training takes more memory than the team's budget allows."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Proof, Rule
from lora_doctor.rules._budgets import out_of_budget

_SMALL = {
    "target_modules": ["c_attn"],
    "per_device_train_batch_size": 1,
    "max_length": 64,
}


class PeakMemoryOverBudget(Rule):
    """The memory plan of the recipe is outside the budget `peak-memory`.

    ## What happens
    Nothing fails; a number has left the bounds that the team set for it, for example because the
    model, the batch or the length grew.

    ## Why
    A team declares how much memory training may take: `peak-memory = {max = "l4"}` or `{max =
    "20GB"}`. The number is that of the memory plan (`--memory`). If the limit is within its
    margins, the finding is a warning, whatever the level of the budget.

    ## Versions
    All.

    ## Fix
    By hand: change the recipe or the budget. `LD704` with `--gpu` names the nearest change that
    fits.

    ## Links
    https://huggingface.co/docs/transformers/model_memory_anatomy
    """

    code = "LD731"
    name = "peak-memory-over-budget"
    summary = "Training takes more memory than the project's budget allows."
    depth = "meta"
    budgets = ("peak-memory",)
    examples = (
        Example("broken", "arch:gpt2", _SMALL, depth="meta",
                budgets={"peak-memory": {"max": "512MB"}}),
        Example("healthy", "arch:gpt2", _SMALL, depth="meta",
                budgets={"peak-memory": {"max": "l4"}}),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        proof = Proof("measured", "counted on the installed classes at full size, on the meta "
                                  "device; nothing was loaded and no GPU used")  # fmt: skip
        yield from out_of_budget(self, case, self.budgets, proof)
