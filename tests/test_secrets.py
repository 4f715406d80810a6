"""Tokens and passwords that a set-up, a command or an error quotes: in no format, in no log."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_doctor import reports
from lora_doctor.cli.comparison import as_text
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.recipe.set_up import SetUp
from lora_doctor.results.baseline import compare, with_baseline
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.dry_run import DryRun, ScriptError
from lora_doctor.results.finding import Location, Measurement
from lora_doctor.results.formats import find_formats
from lora_doctor.results.note import Note
from lora_doctor.results.secrets import MASK, hidden, hidden_in
from lora_doctor.results.stored import parse_diagnosis
from tests import diagnoses

#: With the beginning that its maker gives it, and without any: the shape alone tells.
TOKEN = "hf_" + "A1b2" * 8
UNNAMED = "q7Rk2ZpX9vLm4TbW8sYd1NcE6hGf3JuA"
#: Nothing but its name tells that it is one: forty hexadecimal digits are also a revision.
WANDB = "0123456789abcdef0123456789abcdef01234567"

SECRETS = [
    (f"python train.py --hub_token {TOKEN}", f"python train.py --hub_token {MASK}"),
    (f"401 for token {TOKEN}", f"401 for token {MASK}"),
    ("WANDB_API_KEY=0123456789abcdef python t.py", f"WANDB_API_KEY={MASK} python t.py"),
    ("--password 'two words' --lr 1", f"--password {MASK} --lr 1"),
    ("https://me:pw@host/x.git", f"https://{MASK}@host/x.git"),
    ("HF_TOKEN=abc x", f"HF_TOKEN={MASK} x"),
    ("SLACK_BOT_TOKEN=abc x", f"SLACK_BOT_TOKEN={MASK} x"),
    ("--token abc", f"--token {MASK}"),
    ("--api-key=sk-abc", f"--api-key={MASK}"),
    (f"login('{UNNAMED}')", f"login('{MASK}')"),
    ("Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3.c2lnbmF0dXJl rest", f"Bearer {MASK} rest"),
    (f" r: 8\n+  wandb_api_key: {WANDB}  # mine\n", f" r: 8\n+  wandb_api_key: {MASK}  # mine\n"),
    ('  "hub_token": "abc def",', f'  "hub_token": {MASK},'),
    ("hf_hub_token: abcdef", f"hf_hub_token: {MASK}"),
]
PLAIN = [
    "Qwen2_5_VLForConditionalGeneration4Bit8", "revision c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00",
    "DeepSeek-R1-Distill-Qwen-32B-AWQ-INT4", "Qwen2-VL-7B-AWQ-G128-W4A16-KV8-Act-R3",
    "/cache/q7Rk2ZpX9vLm4TbW8sYd1NcE6hGf3JuA/model.safetensors",
    "pad_token = eos_token", "--max-new-tokens 12 --token-type ids", "the token ends the answer",
    "model.embed_tokens.weight", "<|im_end|>", "key=value", "bos_token <s>", "A token is missing",
    "num_virtual_tokens=20", "pad_token=eos_token", "--pad-token <|endoftext|>", "pad token <pad>",
    'PAD_TOKEN="<pad>"', "IMAGE_TOKEN=<image>", "pad_token: <pad>", "eos_token: </s>",
    "use_auth_token=True", "token=None", 'token=os.environ["HF_TOKEN"]', "api_key=getpass()",
    "hub_token: ${HF_TOKEN}", "HF_TOKEN=$HF_TOKEN python t.py", "hub_token: null",
    "hub_token: not a key of TrainingArguments", "password: cannot be read here",
]  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), SECRETS)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    assert hidden(text) == shown
    assert hidden(shown) == shown, "a stored result is rendered again"


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_stays(text: str) -> None:
    assert hidden(text) == text


def test_entries_and_variables_are_hidden_by_their_name() -> None:
    entries = {
        "hub_token": "abc", "lora_r": 8, "special_tokens": {"pad_token": "<pad>"},
        "token": "<s>", "wandb_api_key": "${WANDB_API_KEY}", "hf_hub_token": "",
    }  # fmt: skip
    assert hidden_in(entries) == {**entries, "hub_token": MASK}
    assert hidden_in({"WANDB_API_KEY": WANDB, "TOKEN": "x"}) == {
        "WANDB_API_KEY": MASK,
        "TOKEN": MASK,
    }
    command = ("python", "--password", "hunter22", "--lr", "1")
    assert hidden_in(command) == ("python", "--password", MASK, "--lr", "1")
    assert hidden_in([*command]) == ["python", "--password", MASK, "--lr", "1"]


@pytest.mark.parametrize("name", diagnoses.ALL)
def test_a_diagnosis_without_secrets_is_the_same_object(name: str) -> None:
    diagnosis = diagnoses.ALL[name]()
    assert hidden_in(diagnosis) is diagnosis


def quoting() -> Diagnosis:
    """A set-up of a framework that holds its tokens itself, and what repeats them."""
    found = diagnoses.phi3()
    first = replace(
        found.findings[0],
        message=f"401 with {UNNAMED}",
        evidence=(Measurement("the error", [f"token {TOKEN}"], f"train.py --api_key={UNNAMED}"),),
    )
    located = replace(first, location=Location("file", UNNAMED, 3))
    set_up = SetUp(
        "axolotl",
        {"hub_token": "s3cret-hub", "wandb_api_key": WANDB, "base_model": "x"},
        environment={"WANDB_API_KEY": WANDB},
    )
    return replace(
        found,
        findings=(first, located),
        recipe=Recipe({"r": 8, "note": TOKEN}, unknown={"api_key": "s3cret-api"}, set_up=set_up),
        recipe_diff=f"-r: 8\n+r: 16\n wandb_api_key: {WANDB}\n",
        next_command=f"lora-doctor check x --hub-token {TOKEN} --password hunter22",
        dry_run=DryRun(
            ("python", "train.py", "--password", "hunter22", "--hub_token=s3cret-hub"), 1,
            error=ScriptError("HTTPError", f"https://me:hunter22@host: {UNNAMED}", "train.py", 3,
                              traceback=f"login('{UNNAMED}')\n"),
        ),
        notes=(*found.notes, Note("warned", f"the run said {UNNAMED}")),
        undetermined=f"the hub refused {UNNAMED}",
    )  # fmt: skip


def leaks(text: str) -> list[str]:
    secrets = (TOKEN, UNNAMED, WANDB, "hunter22", "s3cret-hub", "s3cret-api")
    return [secret for secret in secrets if secret in text]


@pytest.mark.parametrize("name", find_formats())
def test_no_format_quotes_a_secret(name: str) -> None:
    for verbose in (False, True):
        text = reports.render(quoting(), name, verbose=verbose, width=200)
        assert not leaks(text)
        assert MASK in text.replace("\\[", "[").replace("\\]", "]")


def test_a_printed_diagnosis_quotes_none(capsys: pytest.CaptureFixture[str]) -> None:
    print(quoting())
    assert not leaks(capsys.readouterr().out + quoting()._repr_html_())


def stored(diagnosis: Diagnosis) -> Diagnosis:
    data: Any = json.loads(reports.render(diagnosis, "json"))
    return parse_diagnosis(data, "stored")


def test_a_stored_result_names_its_findings_as_the_run_does() -> None:
    """A baseline holds no secret, and still knows a finding whose file has one in its name."""
    now = quoting()
    known = with_baseline(now, stored(now), "baseline.json")
    assert known.not_accepted(known.findings) == ()
    assert as_text(compare(hidden_in(now), stored(now))).startswith("no difference")
    # What was accepted of the run is accepted in what is shown of it.
    assert json.loads(reports.render(known, "gitlab"))[0]["check_name"] == "undetermined"


def test_an_error_of_the_command_line_quotes_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from lora_doctor.cli.main import main

    assert main(["report", str(tmp_path / f"--token={UNNAMED}")]) == 2
    told = capfd.readouterr().err
    assert "cannot be read" in told and not leaks(told)


def test_explain_quotes_none(capfd: pytest.CaptureFixture[str]) -> None:
    from lora_doctor.cli.main import main

    text = (
        f"ValueError: Target modules {{'q_proj'}} not found in the base model. token={UNNAMED} "
        "Please check the target modules and try again."
    )
    main(["explain", text])
    assert not leaks(capfd.readouterr().out)


def test_what_a_secret_variable_holds_is_hidden_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exception quotes the key of a service, which looks like a checksum."""
    key = "0123456789abcdef" * 2
    said = f"401 for key {key}, revision {'fedcba9876543210' * 2}"
    assert hidden(said) == said
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("HF_TOKEN", "none")
    monkeypatch.setenv("HF_TOKEN_PATH", "revision-of-a-model")
    assert hidden(said) == said.replace(key, MASK)
    error = hidden_in(ScriptError("RuntimeError", said, traceback=f"key={key}"))
    assert key not in repr(error) and "none of these" in hidden("none of these")
    assert hidden("revision-of-a-model") == "revision-of-a-model"
