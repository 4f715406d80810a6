"""A failure that is told in words leads to the rule whose page tells the same; a question, good
news and another program's failure lead to none."""

from __future__ import annotations

import pytest

from lora_doctor.cli.explain import explanation
from lora_doctor.engine.registry import find_rules
from lora_doctor.engine.told_in_words import told_in_words
from lora_doctor.engine.vocabulary import concepts_in
from tests import cli

RULES = find_rules()
TOLD = [(rule.code, sentence) for rule in RULES for sentence in rule.told_as]


@pytest.mark.parametrize(("code", "sentence"), TOLD, ids=[sentence for _, sentence in TOLD])
def test_what_a_rule_says_of_itself_in_plain_words_names_it(code: str, sentence: str) -> None:
    """A sentence of ``told_as`` that leads elsewhere is of no use."""
    found = told_in_words(sentence, RULES)
    assert code in [told.rule.code for told in found if told.is_named]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        # The order, the form and the choice of words are those of no sentence of the rules.
        ("once LoRA was applied, with use_checkpoint, weights get no more updates: gradients None",
         "LD501"),
        ("after its fine-tuning my llama never terminates, it keeps generating text", "LD918"),
        ("expert layers of my MoE got left untrained, PEFT did not wrap them", "LD204"),
        ("half precision run: overflow, then nan", "LD402"),
        ("quality degrades catastrophically once I merge", "LD607"),
        ("the collate function does not mask the user turns", "LD920"),
        ("dora + FSDP is broken", "LD553"),
    ],
)  # fmt: skip
def test_other_words_for_the_same_lead_to_the_same_rule(text: str, code: str) -> None:
    assert [match.rule.code for match in explanation(text).matches][:1] == [code]


@pytest.mark.parametrize(
    "text",
    [
        "How do I stop generation at EOS after merging?",
        "Should I use fp16 when the loss is NaN in bf16?",
        "Generation stops where it should and everything works fine",
        "With vLLM the merged adapter gives garbage and never stops",
        "GGUF export of a merged model is gibberish",
        "My LoRA training is slower than yesterday",
        "wandb shows nothing for the run",
        "",
    ],
)
def test_what_is_no_failure_of_a_training_names_no_rule(text: str) -> None:
    assert not [told for told in told_in_words(text, RULES) if told.is_named]


def test_the_words_that_are_alike_are_shown_with_the_sentence_of_the_rule() -> None:
    result = cli.lora_doctor("explain", "fine-tuning done, now my llama keeps generating")
    first = result.out.splitlines()[0]
    assert "by its description it may be LD918" in first
    assert "'keeps generating'" in first and "as in '" in first


def test_a_rule_that_is_only_a_little_alike_is_told_as_the_nearest_and_not_named() -> None:
    found = explanation("SFTConfig has an eval_strategy, my eval_dataset is odd and long")
    assert not found.matches
    assert [near.rule.code for near in found.near] == ["LD525"]
    assert "too little" in found.near[0].lacks


def test_a_message_that_somebody_quotes_in_lower_case_is_that_message() -> None:
    first = explanation(
        'FSDP tells me "must flatten tensors with uniform dtype but got torch.uint8"'
    )
    assert first.matches[0].rule.code == "LD712" and not first.matches[0].described


def test_negations_are_understood_with_their_apostrophes_and_words_in_between() -> None:
    for text in ("weights aren’t really updated", "weights don't get updated", "is never trained"):
        assert "UNTRAINED" in concepts_in(text), text
    assert "UNTRAINED" not in concepts_in("weights are updated")
