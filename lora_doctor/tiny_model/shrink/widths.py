"""Widths that the parts of a model do not agree on, read from what a forward raises."""

from __future__ import annotations

import re
from typing import Any

from lora_doctor.tiny_model.config_roles import Node, role_of

_PRODUCT = re.compile(r"cannot be multiplied \(\d+x(?P<got>\d+) and (?P<want>\d+)x\d+\)")
_LANGUAGE = re.compile(r"text|language|llm|decoder|generator|thinker|talker")


def agreed_widths(root: Node, text: str) -> dict[str, Any]:
    """The width that a part expects, set to the one that it is given: "mat1 and mat2 shapes cannot
    be multiplied (8x256 and 160x96)", where one part beside the language model has 160 written
    down."""
    product = _PRODUCT.search(text)
    if product is None:
        return {}
    got, want = int(product["got"]), int(product["want"])
    parts = [node for node in root.walk() if not _LANGUAGE.search(node.path)]
    if any(_LANGUAGE.search(node.path) for node in root.walk()):
        for node in sorted(parts, key=lambda node: node is root):
            found = [
                key
                for key, value in node.values.items()
                if value == want and role_of(key, value) == "width"
            ]
            if found:
                return {node.where(key): got for key in found}
    return {}


def required_rows(root: Node, text: str) -> dict[str, Any]:
    """A table by numbers of patches that lacks the one an image has: "Number of patches 16 not
    found in patch_to_query_dict amongst possible values dict_keys([1225, 4900])"."""
    missing = re.search(r"\b(\d+) not found .*?dict_keys\(\[([\d, ]+)\]\)", text)
    if missing is None:
        return {}
    count, known = int(missing[1]), [int(key) for key in missing[2].split(",")]
    found: dict[str, Any] = {}
    for node in root.walk():
        for key, table in node.values.items():
            if not isinstance(table, dict) or [int(k) for k in table if _whole(k)] != known:
                continue
            nearest = min(known, key=lambda k: abs(k - count))
            rows = {int(k): v for k, v in table.items()}
            found[node.where(key)] = {**rows, count: min(rows[nearest], count, 8)}
    return found


def _whole(key: Any) -> bool:
    return isinstance(key, int) or (isinstance(key, str) and key.isdigit())
