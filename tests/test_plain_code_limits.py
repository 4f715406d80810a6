"""Functions of a program that are worked out, not run: what they may take, and what they may read.

No program may hold up the tool, write anything, or have what it reads shown."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_doctor.evidence.own_rows import Maker
from lora_doctor.evidence.plain_values import NotFollowedError
from lora_doctor.evidence.stages import shown
from lora_doctor.recipe.program.own_rows import Describer
from lora_doctor.static.named_file import rows_file
from lora_doctor.static.program.program import read_program

NESTED = "    x = y = [1]\n    for i in range(60):\n        x = [x, x]\n        y = [y, y]\n"
LONG = "    s = 'a' * 190000\n    x = list(range(190000))\n"


def worked_out(body: str, steps: int = 3_000_000, folder: Path = Path(), **names: Any) -> Any:
    maker = Maker(None, None)
    maker.budget.steps = steps
    maker.folder = folder
    code = f"def f(row):\n{body}"
    function = maker.value(
        {"is": "function", "code": code, "line": 1, "names": {
            "json": {"is": "name", "name": "json"},
            **{name: {"is": "plain", "value": one} for name, one in names.items()},
        }}
    )  # fmt: skip
    return function({"text": "a"})


@pytest.mark.parametrize(
    "body",
    [
        "    while True:\n        pass",
        "    return [c for a in 'a' * 9999 for b in 'b' * 9999 for c in 'c' * 9999]",
        "    return f(row)",
        "    return " + "+".join(["1"] * 600),
        f"{NESTED}    return str(x)",
        f"{NESTED}    return f'{{x}}'",
        f"{NESTED}    return '{{}}'.format(x)",
        f"{NESTED}    return x == y",
        f"{NESTED}    return x in [y]",
        f"{NESTED}    return json.dumps(x)",
        f"{NESTED}    return x",
        "    x = (1,)\n    for i in range(60):\n        x = (x, x)\n    return {x: 1}",
        f"{LONG}    return s.replace('a', s)",
        f"{LONG}    return s.join([s] * 190000)",
        f"{LONG}    return ('{{0}}' * 100000).format(s)",
        f"{LONG}    return sum([x] * 99, [])",
        f"{LONG}    for i in x:\n        if -1 in x:\n            return i",
        f"{LONG}    for i in x:\n        sorted(x)",
        f"{LONG}    for i in x:\n        s.count('b')",
        f"{LONG}    for i in x:\n        x.insert(0, i)\n        x.pop()",
        "    return '{:{w}}'.format('a', w=99999999999)",
        "    w = 99999999\n    return f'{1:>{w}}'",
        "    return json.dumps([1], indent=9999999999)",
    ],
)
def test_what_would_take_long_ends_the_evaluation(body: str) -> None:
    with pytest.raises(NotFollowedError):
        worked_out(body, steps=30_000)


def test_plain_work_on_a_full_set_is_followed() -> None:
    """What programs do with a set of thousands of rows takes a part of what is allowed."""
    group = (
        "    rows = [[j] * 30 for j in range(1000)]\n"
        "    joined = sum(rows, [])\n"
        "    return [joined[i:i + 16] for i in range(0, len(joined), 16)]\n"
    )
    assert len(worked_out(group, steps=60_000)) == 1875
    render = "    return '{a}: {b:>5.2f}'.format(a=row['text'], b=1.5) + f'{2:04d}'\n"
    assert worked_out(render, steps=100) == "a:  1.500002"
    mapped = "    return '<{text}>'.format_map(row) + '{text}{x}'.format(**row, x=1)\n"
    assert worked_out(mapped, steps=100) == "<a>a1"
    counted = "    n = 7\n    n -= 2\n    n *= 3\n    n //= 2\n    return n\n"
    assert worked_out(counted, steps=100) == 7
    with pytest.raises(NotFollowedError):
        worked_out("    s = {1}\n    s -= {1}\n")
    named = "    return {'labels': names.index(row['text']), 'n': len(set(names))}\n"
    assert worked_out(named, steps=100, names="bca") == {"labels": 2, "n": 3}


def test_a_program_gets_no_method_of_a_tokenizer_that_writes() -> None:
    """A collator of `functools.partial(tokenizer.save_pretrained, FOLDER)` would be called."""
    tokenizer = SimpleNamespace(save_pretrained=print, vocab_size=3)
    maker = Maker(tokenizer, None)
    part = {"is": "part", "of": {"is": "tokenizer"}, "attribute": True}
    assert maker.value({**part, "name": "vocab_size"}) == 3
    call = {"is": "call", "name": "functools.partial", "line": 1, "named": {},
            "given": [{**part, "name": "save_pretrained"}]}  # fmt: skip
    with pytest.raises(NotFollowedError, match="save_pretrained"):
        maker.value(call)


def test_files_that_are_no_rows_are_not_read(tmp_path: Path) -> None:
    project, outside = tmp_path / "project", tmp_path / "outside"
    for folder in (project / ".git", outside):
        folder.mkdir(parents=True)
    for name in ("project/rows", "project/.env", "project/.git/config", "project/empty",
                 "outside/rows.jsonl", "outside/token", "outside/.rows.json"):  # fmt: skip
        (tmp_path / name).write_text("" if name.endswith("empty") else "secret")
    (project / "linked").symlink_to(outside / "token")
    (project / "linked.jsonl").symlink_to(outside / "rows.jsonl")
    (project / "round").symlink_to(project / "round")
    os.mkfifo(project / "pipe")
    names = ["rows", ".env", ".git/config", "empty", "pipe", "linked", "linked.jsonl", "round",
             "../outside/rows.jsonl", "../outside/token", "../outside/.rows.json",
             "/proc/self/environ", "/etc/passwd", "/dev/zero"]  # fmt: skip
    read = [name for name in names if rows_file(name, (project,)) is not None]
    assert read == ["rows", "linked.jsonl", "../outside/rows.jsonl"]
    with pytest.raises(NotFollowedError):
        worked_out("    return open('.env').read()", folder=project)
    assert worked_out("    return open('rows').read()", folder=project) == "secret"


def test_a_message_shows_the_beginning_of_what_it_quotes() -> None:
    assert shown(KeyError("label")) == "'label'"
    assert shown(KeyError("x" * 400)) == f"'{'x' * 50}...'"
    assert shown(ValueError(f"no '{'y' * 61}', but 'z'")) == f"no '{'y' * 50}...', but 'z'"
    told = (
        "Column to remove ['txt'] not in the dataset. Don't. Current columns in the set: ['text']"
    )
    assert shown(ValueError(told)) == told


def test_functions_share_what_they_change(tmp_path: Path) -> None:
    """A first `map` fills the names of the labels, and the second one reads them."""
    path = tmp_path / "train.py"
    path.write_text("import functools\nids, other = {}, {}\nfunctools.partial([ids, other, ids])")
    (call,) = (one for one in read_program(path, path.read_bytes()).calls)
    described = Describer((), None, None, tmp_path).node(call.value("func", 0))
    first, other, again = described["items"]
    assert first == again and first["same"] != other["same"]
    maker = Maker(None, None)

    def function(code: str, names: dict[str, Any]) -> Any:
        return maker.value({"is": "function", "code": code, "line": 1, "names": names})

    learn = function("def f(row):\n    ids.setdefault(row, len(ids))", {"ids": first})
    use = function("def f(row):\n    return ids[row]", {"ids": again})
    learn("a"), learn("b")
    assert use("b") == 1
    assert function("lambda: len(ids)", {"ids": other})() == 0
    keep = function("def f(row, seen=[]):\n    seen.append(row)\n    return len(seen)", {})
    assert [keep("a"), keep("b"), keep("c", [])] == [1, 2, 1]
