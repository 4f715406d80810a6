"""What rules on training data say is what a tiny training does: each claim is executed.

Three cases of each rule, in the styles of published templates, each with a healthy twin where the
same claim does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.chat_models import CHATS, PAIRS, THOUGHT, chat, write_model, write_rows
from tests.supervised_training import (
    IGNORED,
    codes,
    conversation,
    generate,
    look,
    loss,
    masked_before,
    needs_masks,
    new_model,
    probability,
    tokenizer_of,
    train,
)

#: Style, the tokenizer's tokens in it, and the token that ends an answer.
STYLES: Mapping[str, tuple[dict[str, Any], str]] = {
    "chatml": ({"eos": "<|im_end|>"}, "<|im_end|>"),
    "llama3": ({"eos": "<|eot_id|>"}, "<|eot_id|>"),
    "mistral": ({"eos": "</s>", "bos": "<s>"}, "</s>"),
}
MARKED = {"assistant_only_loss": True}
EACH_STYLE = pytest.mark.parametrize("style", STYLES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders and files by what they are made of, each once."""
    root, known = tmp_path_factory.mktemp("chats"), {}

    def make(style: str, **changes: Any) -> Path:
        options = {**STYLES.get(style, ({}, ""))[0], "template": style, **changes}
        key = str(sorted(options.items()))
        if key not in known:
            known[key] = write_model(root / f"model_{len(known)}", **options)
        return known[key]

    return make


@pytest.fixture(scope="module")
def one_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "one.jsonl", CHATS[:1])


def answer_labels(folder: Path) -> tuple[list[int], list[int], list[int]]:
    """Ids, labels of the answer with its end, and the prompt of the first chat."""
    ids, prompt = conversation(folder, CHATS[0])
    return ids, masked_before(ids, len(prompt)), prompt


def end_id(folder: Path, style: str) -> int:
    return int(tokenizer_of(folder).convert_tokens_to_ids(STYLES[style][1]))


# --- loss that is none ---------------------------------------------------------------------------


@EACH_STYLE
def test_ld901_a_row_without_labels_has_no_loss_and_teaches_nothing(
    style: str, made: Any, tmp_path: Path
) -> None:
    folder = made(style)
    ids, _, _ = answer_labels(folder)
    file = write_rows(tmp_path / "rows.jsonl", [{"input_ids": ids, "labels": [IGNORED] * len(ids)}])
    assert codes(look(folder, file))["LD901"] == "error"
    assert math.isnan(float(loss(new_model(folder), ids, [IGNORED] * len(ids))))
    before, after = new_model(folder), train(folder, [(ids, [IGNORED] * len(ids))], steps=2)
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert all(old.equal(new) for old, new in pairs)
    file = write_rows(tmp_path / "good.jsonl", [{"input_ids": ids, "labels": ids}])
    assert "LD901" not in codes(look(folder, file))
    assert math.isfinite(float(loss(new_model(folder), ids, ids)))


@EACH_STYLE
def test_ld902_what_the_limit_leaves_of_a_long_prompt_has_no_loss(
    style: str, made: Any, one_chat: Path
) -> None:
    folder = made(style)
    ids, labels, prompt = answer_labels(folder)
    marker = {"response_template": tokenizer_of(folder).decode(prompt[-3:])}
    short = {**marker, "max_length": len(prompt)}
    found = look(folder, one_chat, short)
    assert codes(found, short)["LD902"] == "error" and found.cut_to_nothing.count == 1
    cut = float(loss(new_model(folder), ids[: len(prompt)], labels[: len(prompt)]))
    assert math.isnan(cut)
    long = {**marker, "max_length": len(ids)}
    assert "LD902" not in codes(look(folder, one_chat, long), long)
    assert math.isfinite(float(loss(new_model(folder), ids, labels)))


@pytest.mark.parametrize("marker", ["<start_of_turn>model", "### Response:", "[/INST]"])
def test_ld909_a_marker_that_does_not_occur_masks_everything(
    marker: str, made: Any, one_chat: Path
) -> None:
    """As TRL's `DataCollatorForCompletionOnlyLM` and Unsloth's `train_on_responses_only` do."""
    folder = made("chatml")
    ids, _, _ = answer_labels(folder)
    wanted = tokenizer_of(folder)(marker, add_special_tokens=False)["input_ids"]
    assert not any(ids[n : n + len(wanted)] == wanted for n in range(len(ids)))
    recipe = {"response_template": marker}
    assert codes(look(folder, one_chat, recipe), recipe)["LD909"] == "error"
    assert math.isnan(float(loss(new_model(folder), ids, [IGNORED] * len(ids))))
    healthy = {"response_template": "<|im_start|>assistant"}
    assert not codes(look(folder, one_chat, healthy), healthy)


@needs_masks
@pytest.mark.parametrize("style", ["chatml", "llama3", "gemma"])
def test_ld908_a_template_without_marks_masks_everything(
    style: str, made: Any, one_chat: Path
) -> None:
    folder = made(style)
    tokenizer, recipe = tokenizer_of(folder), {"assistant_only_loss": True}
    found = tokenizer.apply_chat_template(
        CHATS[0]["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert sum(found["assistant_masks"]) == 0
    ids = found["input_ids"]
    assert math.isnan(float(loss(new_model(folder), ids, [IGNORED] * len(ids))))
    assert codes(look(folder, one_chat, recipe), recipe) == {"LD908": "error"}
    marked = made("chatml_marked")
    assert not codes(look(marked, one_chat, recipe), recipe)


@pytest.mark.parametrize("label", [512, -1, 70_000])
def test_ld914_a_label_beyond_the_vocabulary_is_refused(
    label: int, made: Any, tmp_path: Path
) -> None:
    folder = made("chatml")
    ids, labels, _ = answer_labels(folder)
    labels[-2] = label
    file = write_rows(tmp_path / "rows.jsonl", [{"input_ids": ids, "labels": labels}])
    assert "LD914" in codes(look(folder, file))
    with pytest.raises(IndexError):
        loss(new_model(folder), ids, labels)
    labels[-2] = 511
    file = write_rows(tmp_path / "rows.jsonl", [{"input_ids": ids, "labels": labels}])
    assert "LD914" not in codes(look(folder, file))
    assert math.isfinite(float(loss(new_model(folder), ids, labels)))


# --- answers that do not end ---------------------------------------------------------------------


def stops(folder: Path, style: str, labels: list[int]) -> bool:
    """Whether a model that was trained with these labels ends its answer."""
    ids, _, prompt = answer_labels(folder)
    end = end_id(folder, style)
    return generate(train(folder, [(ids, labels)]), prompt, [end])[-1] == end


@EACH_STYLE
def test_an_answer_whose_end_is_trained_ends(style: str, made: Any, one_chat: Path) -> None:
    """The healthy twin of LD904, LD905 and LD906: nothing is found, and generation stops."""
    folder = made(style)
    _, labels, _ = answer_labels(folder)
    assert not {"LD904", "LD905", "LD906"} & codes(look(folder, one_chat)).keys()
    assert stops(folder, style, labels)


@EACH_STYLE
def test_ld904_an_end_that_is_masked_is_not_learnt(style: str, made: Any, tmp_path: Path) -> None:
    folder = made(style)
    ids, labels, _ = answer_labels(folder)
    masked = [IGNORED if one == end_id(folder, style) else one for one in labels]
    last = max(n for n, one in enumerate(masked) if one != IGNORED)
    if masked[last] != ids[last] or not tokenizer_of(folder).decode([ids[last]]).strip():
        masked[last] = IGNORED  # the line break behind the end, with which the turn is over
    file = write_rows(tmp_path / "rows.jsonl", [{"input_ids": ids, "labels": masked}])
    assert codes(look(folder, file)) == {"LD904": "warning"}
    assert not stops(folder, style, masked)


@needs_masks
def test_ld904_generation_marks_that_end_before_the_end(made: Any, one_chat: Path) -> None:
    """The mask is that of transformers itself."""
    for style, ends in (("chatml_end_outside", False), ("chatml_marked", True)):
        folder = made(style)
        assert codes(look(folder, one_chat, MARKED), MARKED) == (
            {} if ends else {"LD904": "warning"}
        )
        masked = tokenizer_of(folder).apply_chat_template(
            CHATS[0]["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        pairs = zip(masked["input_ids"], masked["assistant_masks"], strict=True)
        labels = [one if on else IGNORED for one, on in pairs]
        assert stops(folder, "chatml", labels) is ends


def test_ld905_a_template_that_ends_no_answer(made: Any, one_chat: Path) -> None:
    folder = made("chatml_no_end")
    assert codes(look(folder, one_chat))["LD905"] == "warning"
    _, labels, _ = answer_labels(folder)
    assert not stops(folder, "chatml", labels)


@EACH_STYLE
def test_ld905_an_answer_without_an_end_goes_on(style: str, made: Any, tmp_path: Path) -> None:
    """Texts of a plain Trainer, to which nothing adds the end."""
    folder = made(style)
    tokenizer = tokenizer_of(folder)
    file = write_rows(tmp_path / "rows.jsonl", PAIRS[:1])
    plain = {"data_collator": "DataCollatorForLanguageModeling"}
    assert codes(look(folder, file, plain), plain)["LD905"] == "warning"
    assert "LD905" not in codes(look(folder, file))  # TRL's way: it adds the end
    end = end_id(folder, style)
    prompt = tokenizer(PAIRS[0]["prompt"])["input_ids"]
    text = PAIRS[0]["prompt"] + PAIRS[0]["completion"]
    for ids, ends in (
        (tokenizer(text)["input_ids"], False),
        (tokenizer(text + STYLES[style][1])["input_ids"], True),
    ):
        model = train(folder, [(ids, masked_before(ids, len(prompt)))])
        assert (generate(model, prompt, [end])[-1] == end) is ends


@EACH_STYLE
def test_ld906_padding_that_ends_answers_is_masked_by_transformers_collator(
    style: str, made: Any, one_chat: Path
) -> None:
    from transformers import DataCollatorForLanguageModeling

    recipe = {"data_collator": "DataCollatorForLanguageModeling"}
    for pad, ends in ((STYLES[style][1], False), ("<pad>", True)):
        folder = made(style, pad=pad)
        ids, _, prompt = answer_labels(folder)
        collate = DataCollatorForLanguageModeling(tokenizer_of(folder), mlm=False)
        batch = collate([{"input_ids": ids}, {"input_ids": [*ids, ids[-1]]}])
        labels = batch["labels"][0].tolist()[: len(ids)]
        labels[: len(prompt)] = [IGNORED] * len(prompt)
        if len(ids) - 1 > 0 and not tokenizer_of(folder).decode([ids[-1]]).strip():
            labels[-1] = IGNORED
        found = codes(look(folder, one_chat, recipe), recipe)
        assert ("LD906" in found) is not ends
        assert stops(folder, style, labels) is ends


@EACH_STYLE
def test_ld918_generation_goes_on_behind_an_end_at_which_it_does_not_stop(
    style: str, made: Any, one_chat: Path
) -> None:
    for eos, ends in (("<|endoftext|>", False), (STYLES[style][1], True)):
        folder = made(style, eos=eos)
        ids, labels, prompt = answer_labels(folder)
        stop = tokenizer_of(folder).convert_tokens_to_ids(eos)
        assert ("LD918" in codes(look(folder, one_chat))) is not ends
        written = generate(train(folder, [(ids, labels)]), prompt, [stop])
        assert end_id(folder, style) in written  # it learned its end ...
        assert (written[-1] == stop) is ends  # ... and whether anybody listens


# --- another thing learned than was meant --------------------------------------------------------


@EACH_STYLE
def test_ld920_prompts_that_are_supervised_are_learnt(
    style: str, made: Any, one_chat: Path
) -> None:
    folder = made(style)
    ids, answer_only, prompt = answer_labels(folder)
    found = look(folder, one_chat)
    assert codes(found)["LD920"] == "info" and found.prompt_supervised.count == 1
    start = prompt[: len(prompt) // 2]
    rest = prompt[len(start) :]
    assert generate(train(folder, [(ids, ids)]), start, [0])[: len(rest)] == rest
    assert generate(train(folder, [(ids, answer_only)]), start, [0])[: len(rest)] != rest


@EACH_STYLE
def test_ld920_a_collator_that_makes_labels_of_its_own_loses_the_mask(
    style: str, made: Any, one_chat: Path
) -> None:
    """LD903 and LD920: what is asked for and has no effect trains on the prompts."""
    from transformers import DataCollatorForLanguageModeling

    folder = made(style)
    ids, labels, prompt = answer_labels(folder)
    marker = tokenizer_of(folder).decode(prompt[-4:])
    recipe = {"response_template": marker, "data_collator": "DataCollatorForLanguageModeling"}
    collate = DataCollatorForLanguageModeling(tokenizer_of(folder), mlm=False)
    batch = collate([{"input_ids": ids, "attention_mask": [1] * len(ids)}])
    assert batch["labels"][0].tolist() != labels and batch["labels"][0].tolist()[1] == ids[1]
    assert codes(look(folder, one_chat, recipe), recipe)["LD920"] == "warning"


@EACH_STYLE
def test_ld903_a_setting_without_effect_trains_on_everything(
    style: str, made: Any, one_chat: Path
) -> None:
    folder, recipe = made(style), {"completion_only_loss": True}
    found = look(folder, one_chat, recipe)
    assert codes(found, recipe)["LD903"] == "warning"
    assert found.everything.count == found.rows_seen  # as TRL does it: tests/test_supervision_trl


@pytest.mark.parametrize("text", ["The sky is blue.", "one two three", "Name a colour."])
def test_ld907_a_row_with_two_beginnings_is_not_the_row_of_inference(
    text: str, made: Any, tmp_path: Path
) -> None:
    folder = made("mistral")
    tokenizer = tokenizer_of(folder)
    for row, doubled in ((f"<s>{text}", True), (text, False)):
        file = write_rows(tmp_path / "rows.jsonl", [{"text": row}])
        assert ("LD907" in codes(look(folder, file))) is doubled
        ids = tokenizer(row)["input_ids"]
        model = train(folder, [(ids, ids)])
        # It has learned that a beginning is followed by a beginning.
        again = probability(model, tokenizer.bos_token_id, tokenizer.bos_token_id)
        assert again > 0.25 if doubled else again < 0.05


@pytest.mark.parametrize("row", THOUGHT[:3], ids=str)
def test_ld910_what_the_template_leaves_out_is_not_learnt(
    row: dict[str, Any], made: Any, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [row])
    for style, learnt in (("thinking_stripped", False), ("chatml", True)):
        folder = made(style)
        ids, prompt = conversation(folder, row)
        model = train(folder, [(ids, masked_before(ids, len(prompt)))])
        written = tokenizer_of(folder).decode(generate(model, prompt, [0]))
        assert ("<think>" in written) is learnt
        assert ("LD910" in codes(look(folder, file))) is not learnt


@pytest.mark.parametrize("row", THOUGHT[:3], ids=str)
def test_ld911_a_tag_that_stands_twice_is_opened_twice(
    row: dict[str, Any], made: Any, tmp_path: Path
) -> None:
    folder = made("thinking_opened")
    question = row["messages"][0]["content"]
    without = chat(question, row["messages"][1]["content"].removeprefix("<think>\n"))
    for given, doubled in ((row, True), (without, False)):
        ids, prompt = conversation(folder, given)
        file = write_rows(tmp_path / "rows.jsonl", [given])
        model = train(folder, [(ids, masked_before(ids, len(prompt)))], steps=120)
        written = tokenizer_of(folder).decode(generate(model, prompt, [0]))
        assert written.startswith("<think>") is doubled  # the prompt has opened it already
        assert ("LD911" in codes(look(folder, file))) is doubled


@pytest.mark.parametrize("pair", PAIRS[:3], ids=str)
def test_ld912_a_prompt_that_is_no_prefix_is_another_context(
    pair: dict[str, str], made: Any, tmp_path: Path
) -> None:
    folder = made("chatml")
    tokenizer = tokenizer_of(folder)
    moved = {"prompt": f"{pair['prompt']} ", "completion": pair["completion"].strip()}
    for row, differs in ((moved, True), (pair, False)):
        file = write_rows(tmp_path / "rows.jsonl", [row])
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"] + "<|im_end|>")["input_ids"]
        assert (ids[: len(prompt)] != prompt) is differs
        assert ("LD912" in codes(look(folder, file))) is differs
        model = train(folder, [(ids, masked_before(ids, len(prompt) - 1))])
        answer = tokenizer(f"{row['completion']}<|im_end|>")["input_ids"]
        inference = [*prompt, *answer]
        assert (inference != ids) is differs
        trained = float(loss(model, ids, masked_before(ids, len(ids) - len(answer))))
        met = float(loss(model, inference, masked_before(inference, len(prompt))))
        assert (met > 2 * trained) is differs


@pytest.mark.skipif(
    not hasattr(transformers.LlavaForConditionalGeneration, "get_image_features"),
    reason="in older releases one token stands for a whole image",
)
@pytest.mark.parametrize("kept", [30, 40, 55])
def test_ld913_images_whose_tokens_are_cut_are_refused(
    kept: int, made: Any, tmp_path: Path
) -> None:
    """A LLaVA of a few parameters: 4 images of 16 features."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    folder = made("chatml", images=True)
    row = chat("<image>" * 64 + "What is one?", "one")
    file = write_rows(tmp_path / "rows.jsonl", [row])
    ids, _ = conversation(folder, row)
    image = tokenizer_of(folder).convert_tokens_to_ids("<image>")
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=56, patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=512,
    )  # fmt: skip
    model = Llava(LlavaConfig(vision_config=vision, text_config=text, image_token_index=image))
    pixels = torch.zeros(4, 3, 56, 56)
    assert codes(look(folder, file, {"max_length": kept}))["LD913"] == "error"
    with pytest.raises(ValueError, match=r"[Ii]mage"):
        model(input_ids=torch.tensor([ids[:kept]]), pixel_values=pixels)
    assert "LD913" not in codes(look(folder, file, {"max_length": len(ids)}))
    model(input_ids=torch.tensor([ids]), pixel_values=pixels)


# --- the run around the rows ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "accumulation", "epochs", "warmup"), [(2, 1, 1, 50), (1, 4, 2, 10), (4, 1, 3, 3)]
)
def test_ld917_a_warm_up_as_long_as_the_run_never_gets_to_the_learning_rate(
    batch: int, accumulation: int, epochs: int, warmup: int, made: Any, tmp_path: Path
) -> None:
    """The steps are counted as the Trainer counts them, and its scheduler says the rest."""
    from transformers import get_linear_schedule_with_warmup

    folder, file = made("chatml"), write_rows(tmp_path / "rows.jsonl", CHATS)
    recipe = {
        "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
        "num_train_epochs": epochs,
    }  # fmt: skip
    for steps, late in ((warmup, True), (1, False)):
        found = look(folder, file, {**recipe, "warmup_steps": steps})
        plan = found.plan
        assert plan is not None and ("LD917" in codes(found)) is (late or plan.steps == 1)
        rate = _highest_rate(get_linear_schedule_with_warmup, steps, plan.steps)
        assert (rate < 1.0) is (late and plan.steps <= steps)


def _highest_rate(schedule: Any, warmup: int, steps: int) -> float:
    """The highest learning rate of the steps that are taken; 1 is what was asked for."""
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, warmup, steps)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return max(rates)


@pytest.mark.parametrize(
    ("batch", "accumulation", "epochs", "most"),
    [(2, 1, 2, None), (1, 3, 1, None), (8, 1, 3, None), (1, 1, 1, 7)],
)
def test_steps_are_counted_as_the_trainer_counts_them(
    batch: int, accumulation: int, epochs: int, most: int | None, made: Any, tmp_path: Path
) -> None:
    from transformers import Trainer, TrainingArguments

    folder, file = made("chatml"), write_rows(tmp_path / "rows.jsonl", CHATS)
    ids, _, _ = answer_labels(folder)
    given = {
        "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
        "num_train_epochs": epochs, **({"max_steps": most} if most else {}),
    }  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], save_strategy="no",
        disable_tqdm=True, **given,
    )  # fmt: skip
    rows = [{"input_ids": ids, "labels": ids}] * len(CHATS)
    trainer = Trainer(model=new_model(folder), args=arguments, train_dataset=rows)
    trainer.train()
    plan = look(folder, file, given).plan
    assert plan is not None and plan.steps == trainer.state.max_steps


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_ld915_and_ld916_an_evaluation_that_says_nothing(
    rows: int, made: Any, tmp_path: Path
) -> None:
    """Rows that are trained on have a small loss whatever was learnt; no rows have none."""
    folder = made("chatml")
    training = write_rows(tmp_path / "train.jsonl", CHATS[:rows])
    other = write_rows(tmp_path / "other.jsonl", CHATS[rows:])
    none = write_rows(tmp_path / "none.jsonl", [])
    assert "LD916" in codes(look(folder, training, evaluation=str(training)))
    assert "LD915" in codes(look(folder, training, evaluation=str(none)))
    healthy = codes(look(folder, training, evaluation=str(other)))
    assert not {"LD915", "LD916"} & healthy.keys()
    ids = [conversation(folder, row)[0] for row in CHATS]
    model = train(folder, [(one, one) for one in ids[:rows]])
    seen = max(float(loss(model, one, one)) for one in ids[:rows])
    unseen = min(float(loss(model, one, one)) for one in ids[rows:])
    assert seen < unseen


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "system", "content": "Be brief."}, *CHATS[0]["messages"]],
        [{"role": "system", "content": ""}, *CHATS[1]["messages"]],
        [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}],
    ],
    ids=["system", "empty", "no answer"],
)
def test_ld919_rows_that_the_template_refuses_end_the_run(
    turns: list[dict[str, str]], made: Any, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"messages": turns}, CHATS[0]])
    folder = made("gemma", eos="<end_of_turn>", bos="<s>")
    found = look(folder, file)
    assert codes(found)["LD919"] == "error" and "System role not supported" in found.refusal
    with pytest.raises(Exception, match="System role not supported"):
        tokenizer_of(folder).apply_chat_template(turns, tokenize=False)
    assert "LD919" not in codes(look(made("chatml"), file))
