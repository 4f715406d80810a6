"""A regular expression in ``target_modules`` lists names at its end, as a list would."""

from __future__ import annotations

import pytest

from lora_doctor.proposal.expression_ends import expression_ends


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
