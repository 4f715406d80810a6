"""How often ``lora-doctor explain`` names the right rule first, over files of labelled messages.

    python benchmarks/explain.py [FILE ...]

Each line of a FILE is a JSON object with ``text`` (what a user pastes) and ``codes``: the rules
that are behind it, the first one first; empty where no rule is about it. Without a FILE, the
messages of the test suite, which docs/explain.md tells the score of.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from lora_doctor.cli.explain import explanation

_DATA = Path(__file__).parent.parent / "tests" / "data"
_MESSAGES = sorted(_DATA.glob("messages*.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, default=_MESSAGES)
    counts: Counter[str] = Counter()
    for file in parser.parse_args().files:
        for line in file.read_text("utf-8").splitlines():
            message = json.loads(line)
            found = [match.rule.code for match in explanation(message["text"]).matches]
            outcome = _outcome(message["codes"], found)
            counts[outcome] += 1
            if outcome not in ("right rule first", "rightly none"):
                print(f"{outcome}: {message['codes']} {found}: {message['text'][-120:]!r}")
    covered = sum(counts[name] for name in ("right rule first", "right rule later", "missed"))
    others = counts["rightly none"] + counts["wrongly one"]
    print(f"right rule first: {counts['right rule first']} of {covered} that a rule is about")
    print(f"a rule where none is about it: {counts['wrongly one']} of {others}")


def _outcome(expected: list[str], found: list[str]) -> str:
    if not expected:
        return "wrongly one" if found else "rightly none"
    if not set(expected) & set(found):
        return "missed"
    return "right rule first" if found[0] == expected[0] else "right rule later"


if __name__ == "__main__":
    main()
