"""Functions of a program are worked out as Python would run them, and only plain ones."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from lora_doctor.evidence.plain_code import PlainFunction
from lora_doctor.evidence.plain_statements import Budget
from lora_doctor.evidence.plain_values import NotFollowedError

ROW = {"question": "why?", "answer": "so", "ids": [3, 4, 5, 6, 7], "tags": [0, 2], "score": 1.5}

PLAIN = {
    "template": """
def f(row):
    text = f"### {row['question'].upper():>8}|{row['score']:.2f}"
    if row.get("system"):
        text = row["system"] + text
    return {"text": text + "\\n" + "{a}-{0}".format(1, a=row["answer"])}
""",
    "mask": """
def f(row, width=4, *, pad=0):
    ids = row["ids"][:width] + [pad] * (width - len(row["ids"]))
    labels = [-100 if i < 2 else t for i, t in enumerate(ids)]
    return {"input_ids": ids, "labels": labels, "mask": [int(t != pad) for t in ids]}
""",
    "loops": """
def f(row):
    seen, groups = set(), {}
    for number, one in enumerate(row["ids"]):
        if one == 4:
            continue
        if one > 6:
            break
        seen.add(one)
        groups.setdefault(one % 2, []).append(number)
    else:
        groups["whole"] = True
    total = 0
    while total < 10:
        total += 3
    return sorted(seen, key=lambda one: -one), groups, total
""",
    "blocks": """
def f(row):
    joined = {k: sum([[x] for x in v], []) for k, v in row.items() if isinstance(v, list)}
    size = 2
    return {k: [v[i : i + size] for i in range(0, len(v), size)] for k, v in joined.items()}
""",
    "nested": """
def f(row):
    def twice(text, times=2):
        return text * times
    (a, b), c = (row["question"], row["answer"]), not row["tags"]
    row = {**row, "more": [*row["tags"], 9]}
    return [twice(x) for x in (a, b) if x], c, row["more"][-1], 3 < len(a) <= 4, a and b
""",
    "format map": 'def f(row):\n    return "{question} {text}".format_map(row)\n',
    "missing key": 'def f(row):\n    return row["text"]\n',
    "wrong kind": 'def f(row):\n    return row["answer"] + row["tags"]\n',
}
#: What Python does with them is no matter of a row: none is worked out, and nothing happens.
REFUSED = {
    "import": "import os\n    return os.getcwd()",
    "attribute of a class": "return row.__class__",
    "subclasses": 'return "".__class__.__mro__[1].__subclasses__()',
    "globals": "return f.__globals__",
    "format of an attribute": 'return "{0.__class__}".format(row)',
    "eval": 'return eval("1")',
    "getattr": 'return getattr(row, "keys")',
    "type": 'return type("A", (), {})',
    "a long text": 'return "a" * 10 ** 9',
    "a long list": "x = [0]\n    while True:\n        x += x",
    "for ever": "while True:\n        pass",
    "open": 'return open("/etc/hostname").read()',
    "try": "try:\n        return 1\n    except KeyError:\n        return 2",
    "raise": "raise KeyError(1)",
    "a wide number": "return f'{1:1000000000}'",
    "a decorator": "@row\n    def g():\n        return 1\n    return g()",
    "global": "global ROW\n    ROW = 1",
    "calls itself": "return f(row)",
    "a star": "first, *rest = row['ids']\n    return rest",
}


def _function(text: str) -> PlainFunction:
    code = ast.parse(text).body[0]
    assert isinstance(code, ast.FunctionDef)
    names: dict[str, Any] = {}
    names["f"] = made = PlainFunction(code, names, Budget(), 1)
    return made


def _of_python(text: str, row: dict[str, Any]) -> Any:
    names: dict[str, Any] = {}
    exec(compile(text, "f", "exec"), names)
    return names["f"](row)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_code_gives_what_python_gives(name: str) -> None:
    """A difference would be a failure that the user's run does not have, or one that is missed."""
    try:
        expected, error = _of_python(PLAIN[name], dict(ROW)), None
    except Exception as raised:  # noqa: BLE001 - compared below
        expected, error = None, raised
    try:
        found, other = _function(PLAIN[name])(dict(ROW)), None
    except Exception as raised:  # noqa: BLE001 - likewise
        found, other = None, raised
    assert (found, repr(other)) == (expected, repr(error))


@pytest.mark.parametrize("name", REFUSED)
def test_other_code_is_left_alone(name: str) -> None:
    """`check` reads a file of a stranger: nothing of it may run, or take the machine's time."""
    with pytest.raises(NotFollowedError):
        _function(f"def f(row):\n    {REFUSED[name]}\n")(dict(ROW))


def test_the_line_that_raises_is_known() -> None:
    """The user is told where in their file, not where in ours."""
    made = _function("def f(row):\n    a = row['answer']\n\n    return row['text'] + a\n")
    made.line = 20
    with pytest.raises(KeyError):
        made(dict(ROW))
    assert made.budget.line == 23
