"""Output that documents quote: the block after each `<!-- output: lora-doctor ... -->` of a page
is what that command prints. A test fails when a block is stale, so a page never says anything else
than the tool.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What is shipped to be read: the page of the project, and the site.
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
#: A command in a comment, and the fenced block after it.
QUOTED = re.compile(r"(<!-- output: lora-doctor (.+?) -->\n```text\n)(.*?)(```\n)", re.DOTALL)
#: What belongs to this machine. Not "B": `3.82 B` are parameters.
_VARYING = re.compile(r"\b(\d+ min )?\d+(\.\d+)? (s|ms|KiB|MiB|GiB|TiB)\b")


def output_of(command: str) -> str:
    """What `lora-doctor COMMAND` prints on stdout at the top of the checkout, 90 columns wide and
    without this machine's seconds and bytes; the `python` of a dry run is the one that runs this.

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
    return _VARYING.sub(r"… \3", done.stdout.rstrip()) + "\n"


def fresh_block(command: str, block: str) -> str:
    """The output of a command for a page: as it stands there where the two say the same."""
    output = output_of(command)
    return block if comparable(output) == comparable(block) else output


def comparable(text: str) -> list[str]:
    """Words without units that differ from run to run (50 ms or 1 s), without a peak of memory,
    which a run may not have, and without the layout, which differs between releases of click and
    rich."""
    text = re.sub(r",\s+peak\s+…\s+\w+", "", text)
    return re.sub(r"… (s|ms|KiB|MiB|GiB|TiB)\b", "…", text).split()


def fresh(page: str) -> str:
    """The page with all its blocks as the commands print them now."""
    return QUOTED.sub(lambda match: match[1] + fresh_block(match[2], match[3]) + match[4], page)
