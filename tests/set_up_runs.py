"""What the set-ups of `tests.set_up_files` need for their frameworks to run them here: a model and
rows in their folder, in place of those of the hub."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from tests.set_up_files import Twin

#: For text of a set-up, by its framework: what stands there in the place of what is on the hub.
#: ms-swift knows a model of the hub by its name, and has to be told for one in a folder.
_HERE: dict[str, tuple[tuple[str, str], ...]] = {
    "llamafactory": (("arch:llama", "llama"), ("llama3", "alpaca")),
    "axolotl": (("arch:llama", "llama"), ("teknium/GPT4-LLM-Cleaned", "data.jsonl")),
    "trl": (("arch:llama", "llama"), ("trl-lib/Capybara", "rows")),
    "ms_swift": (
        ('"model": "arch:llama",',
         '"model": "llama", "model_type": "llama", "template": "chatml",'),
        ("model: arch:llama", "model: llama\nmodel_type: llama\ntemplate: chatml"),
        ("--model arch:llama", "--model llama --model_type llama --template chatml"),
        ('--model "$MODEL"', '--model "$MODEL" --model_type llama --template chatml'),
        ("arch:llama", "llama"),
        ("'AI-ModelScope/alpaca-gpt4-data-zh#500'", "data/chats.jsonl"),
        ("'swift/self-cognition#500'", "data/chats.jsonl"),
        ("AI-ModelScope/alpaca-gpt4-data-en#500", "data/chats.jsonl"),
        ("'x#1'", "data/chats.jsonl"), ("x.jsonl", "data/chats.jsonl"),
    ),
}  # fmt: skip
#: The module of each framework.
MODULES = {"llamafactory": "llamafactory", "axolotl": "axolotl", "trl": "trl", "ms_swift": "swift"}
#: Twins that nothing here can run, and why.
NOT_HERE = {
    "trl/09_script-LD201": "srun starts it on another machine",
    "ms_swift/05_crlf-LD201": "no shell reads a file with Windows line ends (LD534)",
}
_COMMANDS = {
    "llamafactory": ("llamafactory-cli", "train"),
    "axolotl": ("axolotl", "train"),
    "trl": ("trl", "sft", "--config"),
    "ms_swift": ("swift", "sft"),
}
#: The file of LLaMA-Factory's repository that a command may start.
_STARTER = "from llamafactory.train.tuner import run_exp\n\nrun_exp()\n"


def broken_here(twin: Twin, place: Path, folders: Path) -> list[str]:
    """The broken set-up with what it reads, in a folder that is not there yet; the command that
    trains from it. ``folders``: as `tests.dry_run_setups.folders` writes them."""
    framework = twin.name.partition("/")[0]
    shutil.copytree(folders, place)
    _rows(place)
    if framework == "llamafactory":
        (place / "src").mkdir()
        (place / "src" / "train.py").write_text(_STARTER)
    before = set(place.iterdir())
    given = twin.copy(place, broken=True)
    for path in set(place.iterdir()) - before:
        text = path.read_bytes().decode("utf-8")
        for old, new in _HERE[framework]:
            text = text.replace(old, new)
        path.write_bytes(text.encode("utf-8"))
    if given.suffix == ".sh":
        return ["bash", given.name]
    program, *words = _COMMANDS[framework]
    return [str(Path(sys.executable).parent / program), *words, given.name]


def _rows(place: Path) -> None:
    """Under the names and in the form in which the set-ups have them."""
    rows = json.loads((place / "data" / "alpaca.json").read_text())
    (place / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (place / "rows").mkdir()
    shutil.copy(place / "data" / "chats.jsonl", place / "rows" / "train.jsonl")
    known = place / "data" / "dataset_info.json"
    names = ("identity", "alpaca_en_demo", "alpaca_gpt4_zh")
    info = json.loads(known.read_text()) | {name: {"file_name": "alpaca.json"} for name in names}
    known.write_text(json.dumps(info))
