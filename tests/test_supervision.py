"""What is supervised: the evidence, the files that it is read from, and who sees the rows.

`test_supervision_truth.py` holds what the rules say against tiny trainings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import lora_doctor
from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.formats import render
from lora_doctor.results.supervision import Supervision, TokenizerFacts
from lora_doctor.sandbox.worker import Worker
from lora_doctor.supervision.batches import layout_of, observe_batches, rows_of
from lora_doctor.supervision.data_file import read_rows, spread
from lora_doctor.supervision.observe import observe
from lora_doctor.supervision.pieces import token_texts
from lora_doctor.supervision.rows import IGNORED, LossSettings, Row
from lora_doctor.supervision.samples import NoSampleError, as_sample
from tests import chromium
from tests.chat_models import CHATS, chat, write_model, write_rows
from tests.cli import lora_doctor as run
from tests.supervised_training import codes, look, needs_masks, tokenizer_of

MARKED = {"assistant_only_loss": True}
#: A marker needs no mask of transformers, which old releases do not have.
RESPONSES = {"response_template": "<|im_start|>assistant"}


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "chatml", template="chatml")


def seen(*rows: Row, facts: TokenizerFacts | None = None, **settings: Any) -> Supervision:
    return observe(rows, facts or TokenizerFacts(eos_id=2), LossSettings(**settings), origin="t")


# --- rows of any origin --------------------------------------------------------------------------


def test_padding_is_told_by_the_attention_mask_not_by_its_id() -> None:
    """A batch of the user's own collator: the end token is padding as well, and only one of them
    is real. By its id alone every row would lack its end."""
    facts = TokenizerFacts(eos_id=2, pad_id=2)
    row = Row([5, 6, 7, 2, 2, 2], [IGNORED, 6, 7, 2, IGNORED, IGNORED], 1, [1, 1, 1, 1, 0, 0])
    found = seen(row, facts=facts)
    assert (found.tokens, found.supervised_tokens) == (4, 3)
    assert found.end_trained.numbers == (1,) and not found.end_masked
    masked = Row([5, 6, 7, 2, 2, 2], [IGNORED, 6, 7, IGNORED, IGNORED, IGNORED], 1,
                 [1, 1, 1, 1, 0, 0])  # fmt: skip
    assert seen(masked, facts=facts).end_masked_as_pad.count == 1


def test_the_first_label_is_predicted_by_nothing() -> None:
    """Causal models shift: a row in which only its first token has a label teaches nothing."""
    row = Row([5, 6, 7], [5, IGNORED, IGNORED])
    assert seen(row).nothing.count == 1
    assert not seen(row, layout="aligned").nothing


def test_labels_of_a_sequence_of_their_own_and_of_classes() -> None:
    whole = seen(Row([5, 6, 7, 8], [9, 9, 2]), layout="seq2seq")
    assert whole.supervised_tokens == 3 and whole.end_trained and not whole.everything
    classes = seen(Row([5, 6], [3]), Row([5], [1], 2), layout="classes", label_count=3)
    assert classes.labels_out_of_range.numbers == (1,) and classes.wrong_labels == (3,)


def test_a_label_that_is_no_token_is_not_decoded() -> None:
    """Tokenizers raise OverflowError for -1: then nothing at all would be said of the rows."""
    asked: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        asked.extend(ids)
        return " ".join(map(str, ids))

    rows = {"classes": Row([5, 6], [-1]), "seq2seq": Row([5, 6], [9, -1, 2])}
    for layout, row in rows.items():
        settings = LossSettings(layout=layout)
        found = observe([row], TokenizerFacts(eos_id=2), settings, origin="t", decode=decode)
        assert found.wrong_labels == (-1,) and found.shown[0].pieces
    assert set(asked) == {5, 6, 9, 2}


@needs_masks
def test_turns_before_the_last_are_no_prompt_that_was_forgotten(tmp_path: Path) -> None:
    """Loss on all the assistant's turns: earlier answers are supervised, their questions are not.
    It would be a false alarm to call that a supervised prompt."""
    model = write_model(tmp_path / "m")
    turns = [*CHATS[0]["messages"], *CHATS[1]["messages"]]
    found = look(model, write_rows(tmp_path / "rows.jsonl", [{"messages": turns}]), MARKED)
    assert found.supervised_tokens > 20
    assert not codes(found, MARKED)


def test_an_answer_that_is_masked_in_the_middle_is_found_among_many_turns() -> None:
    facts = TokenizerFacts(eos_id=2, end_of_turn_ids=(2,))
    ids = [5, 8, 2, 5, 9, 2]
    labels = [IGNORED, 8, IGNORED, IGNORED, 9, 2]
    assert seen(Row(ids, labels), facts=facts).end_masked.count == 1
    assert not seen(Row(ids, [IGNORED, 8, 2, IGNORED, 9, 2]), facts=facts).end_masked


def test_features_that_a_processor_counts_are_held_against_places() -> None:
    row = Row([7, 7, 7, 5], [7, 7, 7, 5], features={7: 4})
    assert seen(row).placeholders_cut.count == 1
    assert not seen(Row([7, 7, 7, 7, 5], [7] * 5, features={7: 4})).placeholders_cut


def test_several_samples_in_a_row_have_no_one_end() -> None:
    row = Row([5, 6, 7], [IGNORED, 6, 7])
    assert seen(row).end_missing.count == 1
    assert not seen(row, packed=True).end_missing


def test_texts_of_tokens_add_up_to_the_text(chatml: Path) -> None:
    """Bytes of one character, words in pieces, line breaks: what is shown is what is there."""
    tokenizer = tokenizer_of(chatml)
    text = "Name a colour:\n blüe, 天 and 🙂.<|im_end|>\n"
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(ids, lambda some: str(tokenizer.decode(some)))
    assert len(texts) == len(ids)
    assert {"Name", "\n", "<|im_end|>", " and"} <= set(texts)
    assert "".join(texts).replace("\ufffd", "") == text


# --- files ---------------------------------------------------------------------------------------


def test_a_sample_is_spread_over_the_whole_file(tmp_path: Path) -> None:
    """Files are sorted more often than not: the head says nothing about the rest."""
    path = write_rows(tmp_path / "rows.jsonl", [{"text": str(n)} for n in range(1000)])
    found = read_rows(path, 10)
    numbers = [number for number, _ in found.rows]
    assert found.total == 1000 and len(numbers) == 10
    assert all(100 * part < number <= 100 * (part + 1) for part, number in enumerate(numbers))
    assert [row["text"] for _, row in found.rows] == [str(number - 1) for number in numbers]
    assert read_rows(path, 10) == found
    assert spread(3, 10) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "x"}\n\n{"text": "y"}\n'),
        ("a.json", '[{"text": "x"}, {"text": "y"}]'),
        ("b.json", '{"data": [{"text": "x"}, {"text": "y"}]}'),
        ("c.json", '{"text": "x"}\n{"text": "y"}\n'),
        ("a.csv", "text\nx\ny\n"),
        ("a.tsv", "text\tmore\nx\t1\ny\t2\n"),
        ("bom.jsonl", '\ufeff{"text": "x"}\n{"text": "y"}'),
    ],
)
def test_files_of_every_kind_have_their_rows(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert [row["text"] for _, row in read_rows(path, 10).rows] == ["x", "y"]


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_columns_are_read_where_pyarrow_is_installed(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{ending}"
    try:
        import pyarrow as arrow
        from pyarrow import ipc, parquet
    except ImportError:
        path.write_bytes(b"x")
        with pytest.raises(EvidenceError, match="pip install pyarrow") as caught:
            read_rows(path, 3)
        assert caught.value.remedy == "package"
        return
    table = arrow.Table.from_pylist([{"text": str(n)} for n in range(50)])
    if ending == "parquet":
        parquet.write_table(table, path, row_group_size=7)
    else:
        with ipc.new_stream(str(path), table.schema) as sink:
            sink.write_table(table)
    found = read_rows(path, 5)
    assert found.total == 50
    assert all(row["text"] == str(number - 1) for number, row in found.rows)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "{broken", "not JSON"),
        ("a.jsonl", "[1, 2]\n", "row 1 is a list"),
        ("a.jsonl", "", "has no rows"),
        ("a.json", '"text"', "is not a list of rows"),
        ("a.json", "[" * 5000, "too deeply"),
        ("a.csv", "", "has no rows"),
        ("a.txt", "x", "is read as one of"),
    ],
)
def test_a_file_that_is_none_is_one_line(
    name: str, content: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_rows(path, 10)


@pytest.mark.parametrize(
    "row",
    [{"x": 1}, {}, {"messages": "no"}, {"messages": []}, {"messages": [1]},
     {"messages": [{"content": "x"}]}, {"prompt": "a", "completion": [1]}, {"input_ids": "x"},
     {"input_ids": [1], "labels": [1, 2]}, {"instruction": 1, "output": "x"},
     {"messages": [{"role": "user"}], "tools": "{"}],
    ids=str,
)  # fmt: skip
def test_a_row_that_is_no_sample_says_why(row: dict[str, Any]) -> None:
    with pytest.raises(NoSampleError):
        as_sample(row)


def test_names_that_data_sets_have_mean_the_same() -> None:
    shared = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert as_sample(shared).answer == "b"
    assert as_sample({"instruction": "a", "input": "c", "output": "b"}).answer == "b"
    assert as_sample({"prompt": "a", "completion": "b"}).answer == "b"
    assert as_sample({"text": "a", "label": 1}).kind == "classes"
    null = {"messages": [{"role": "user", "content": "a", "tool_calls": None}]}
    assert as_sample(null).messages == [{"role": "user", "content": "a"}]


# --- who sees the rows ---------------------------------------------------------------------------

SECRET = "seven eight nine"


@pytest.fixture(scope="module")
def diagnosed(chatml: Path, tmp_path_factory: pytest.TempPathFactory, worker: Worker) -> Any:
    rows = [chat(f"{SECRET}?", SECRET), *CHATS]
    file = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)

    def check(**options: Any) -> Diagnosis:
        recipe = {"target_modules": ["q_proj"], "max_length": 20, **RESPONSES}
        return lora_doctor.check(chatml, recipe, depth="meta", data=file, worker=worker, **options)

    return check


@pytest.mark.parametrize(
    ("samples", "people", "machines"),
    [("people", True, False), ("all", True, True), ("none", False, False)],
)
def test_rows_are_shown_to_people_and_left_out_for_machines(
    samples: str, people: bool, machines: bool, diagnosed: Any
) -> None:
    """Training data can be private, and JSON is uploaded and cached, the page mailed around."""
    diagnosis = diagnosed(samples=samples)
    assert diagnosis.findings
    assert (SECRET in render(diagnosis, "full", verbose=True)) is people
    page = render(diagnosis, "html", verbose=True).replace('</span><span class="token">', "")
    assert (SECRET in page) is machines
    text = render(diagnosis, "json")
    found = json.loads(text)["supervision"]
    pieces = "".join(piece["text"] for row in found["shown"] for piece in row["pieces"])
    assert (SECRET in pieces) is machines
    assert machines or "seven" not in text
    assert "seven" not in render(diagnosis, "concise")
    again = Diagnosis.from_json(json.loads(text)).supervision
    assert again is not None and again.supervised_tokens == found["supervised_tokens"]


def test_the_json_is_what_the_schema_says(diagnosed: Any) -> None:
    from tools.json_schema import diagnosis_schema

    data = json.loads(render(diagnosed(samples="all"), "json"))
    jsonschema.Draft202012Validator(diagnosis_schema()).validate(data)


def test_hostile_rows_stay_text(chatml: Path, tmp_path: Path, worker: Worker) -> None:
    hostile = "<script>alert(1)</script>\x1b[31m</p><img src=x onerror=alert(1)>"
    file = write_rows(tmp_path / "rows.jsonl", [chat(hostile, hostile)])
    diagnosis = lora_doctor.check(
        chatml, {"target_modules": ["q_proj"]}, depth="meta", data=file, worker=worker
    )
    page = render(diagnosis, "html").replace('</span><span class="token">', "")
    assert "<script>alert" not in page and "<img src=x" not in page and "\x1b" not in page
    assert "\x1b" not in render(diagnosis, "full", verbose=True)


@pytest.mark.browser
def test_the_page_tells_without_scripts_and_without_colours(
    diagnosed: Any, tmp_path: Path, browser: chromium.Chromium
) -> None:
    path = tmp_path / "page.html"
    path.write_text(render(diagnosed(samples="all"), "html"), encoding="utf-8")
    for dark in (False, True):
        page = browser.open(path, dark=dark, scripts=False)
        assert not page.messages and page.evaluate(chromium.CONTRAST) == []
    read = page.evaluate("document.querySelector('article .tokens').textContent")
    assert "⟦supervised: " in read and "cut off" in read
    phone = browser.open(path, width=400, scripts=False)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 400


# --- the command line ----------------------------------------------------------------------------


def test_check_reads_data_and_exits_by_what_it_finds(chatml: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", CHATS)
    words = ["check", str(chatml), "--target-modules", "q_proj", "--depth", "meta", "--data"]
    found = run(
        *words,
        file,
        "--response-template",
        "<|im_start|>assistant",
        "--max-length",
        "22",
        "--no-samples",
    )
    assert found.code == 1 and "LD902" in found.out and "Paris" not in found.out
    missing = run(*words, tmp_path / "none.jsonl")
    assert missing.code == 2 and "no such file" in missing.one_line_error


def test_data_that_cannot_be_looked_at_leave_the_question_open(
    tmp_path: Path, worker: Worker
) -> None:
    """`arch:` has no tokenizer: silence would be taken for health."""
    file = write_rows(tmp_path / "rows.jsonl", CHATS)
    diagnosis = lora_doctor.check(
        "arch:llama", {"target_modules": ["q_proj"]}, depth="meta", data=file, worker=worker
    )
    assert "has no tokenizer" in (diagnosis.undetermined or "")
    assert "LD901" in {item.rule for item in diagnosis.skipped}


def test_a_broken_file_is_the_users_input(chatml: Path, tmp_path: Path, worker: Worker) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{broken\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 1 of rows.jsonl"):
        lora_doctor.check(chatml, depth="meta", data=file, worker=worker)
    for wrong in ({"rows": 0}, {"samples": "some"}, {"eval_data": file}):
        given = {"data": file} if "eval_data" not in wrong else {}
        with pytest.raises(InputError):
            lora_doctor.check(chatml, depth="meta", worker=worker, **given, **wrong)


# --- batches of a run ----------------------------------------------------------------------------

FACTS = TokenizerFacts(eos_id=2, pad_id=2, end_of_turn_ids=(2,))


def test_batches_of_a_collator_are_rows_whatever_it_did() -> None:
    """Padding on either side, packing without padding, preference trainers, classes, seq2seq."""
    i = IGNORED
    padded = {
        "input_ids": [[5, 6, 2, 2], [5, 6, 7, 2]], "labels": [[i, 6, 2, i], [i, i, 7, 2]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]],
    }  # fmt: skip
    packed = {
        "input_ids": [[5, 6, 2, 5, 7, 2]], "labels": [[i, 6, 2, i, 7, 2]],
        "position_ids": [[0, 1, 2, 0, 1, 2]],
    }  # fmt: skip
    chosen = {"input_ids": [[5, 6, 2]], "completion_mask": [[0, 1, 1]]}
    for batch, rows in ((padded, 2), (packed, 2), (chosen, 1)):
        found = observe_batches([batch], FACTS, origin="batches")
        assert found is not None and found.executed and found.rows_seen == rows
        assert found.end_trained.count == rows and not found.nothing
    classes = {"input_ids": [[5, 6], [5, 7]], "labels": [0, 3]}
    wrong = observe_batches([classes], FACTS, origin="batches", label_count=2)
    assert wrong is not None and wrong.labels_out_of_range.numbers == (2,)
    other = {"input_ids": [[5, 6, 7]], "labels": [[9, 2]]}
    assert layout_of([other], causal=True) == "seq2seq"
    assert observe_batches([{"pixel_values": [[1]]}, {}], FACTS, origin="batches") is None


@pytest.mark.parametrize("positions", [[0, 1, 2], [0, 0, 0]], ids=["counted-on", "zeros"])
@pytest.mark.parametrize(("label", "rows"), [(-100, 2), (7, 3)], ids=["filling", "sample"])
def test_what_fills_a_packed_line_up_is_no_sample(
    positions: list[int], label: int, rows: int
) -> None:
    """axolotl sends no mask with it; a sample that its labels supervise is one all the same."""
    batch = {
        "input_ids": [[5, 6, 7, 5, 6, 7, 2, 2, 2]],
        "labels": [[-100, 6, 7, -100, 6, 7, -100, label, label]],
        "position_ids": [[0, 1, 2, 0, 1, 2, *positions]],
    }
    assert len(list(rows_of([batch]))) == rows


def test_what_a_run_shows_is_executed_and_certain() -> None:
    """The same failure is inferred of a data file and seen in a run."""
    i = IGNORED
    batch = {
        "input_ids": [[5, 6, 2, 2], [5, 6, 7, 2]], "labels": [[i, 6, i, i], [i, i, 7, i]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]],
    }  # fmt: skip
    found = observe_batches([batch], FACTS, origin="the first batches")
    assert found is not None and codes(found) == {"LD906": "warning"}
    nothing = {"input_ids": [[5, 6]], "labels": [[i, i]]}
    none = observe_batches([nothing], FACTS, origin="the first batches")
    assert none is not None and codes(none) == {"LD901": "error"}


def test_running_text_needs_no_end() -> None:
    """Continued pretraining on chunks of text is no answer that never ends."""
    chunk = {"input_ids": [[5, 6, 7]], "labels": [[5, 6, 7]]}
    found = observe_batches([chunk], FACTS, origin="the first batches")
    assert found is not None and codes(found) == {"LD905": "info"}
    answer = {"input_ids": [[5, 6, 7]], "labels": [[IGNORED, IGNORED, 7]]}
    found = observe_batches([answer], FACTS, origin="the first batches")
    assert found is not None and codes(found) == {"LD905": "warning"}
