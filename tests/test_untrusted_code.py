"""LD654: programs of several styles that load what needs code of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.recipe.program.untrusted_code import untrusted_code

_MODEL = "model = AutoModelForCausalLM.from_pretrained"
_TOKENIZER = "tokenizer = AutoTokenizer.from_pretrained"
_REGISTER = (
    "class C(PretrainedConfig):\n    model_type = 'own'\nclass M(PreTrainedModel):\n    pass\n"
    "AutoConfig.register('own', C)\n"
)
_AUTO = "model = AutoPeftModelForCausalLM.from_pretrained"


def _write(file: Path, content: dict[str, object]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and adapters with and without code of their own; nothing of it is run."""
    found = tmp_path_factory.mktemp("untrusted")
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    code = {"model_type": "own", "auto_map": auto}
    own = {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": ["t.OwnTokenizer", None]},
    }
    _write(found / "plain/config.json", {"model_type": "llama"})
    _write(found / "plain/tokenizer_config.json", {"tokenizer_class": "LlamaTokenizerFast"})
    _write(found / "own/config.json", code)
    _write(found / "own/tokenizer_config.json", own)
    # Code beside a class that transformers has: it takes its own and does not ask.
    _write(found / "both/config.json", {**code, "model_type": "llama"})
    _write(found / "both/tokenizer_config.json", {**own, "tokenizer_class": "GPT2Tokenizer"})
    bases = {"a_plain": "plain", "a_own": "own", "a_both": "both", "a_tokenizer": "plain"}
    for name, base in bases.items():
        adapter = {"peft_type": "LORA", "base_model_name_or_path": base, "task_type": "CAUSAL_LM"}
        _write(found / name / "adapter_config.json", adapter)
    _write(found / "a_tokenizer/tokenizer_config.json", own)
    return found


@pytest.mark.parametrize(
    ("lines", "refused"),
    [
        (f"{_MODEL}('own')", True),
        (f"{_MODEL}(pretrained_model_name_or_path='own', trust_remote_code=False)", True),
        (f"name = 'own'\nconfig = AutoConfig.from_pretrained(name)\n{_MODEL}('plain')", True),
        (f"{_MODEL}('plain')\n{_TOKENIZER}('a_tokenizer')", True),
        (f"{_AUTO}('a_own')", True),
        (f"{_AUTO}('a_tokenizer', is_trainable=True)", True),
        (f"{_MODEL}('own', trust_remote_code=True)", False),
        (f"{_MODEL}('own', **options())", False),
        (f"trust = True\n{_MODEL}('own', trust_remote_code=trust)", False),
        (f"from mine import trusts\n{_MODEL}('own', trust_remote_code=trusts('own'))", False),
        (f"{_MODEL}('plain')\n{_TOKENIZER}('plain')", False),
        (f"{_MODEL}('both')\n{_TOKENIZER}('both')", False),
        (f"{_AUTO}('a_plain')", False),
        (f"{_AUTO}('a_both')", False),
        (f"{_AUTO}('a_own', trust_remote_code=True)", False),
        (f"from mine import wanted\n{_MODEL}('plain')\nif wanted():\n"
         f"    {_TOKENIZER}('own')", False),
        (f"{_MODEL}('plain')\ntry:\n    {_TOKENIZER}('own')\nexcept ValueError:\n"
         f"    {_TOKENIZER}('plain')", False),
        (f"{_MODEL}('plain')\nmodel.save_pretrained('own')\n{_MODEL}('own')", False),
        (f"{_REGISTER}AutoModelForCausalLM.register(C, M)\n{_MODEL}('own')", False),
        (f"{_REGISTER}AutoModelForCausalLM.register(C, M)\n{_AUTO}('a_own')", False),
        (f"{_REGISTER}config = AutoConfig.from_pretrained('own')\n{_MODEL}('plain')", False),
        (f"{_MODEL}('plain')\nAutoTokenizer.register(C, M)\n{_TOKENIZER}('a_tokenizer')", False),
        (f"import not_installed_here\n{_MODEL}('own')", False),
        (f"import numpy, torch\n{_MODEL}('own')", True),
        # One Auto class was told, and the other one asks.
        (f"{_REGISTER}{_MODEL}('own')", True),
        (f"{_REGISTER}AutoModel.register(C, M)\n{_MODEL}('own')", True),
        (f"{_REGISTER.replace('own', 'other')}{_MODEL}('own')", True),
    ],
)  # fmt: skip
def test_a_call_that_trusts_no_code_is_found(place: Path, lines: str, refused: bool) -> None:
    """Healthy twins: code that is trusted, or may be; a class of transformers' own; a call that may
    not run or whose failure is awaited; a folder that the program writes; classes that the program
    registers, or may something that it imports."""
    script = place / "script.py"
    script.write_text(
        "from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model\n"
        "from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer\n"
        "from transformers import PreTrainedModel, PretrainedConfig\n"
        f"{lines}\n"
        "model = get_peft_model(model, LoraConfig(target_modules=['q_proj']))\n"
    )
    assert bool(list(untrusted_code(read_setup(script)))) is refused
