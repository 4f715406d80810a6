"""Heads of a small config: groups stay fewer than heads, and products are what they were."""

from __future__ import annotations

import re
from typing import Any

from lora_doctor.tiny_model.config_roles import role_of
from lora_doctor.tiny_model.shrink.sizes import Sizes

_INNER_WIDTH = re.compile(r"inter|ffn|_ff$|mlp|rank|inner")


def fix_heads(before: dict[str, Any], new: dict[str, tuple[str, Any]], sizes: Sizes) -> None:
    """Key/value groups stay fewer than heads; head_dim follows `heads * head_dim == k * width`.

    Args:
        before: the entries as they were.
        new: role and value of those that change; more are written into it.
    """
    heads = _Heads(before, new, sizes)
    if "kv_heads" not in sizes.keep_roles:
        heads.fix_groups()
    if "head_dim" not in sizes.keep_roles:
        heads.fix_head_dims()


class _Heads:
    def __init__(
        self, before: dict[str, Any], new: dict[str, tuple[str, Any]], sizes: Sizes
    ) -> None:
        self.before = before
        self.new = new
        self.sizes = sizes
        self.queries = {
            k: v for k, v in before.items() if isinstance(v, int) and role_of(k, v) == "heads"
        }

    def now(self, key: str) -> Any:
        """The value that an entry will have."""
        is_new = key in self.new and key not in self.sizes.keep_keys
        return self.new[key][1] if is_new else self.before[key]

    def fix_groups(self) -> None:
        for key, value in self.before.items():
            if not isinstance(value, int) or role_of(key, value) != "kv_heads" or value <= 1:
                continue
            partner = _partner(key, self.queries)
            if partner is None or value >= self.queries[partner]:
                continue
            if self.now(partner) <= self.now(key):
                self.new[key] = ("kv_heads", max(1, self.now(partner) // 2))

    def fix_head_dims(self) -> None:
        for key, value in self.before.items():
            if role_of(key, value) != "head_dim" or not isinstance(value, int) or value <= 0:
                continue
            if key.startswith(("qk_", "v_head")) or self.before.get("qk_head_dim") == value:
                continue  # latent attention: its head dimensions are tied to each other by sums
            partner = _partner(key, self.queries)
            if partner is not None and not self._fix_by_width(key, partner):
                self._fix_product(key, partner)

    def _fix_by_width(self, key: str, partner: str) -> bool:
        """Whether a width is once or twice the product of heads and their dimension; then it is so
        afterwards, if it can be."""
        product = self.queries[partner] * self.before[key]
        expands = "expand" in "".join(self.before)
        for width_key, width in self._widths():
            factor, rest = divmod(product, width)
            if rest == 0 and (factor == 1 or (factor == 2 and expands)):
                if self.now(width_key) * factor % self.now(partner) == 0:
                    head_dim = self.now(width_key) * factor // self.now(partner)
                    self.new[key] = ("head_dim", head_dim)
                return True
        return False

    def _widths(self) -> list[tuple[str, int]]:
        return [
            (k, v)
            for k, v in self.before.items()
            if isinstance(v, int)
            and v > 0
            and role_of(k, v) == "width"
            and not _INNER_WIDTH.search(k)
        ]

    def _fix_product(self, key: str, partner: str) -> None:
        """`mamba_d_ssm == mamba_n_heads * mamba_d_head`."""
        product = self.queries[partner] * self.before[key]
        for other, number in self.before.items():
            if number == product and role_of(other, number) == "other":
                self.new[other] = ("head_dim", self.now(partner) * self.now(key))


def _partner(key: str, queries: dict[str, int]) -> str | None:
    """The number-of-heads entry that belongs to `key`: the one with the longest common prefix."""
    if not queries:
        return None
    stem = re.sub(r"^(num|n)_", "", key)

    def likeness(name: str) -> tuple[int, bool]:
        other = re.sub(r"^(num|n)_", "", name)
        common = 0
        for a, b in zip(stem.split("_"), other.split("_"), strict=False):
            if a != b:
                break
            common += 1
        return common, name in ("num_attention_heads", "num_heads", "n_head", "n_heads")

    return max(queries, key=likeness)
