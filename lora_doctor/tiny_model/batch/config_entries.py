"""What a config says about inputs: entries by name, special tokens, placeholders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lora_doctor.tiny_model.config_roles import Node, flat_ints, role_of, tree
from lora_doctor.tiny_model.modalities import BY_NAME

#: Names of tokens that stand around or between features, not for one.
_BORDER = re.compile(
    r"start|end|begin|eos|bos|newline|pad|row|col|delim|bo[iav]|eo[iav]|break"
)  # fmt: skip


class ConfigEntries:
    """Entries of a config tree by name, outermost first."""

    def __init__(self, config: Any) -> None:
        self.root: Node | None = tree(config) if config is not None else None

    def nodes(self) -> Iterator[Node]:
        """All configs, nearest the root first."""
        level = [self.root] if self.root is not None else []
        while level:
            yield from level
            level = [child for node in level for child in node.children]

    def number(self, *names: str, default: int = 0, within: str = "") -> int:
        """The first positive integer under one of `names` (the last of a list).

        `within` is a regular expression for the path of the config that must hold it.
        """
        for name in names:
            for node in self.nodes():
                if within and not re.search(within, node.path):
                    continue
                found = list(flat_ints(node.values.get(name)))
                if found and found[-1] > 0:
                    return found[-1]
        return default

    def special_ids(self) -> set[int]:
        """Ids of all special tokens in the tree."""
        ids: set[int] = set()
        for node in self.nodes():
            for key, value in node.values.items():
                if role_of(key, value) == "ids":
                    ids.update(flat_ints(value))
        return ids

    def placeholder(self, modality: str) -> int | None:
        """The token id that stands for one feature of a modality ("image", "audio", "video")."""
        exact = (f"{modality}_token_id", f"{modality}_token_index")
        words = BY_NAME[modality].words
        best: int | None = None
        for node in self.nodes():
            for key, value in node.values.items():
                if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                    continue
                if key in exact:
                    return value
                named = re.search(words, key) and not _BORDER.search(key)
                if best is None and named and role_of(key, value) == "ids":
                    best = value
        return best
