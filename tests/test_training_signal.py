"""What a run has to learn from: pairs that differ, rewards that depend on what was written, more
than one class. Of the dry runs, the rules' examples tell (tests/test_rules.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_doctor.dry_run.acts import one_label
from lora_doctor.dry_run.acts.filled_labels import Filled
from lora_doctor.dry_run.acts.pairs import Compared
from lora_doctor.dry_run.acts.rewards import reads_completions
from lora_doctor.dry_run.switched import with_adapters
from lora_doctor.dry_run.training_signal import signal_of
from lora_doctor.evidence.optimizer import OptimizerState, TrainableTensor

# --- reward functions -----------------------------------------------------------------------------


def constant(completions: Any, **columns: Any) -> list[float]:
    return [1.0] * len(completions)


def of_the_prompt(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    return [float(len(prompt)) for prompt, _ in zip(prompts, completions, strict=True)]


def counted(completions: Any) -> list[float]:
    scores = []
    for number, _completion in enumerate(completions):
        scores.append(0.1 * (number >= 0))
    return scores


def of_columns(prompts: Any, answer: Any, **rest: Any) -> list[float]:
    return [float(bool(one)) for one in answer]


def length(completions: Any, **columns: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def compared(prompts: Any, completions: Any, answer: Any) -> list[float]:
    return [float(a in c) for c, a in zip(completions, answer, strict=True)]


def handed_on(completions: Any, **columns: Any) -> list[float]:
    return length(completions)


def from_the_rest(prompts: Any, **columns: Any) -> list[float]:
    return [float(len(one)) for one in columns["completions"]]


def of_tokens(completion_ids: Any, **columns: Any) -> list[float]:
    return [float(ids[-1] == 2) for ids in completion_ids]


@pytest.mark.parametrize(
    ("function", "reads"),
    [(constant, False), (of_the_prompt, False), (counted, False), (of_columns, False),
     (length, True), (compared, True), (handed_on, True), (from_the_rest, True),
     (of_tokens, True), (len, True)],
    ids=lambda one: getattr(one, "__name__", ""),
)  # fmt: skip
def test_whether_a_reward_function_reads_what_was_written(
    function: Callable[..., Any], reads: bool
) -> None:
    """A constant in whatever words; and what cannot be told is taken for reading."""
    assert reads_completions(function) is reads


# --- pairs ----------------------------------------------------------------------------------------


def test_pairs_are_compared_in_the_set_and_as_the_collator_cuts_them() -> None:
    """A prompt that is longer than the limit leaves nothing by which the answers differ."""
    rows = [
        {"prompt_ids": [1, 4, 5], "chosen_ids": [n, 2], "rejected_ids": [n % 2, 2]}
        for n in range(4)
    ]

    def lines(limit: int, padding: int) -> dict[str, Any]:
        every = [(row["prompt_ids"] + row[name])[:limit]
                 for name in ("chosen_ids", "rejected_ids") for row in rows]  # fmt: skip
        return {"input_ids": [line + [0] * padding for line in every],
                "attention_mask": [[1] * len(line) + [0] * padding for line in every]}  # fmt: skip

    for limit, alike in ((5, 2), (3, 4)):
        found = Compared()
        found.add(rows, lines(limit, padding=2))
        assert vars(found) == {"rows": 4, "alike": 2, "alike_in_batch": alike}
    found = Compared()
    found.add([{"input_ids": [1]}], {"input_ids": [[1]]})
    assert not found.rows, "rows that are no pairs"


def test_pairs_that_a_collator_keeps_apart_are_compared_without_their_padding() -> None:
    found = Compared()
    rows = [{"chosen": "a", "rejected": "b"}]
    found.add(rows, {
        "chosen_input_ids": [[1, 7, 0]], "chosen_attention_mask": [[1, 1, 0]],
        "rejected_input_ids": [[1, 7]], "rejected_attention_mask": [[1, 1]],
    })  # fmt: skip
    assert (found.alike, found.alike_in_batch) == (0, 1)


# --- classes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "found"),
    [([1] * 40, "1"), ([0] * 39 + [1], None), ([0.5] * 40, None), ([1] * 4, None),
     ([[1, 2]] * 40, None), ([True] * 40, "True")],
)  # fmt: skip
def test_one_class_is_one_in_every_row(labels: list[Any], found: str | None) -> None:
    """A class may be rare; numbers are no classes; few rows say nothing."""
    told = one_label._one_label([{"input_ids": [1], "labels": one} for one in labels])
    assert (told["label"] if told else None) == found


def test_a_set_that_was_cut_answers_for_the_whole() -> None:
    datasets = pytest.importorskip("datasets")
    from lora_doctor.dry_run.acts import cut_sets, data

    whole = datasets.Dataset.from_dict({"label": [0] * 400 + [1]})
    few = data.repeated(whole.select(range(8), keep_in_memory=True), 401)
    assert one_label._one_label(few) is None, "of a part nobody knows the rest"
    cut_sets.chosen_from(few, whole)
    assert one_label._one_label(few) is None, "the last row has another one"
    sorted_out = datasets.Dataset.from_dict({"label": [0] * 400})
    few = data.repeated(sorted_out.select(range(8), keep_in_memory=True), 400)
    cut_sets.chosen_from(few, sorted_out)
    assert one_label._one_label(few.rename_column("label", "labels"))


# --- what was told, put together ------------------------------------------------------------------


def _record(kind: str, **values: Any) -> dict[str, Any]:
    return {"kind": kind, "pid": 1, "time": 0.0, **values}


def test_labels_of_rows_count_as_classes_only_where_the_loss_takes_them_so() -> None:
    told = _record("one_label", column="label", label="0", rows=64)
    adapted = _record("adapted", label_count=2)
    classes = _record("rows", rows={"labels": [0, 0]})
    tokens = _record("rows", rows={"labels": [[5, 6], [7, 8]]})
    assert signal_of([told, adapted, classes], str).one_label is not None
    loaded = _record("loaded_rows", rows={"labels": [0, 0]})
    own_loss = [told, adapted, _record("rows", rows={}), loaded]
    assert signal_of(own_loss, str).one_label is not None, "a loss of the user's own"
    assert signal_of([told, adapted, tokens], str).one_label is None, "a column that nobody reads"
    assert signal_of([told, _record("adapted", label_count=None), classes], str).one_label is None
    assert signal_of([told, _record("train", by="KTOTrainer")], str).one_label is not None


def test_the_optimizer_with_the_largest_gradients_speaks_for_the_run() -> None:
    """Another one may have a phase of its own, in which the adapters rest."""
    common = {"steps": 3, "adapters": 4, "with_gradient": 4, "not_finite": 0, "place": None}
    rests = _record("step_gradients", of=1, largest=0.0, **common)
    trains = _record("step_gradients", of=2, largest=0.5, **common)
    found = signal_of([trains, rests], str).gradients
    assert found is not None and found.largest == 0.5
    assert signal_of([], str).gradients is None


def test_an_adapter_that_was_switched_off_when_the_optimizer_was_read() -> None:
    """What an optimizer holds and what takes gradients decides, not which adapter is active at the
    moment; one whose gradients are dropped is another failure."""
    told = [
        {"adapter": "held", "tensors": ["a"], "held": 1, "accumulated": 1},
        {"adapter": "left out", "tensors": ["b"], "held": 0, "accumulated": 1},
        {"adapter": "dropped", "tensors": ["c"], "held": 0, "accumulated": 0},
    ]
    later = TrainableTensor("d", True, "in no group")
    told.append({"adapter": "later", "tensors": ["d"], "held": 1, "accumulated": 1})
    state = OptimizerState((), (later,), ("a", "base"), 0, (), 2, True)
    records = [_record("several_adapters", adapters=[]), _record("several_adapters", adapters=told)]
    found = with_adapters(state, signal_of(records, str).adapters)
    fates = {one.name: one.fate for one in found.tensors}
    assert fates == {"a": "updated", "b": "in no group", "d": "updated"}
    assert found.frozen == ("base",)


# --- the longest row ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "number"),
    [
        (lambda rows: rows, 717),
        (lambda rows: rows.shuffle(seed=1).remove_columns("label"), 717),
        (lambda rows: rows.filter(lambda row: len(row["input_ids"]) < 900), 717),
        (lambda rows: rows.map(lambda row: {"input_ids": row["input_ids"][:99]}), 717),
        (lambda rows: rows.filter(lambda row: len(row["input_ids"]) < 500), None),
        (lambda rows: rows.select(range(700)), None),
        (lambda rows: rows.map(lambda row, n: {"n": n}, with_indices=True), None),
    ],
    ids=["mapped", "shuffled", "kept", "cut", "filtered", "part", "numbered"],
)
def test_the_longest_row_of_a_set_that_is_cut_goes_the_way_of_the_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    then: Callable[[Any], Any],
    number: int | None,
) -> None:
    """Whether it is in a part of the set, or which number a function would get, nobody knows."""
    datasets = pytest.importorskip("datasets")
    from lora_doctor.dry_run.acts import data, longest_row, set_aside
    from lora_doctor.dry_run.acts.acting import Acting
    from lora_doctor.guest.session import Session

    (tmp_path / "records").mkdir()
    kept = ("map", "filter", "flatten_indices", "_get_cache_file_path", "from_file")
    for name in kept:  # put back when the test ends
        monkeypatch.setattr(datasets.Dataset, name, vars(datasets.Dataset)[name])
    data._mapping(Acting(Session(tmp_path, "")), datasets.arrow_dataset)
    turns = [[{"content": "ab" * (300 if n == 717 else 3)}] for n in range(1500)]
    whole = datasets.Dataset.from_dict({"turns": turns, "label": [0] * 1500})
    rows = whole.map(lambda row: {"input_ids": [*map(ord, row["turns"][0]["content"])]})
    assert rows._indices is not None, "it was cut"
    rows = then(rows)
    aside, seen = set_aside.longest_of(rows), longest_row._found(rows)
    assert (aside and aside.number) == (seen and seen.number) == number
    assert seen is None or seen.tokens in (99, 600)


# --- labels and tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "mask", "labels", "short"),
    [
        ([1, 2], [1, 1, 1, 0], [1, 2, -100, -100], 1),
        ([1, 2, 0], [1, 1, 1, 0], [1, 2, 0, -100], 0),
        ([1, 2], [0, 1, 1, 1], [-100, -100, 1, 2], 0),
        ([1, 2], [1, 1, 1, 0], [-100, 1, 2, -100], 0),
        ([1], [1, 1, 1, 0], [5, 6, 7, -100], 0),
        ([0.5], [1, 1, 1, 0], [0, -100, -100, -100], 0),
    ],
    ids=["filled up", "aligned", "left", "placed", "made by the collator", "no classes"],
)
def test_labels_that_the_collator_fills_up(
    own: list[Any], mask: list[int], labels: list[int], short: int
) -> None:
    torch = pytest.importorskip("torch")
    filled = Filled(None)
    batch = {"labels": [labels], "attention_mask": [mask], "input_ids": [[7, 7, 7, 7]]}
    filled.add([{"labels": own}], {name: torch.tensor(one) for name, one in batch.items()})
    assert filled.short == short


def test_labels_of_a_decoder_are_another_text() -> None:
    torch = pytest.importorskip("torch")
    filled = Filled(SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True)))
    batch = {"labels": [[1, -100]], "attention_mask": [[1, 1]], "input_ids": [[7, 7]]}
    filled.add([{"labels": [1]}], {name: torch.tensor(one) for name, one in batch.items()})
    assert not filled.rows
