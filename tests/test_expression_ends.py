"""A regular expression in ``target_modules``: the names at its end, and a slip in it."""

from __future__ import annotations

import pytest

from lora_doctor.proposal.expression_ends import expression_ends
from lora_doctor.proposal.expression_slip import mended_expression
from lora_doctor.results.structure import Tower
from tests.diagnoses import module_group, structure


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        (r".*self_attn.(q|k)_proj", ["q_proj", "k_proj"]),
        (
            r"model.language_model.layers.[\d]+.(mlp|cross_attn|self_attn).(up|down|q)_proj",
            ["up_proj", "down_proj", "q_proj"],
        ),
        (
            r"(?:.*\.)?(?:self_attn\.(?:q_proj|v_proj)|mlp\.w[12])$",
            ["q_proj", "v_proj", "w1", "w2"],
        ),
        (r".*attn.*proj", ["proj"]),
        (r"layers\.\d+\.(experts\.\d+\.)?down_proj", ["down_proj"]),
        (r"(?!.*vision).*\.(query|value)", ["query", "value"]),
        (r"(fc|dense)\d", []),  # any digit: no names that could be listed
        (r".*", []),
        (r".*\.(a|b)?(c|d)?(e|f)?(g|h)?(i|j)?", []),  # more than anybody lists
        ("(", []),
    ],
)
def test_the_names_that_an_expression_can_end_in(expression: str, names: list[str]) -> None:
    assert expression_ends(expression) == names


@pytest.mark.parametrize(
    ("expression", "mended"),
    [
        (r".*\.(q|v)_prj", r".*\.(q|v)_proj"),
        (r".*\.self_atn\.(q|k)_proj", r".*\.self_attn\.(q|k)_proj"),
        (r"model\.layer\.\d+\.self_attn\.[qv]_proj$", r"model\.layers\.\d+\.self_attn\.[qv]_proj$"),
        (r".*\.(q_prj|v_prj)", r".*\.(q_proj|v_proj)"),
        (r".*\.(q|v)_prj|.*\.(k|o)_prjo", None),  # put right at one place, the other is left
        (r".*\.(query|value)", None),  # other names, and no slip
        ("q_proj", None),  # a name, of which no letter makes a path
        ("(", None),
    ],
)
def test_one_letter_of_an_expression(expression: str, mended: str | None) -> None:
    """What is left of the expression is the user's; where it could mean several, none is taken."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    groups = tuple(module_group(f"model.layers.*.self_attn.{name}", 2, (8, 8)) for name in names)
    towers = (Tower("model", "language", "the only one"),)
    assert mended_expression(structure(groups, towers), expression) == mended
