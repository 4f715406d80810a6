"""A chat template that lies in the folder is tried as `apply_chat_template` would use it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lora_doctor.engine.case import Case
from lora_doctor.engine.registry import find_rules
from lora_doctor.engine.settings import Settings
from lora_doctor.evidence.chat_template import gather
from lora_doctor.recipe.files.read_write import as_recipe
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.folder.chat_template import template_of
from lora_doctor.static.model_files import gather_static
from lora_doctor.static.model_source import ModelSource
from tests.chat_templates import TEMPLATES, with_template

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
#: What no conversation helps against; the others are formatted or have an opinion of their own.
BROKEN = ("cut_off", "unknown_tag", "unknown_filter", "unknown_function")


def in_truth(folder: str) -> Exception | None:
    try:
        AutoTokenizer.from_pretrained(folder).apply_chat_template(TURNS, tokenize=False)
    except Exception as error:  # noqa: BLE001 - what the template raises is the truth
        return error
    return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_is_told_as_transformers_has_it(name: str) -> None:
    folder, _ = with_template(name)
    error = in_truth(folder)
    template = template_of(gather_static(Path(folder), source=folder))
    found = gather({}, {}, template.text, template.file)
    if name in BROKEN:
        assert error is not None
        assert (found["error"], found["message"][:40]) == (
            type(error).__name__,
            " ".join(str(error).split())[:40],
        )
    else:
        # Loops that continue are an extension that transformers has since 4.46.
        assert found["error"] == ("" if name != "loop_that_continues" or error is None else
                                  type(error).__name__)  # fmt: skip


def test_rows_that_are_given_are_judged_instead(worker: Worker) -> None:
    """With data, or a template of the recipe's own, the folder's is not what matters."""
    folder, _ = with_template("cut_off")
    (rule,) = [rule for rule in find_rules() if rule.code == "LD644"]
    recipe = {"chat_template_path": "tests/data/templates/chatml.jinja"}
    case = Case(ModelSource("folder", folder), as_recipe(recipe), Settings("meta"), worker)
    assert list(rule().check(case)) == []
