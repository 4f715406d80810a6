"""What a config says about inputs: entries by name, special tokens, placeholders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lora_doctor.tiny_model.config_roles import Node, flat_ints, role_of, tree


class Settings:
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
        """The first positive whole number under one of `names` (the last of a list).

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

    def placeholder(self, kind: str) -> int | None:
        """The token id that stands for one feature of `kind` ("image", "audio", "video")."""
        words = {
            "image": r"image|img|media|vision",
            "audio": r"audio|speech|sound",
            "video": r"video",
        }
        border = re.compile(
            r"start|end|begin|eos|bos|newline|pad|row|col|delim|bo[iav]|eo[iav]|break"
        )
        exact = (f"{kind}_token_id", f"{kind}_token_index")
        best: int | None = None
        for node in self.nodes():
            for key, value in node.values.items():
                if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                    if key in exact:
                        return value
                    named = re.search(words[kind], key) and not border.search(key)
                    if best is None and named and role_of(key, value) == "ids":
                        best = value
        return best
