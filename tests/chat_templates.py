"""Folders whose chat template is broken in the ways of the field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.saved_adapters import new_folder

_FOLDER = Path(__file__).parent / "folders" / "chat_model"
_TURNS = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
TEMPLATES = {
    "cut_off": _TURNS,
    "unknown_tag": _TURNS + "{% endfor %}{% translate %}",
    "unknown_filter": "{{ messages | to_chatml }}",
    "unknown_function": "{{ today_as('%d') }}" + _TURNS + "{% endfor %}",
    "guarded_function": "{% if today_as is defined %}{{ today_as() }}{% endif %}"
    + _TURNS
    + "{% endfor %}",
    "refuses": "{{ raise_exception('only documents') }}",
    "of_a_ranker": "{{ messages[0]['query']['text'] }}",
    "loop_that_continues": "{% for message in messages %}{% if loop.first %}{% continue %}"
    "{% endif %}{{ message['role'] }}{% endfor %}",
}


def with_template(name: str) -> tuple[str, dict[str, Any]]:
    """The folder of a chat model with another template, and no further option."""
    folder = new_folder(name)
    for path in _FOLDER.iterdir():
        shutil.copy(path, folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "chat_template": TEMPLATES[name]}))
    return str(folder), {}


def cut_off() -> tuple[str, dict[str, Any]]:
    return with_template("cut_off")
