"""Write what the documentation quotes: `python -m tools.rules_page`.

`docs/rules.md` comes from the rules' own docstrings. In `README.md`, the block after each
`<!-- output: lora-doctor ... -->` becomes what that command prints, and the table of recipe keys is
that of `lora_doctor/recipe/keys.py`. Tests fail when a committed
page is stale, so the documentation never says anything else than the tool.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lora_doctor.engine.rule import Example, Rule
from tools import recipe_table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "rules.md"
README = ROOT / "README.md"
#: A command in a comment, and the fenced block after it.
QUOTED = re.compile(r"(<!-- output: lora-doctor (.+?) -->\n```text\n)(.*?)(```\n)", re.DOTALL)
#: Not "B": `3.82 B` are parameters.
_VARYING = re.compile(r"\b((\d+ min )?\d+(\.\d+)? (s|ms|KiB|MiB|GiB|TiB)|load \d+(\.\d+)?)\b")
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
HEAD = """\
<!-- Written by `python -m tools.rules_page` from the docstrings in rules/. Do not edit. -->

# Rules
"""


def rules_page(rules: Sequence[type[Rule]]) -> str:
    """All rules on one Markdown page: a table of contents, then each with its documentation,
    error messages and examples."""
    parts = [HEAD, _contents(rules)]
    topic = ""
    for rule in rules:
        if rule.code[:3] != topic:
            topic = rule.code[:3]
            parts.append(f"## {topic}: {TOPICS.get(topic, 'Other')}\n")
        parts.append(_section(rule))
    return "\n".join(parts)


def _contents(rules: Sequence[type[Rule]]) -> str:
    rows = ["| rule | depth | |", "|---|---|---|"]
    rows += [
        f"| [{rule.code}](#{_anchor(rule)}) `{rule.name}` | {rule.depth} | {rule.summary} |"
        for rule in rules
    ]
    return "\n".join(rows) + "\n"


def _anchor(rule: type[Rule]) -> str:
    """The id that GitHub gives to the heading of the rule."""
    return f"{rule.code} {rule.name}".lower().replace(" ", "-")


def _section(rule: type[Rule]) -> str:
    # The docstring's headings are of the second level; here they are below the rule's own.
    body = rule.documentation().strip().replace("\n## ", "\n#### ")
    lines = [f"### {rule.code} {rule.name}", "", f"{rule.summary} Depth: `{rule.depth}`.", "", body]
    if rule.symptoms:
        lines += ["", "#### Error messages", ""]
        lines += [_symptom(symptom.pattern, symptom.versions) for symptom in rule.symptoms]
    if rule.examples:
        lines += ["", "#### Examples", "", "| | model | recipe | |", "|---|---|---|---|"]
        lines += [_example(example) for example in rule.examples]
    return "\n".join(lines) + "\n"


def _symptom(pattern: str, versions: str) -> str:
    return f"- {_code(pattern)}" + (f" ({versions})" if versions else "")


def _example(example: Example) -> str:
    recipe = _code(json.dumps(dict(example.recipe))) if example.recipe else "none: it is proposed"
    where = ", ".join(f"{package}{versions}" for package, versions in example.requires.items())
    notes = "; ".join(note for note in (example.why, f"on {where}" if where else "") if note)
    cells = (example.kind, _code(example.model or example.installed), recipe, notes)
    # A bar would end the cell, in code spans too.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _code(text: str) -> str:
    """A Markdown code span, whatever is in it."""
    fence = "``" if "`" in text else "`"
    padding = " " if fence == "``" else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def own_rules() -> list[type[Rule]]:
    """The rules of this repository, without those of other installed packages."""
    from lora_doctor import rules
    from lora_doctor.engine.registry import find_rules

    return [rule for rule in find_rules() if rule.__module__.startswith(f"{rules.__name__}.")]


def output_of(command: str) -> str:
    """What `lora-doctor COMMAND` prints on stdout at the top of the checkout, 90 columns wide; the
    `python` of a dry run is the one that runs this.

    Raises:
        RuntimeError: the command could not answer.
    """
    programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    done = subprocess.run(
        [sys.executable, "-m", "lora_doctor", *shlex.split(command)],
        env={
            **os.environ,
            "COLUMNS": "90",
            "NO_COLOR": "1",
            "PATH": programs,
            "PYTHONPATH": str(ROOT),
        },
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"lora-doctor {command}: {done.stderr.strip()}")
    return done.stdout.rstrip() + "\n"


def fresh_block(command: str, block: str) -> str:
    """The output of a command for the README: as it stands there where the two say the same."""
    output = output_of(command)
    return block if comparable(output) == comparable(block) else output


def comparable(text: str) -> list[str]:
    """Words without what differs from run to run (times, memory, the load of the machine) and
    without the layout, which differs between releases of click and rich."""
    return _VARYING.sub("N", text).split()


def main() -> int:
    if not ROOT.joinpath("pyproject.toml").is_file():
        print("tools.rules_page: not a checkout; clone the repository first", file=sys.stderr)
        return 2
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(rules_page(own_rules()), encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    text = QUOTED.sub(lambda match: match[1] + fresh_block(match[2], match[3]) + match[4], text)
    README.write_text(recipe_table.fresh(text), encoding="utf-8")
    print(f"wrote {PAGE} and {README}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
