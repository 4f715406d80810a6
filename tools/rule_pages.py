"""A page for each rule, in `docs/rules/`: its docstring, its error messages, and its examples, the
broken ones with what lora-doctor says of them and how the fix was proved.

What is said is quoted from a run, on the stack that is named beside it. A quotation made on another
stack is kept as it is: a rule that speaks of old releases only was quoted there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_doctor.engine.rule import Example, Rule
from lora_doctor.sandbox.worker import Worker
from tools import rule_examples

FOLDER = rule_examples.ROOT / "docs" / "rules"
INDEX = FOLDER / "index.md"
TOPICS = {
    "LD0": "The tool, and what is unexplained",
    "LD1": "Model class and forward signature",
    "LD2": "Target modules",
    "LD3": "Quantization",
    "LD4": "Numerics",
    "LD5": "Training set-up",
    "LD6": "Tokens, embeddings, saving, merging",
    "LD7": "Environment and versions",
    "LD8": "Security of what is loaded",
    "LD9": "Data: what is supervised",
}
_WRITTEN = "<!-- Written by `python -m tools.pages` from rules/{file}. Do not edit. -->\n"
#: What was said of an example, on which stack.
_QUOTED = re.compile(
    r"<!-- said of example (\d+): (.+?) -->\n+```text\n(.*?)```\n", re.DOTALL
)  # fmt: skip

#: By the number of the example: the stack, and what was said there.
Quotations = Mapping[int, tuple[str, str]]


def own_rules() -> list[type[Rule]]:
    """The rules of this repository, without those of other installed packages."""
    from lora_doctor import rules
    from lora_doctor.engine.registry import find_rules

    return [rule for rule in find_rules() if rule.__module__.startswith(f"{rules.__name__}.")]


def path_of(rule: type[Rule]) -> Path:
    return FOLDER / f"{rule.code}.md"


def quoted(rule: type[Rule]) -> dict[int, tuple[str, str]]:
    """The quotations of the page as it is committed."""
    path = path_of(rule)
    if not path.is_file():
        return {}
    page = path.read_text(encoding="utf-8")
    return {int(match[1]): (match[2], match[3]) for match in _QUOTED.finditer(page)}


def run(rule: type[Rule], worker: Worker) -> dict[int, tuple[str, str]]:
    """What is said on this stack of every broken example that occurs here; where nothing but
    measured numbers differs from what is quoted, the quotation."""
    now = {}
    before = quoted(rule)
    for number, example in enumerate(rule.examples):
        if not (rule_examples.is_fixed(example) and rule_examples.occurs_here(example)):
            continue
        text = rule_examples.said(rule, rule_examples.fixed(example, worker))
        stack, old = before.get(number, ("", ""))
        same = rule_examples.comparable(old) == rule_examples.comparable(text)
        now[number] = (stack, old) if same else (rule_examples.stack(), text)
    return now


def page(rule: type[Rule], quotations: Quotations) -> str:
    """The page of one rule, in Markdown."""
    parts = [
        _WRITTEN.format(file=rule.__module__.rpartition(".")[2] + ".py"),
        f"# {rule.code} {rule.name}\n",
        f"{rule.summary} Depth: `{rule.depth}`.\n",
        rule.documentation().strip() + "\n",
    ]
    if rule.symptoms:
        parts.append("## Error messages\n")
        parts.append("\n".join(_symptom(one.pattern, one.versions) for one in rule.symptoms) + "\n")
    if rule.examples:
        parts.append("## Examples\n")
        parts += [
            _example(number, example, quotations) for number, example in enumerate(rule.examples)
        ]
    return "\n".join(parts)


def index(rules: Sequence[type[Rule]]) -> str:
    """All rules by topic, with the list of their pages for the site's menu."""
    parts = [_WRITTEN.format(file=""), "# Rules\n"]
    for topic, title in TOPICS.items():
        of_topic = [rule for rule in rules if rule.code[:3] == topic]
        if not of_topic:
            continue
        parts.append(f"## {topic}: {title}\n")
        rows = ["| rule | depth | |", "|---|---|---|"]
        rows += [
            f"| [{rule.code}]({rule.code}.md) `{rule.name}` | {rule.depth} | {rule.summary} |"
            for rule in of_topic
        ]
        parts.append("\n".join(rows) + "\n")
    names = "\n".join(rule.code for rule in rules)
    parts.append(f"```{{toctree}}\n:hidden:\n\n{names}\n```\n")
    return "\n".join(parts)


def _symptom(pattern: str, versions: str) -> str:
    return f"- {_code(pattern)}" + (f" ({versions})" if versions else "")


def _example(number: int, example: Example, quotations: Quotations) -> str:
    lines = [f"### {_title(example)}\n", _conditions(example)]
    if example.recipe:
        lines.append(f"```json\n{json.dumps(dict(example.recipe), indent=2)}\n```\n")
    if example.script:
        lines.append(f"```python\n{example.script.strip()}\n```\n")
    if number in quotations:
        stack, text = quotations[number]
        lines.append(f"What `lora-doctor fix` says ({stack}):\n")
        lines.append(f"<!-- said of example {number}: {stack} -->\n\n```text\n{text}```\n")
    return "\n".join(filter(None, lines))


def _title(example: Example) -> str:
    of = "a script" if example.script else _code(example.model or example.installed)
    return f"{example.kind.capitalize()}: {of}"


def _conditions(example: Example) -> str:
    where = ", ".join(f"{package}{versions}" for package, versions in example.requires.items())
    parts = [
        example.why,
        f"It occurs on {where}." if where else "",
        f"With `--data {example.data}`." if example.data else "",
        "" if example.recipe or example.script or example.installed else "The recipe is proposed.",
    ]
    text = " ".join(
        part if part.endswith((".", "!", "?")) else f"{part}." for part in parts if part
    )
    return text and f"{text[0].upper()}{text[1:]}\n"


def _code(text: str) -> str:
    """A Markdown code span, whatever is in it."""
    fence = "``" if "`" in text else "`"
    padding = " " if fence == "``" else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def write(rules: Sequence[type[Rule]], codes: tuple[str, ...] = ()) -> None:
    """Write the index and all pages, or those of some codes or prefixes and no other; pages of
    rules that are gone are deleted."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    known = {INDEX, *map(path_of, rules)}
    for path in set(FOLDER.glob("*.md")) - known:
        path.unlink()
    INDEX.write_text(index(rules), encoding="utf-8")
    with Worker(threads=1) as worker:
        worker.start()
        for rule in rules:
            if rule.code.startswith(codes or ""):
                text = page(rule, quoted(rule) | run(rule, worker))
                path_of(rule).write_text(text, encoding="utf-8")
