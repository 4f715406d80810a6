"""Models with a tokenizer and a chat template, made on the spot: Llamas that learn in seconds.

``python -m tests.chat_models`` writes the folders and files that examples of rules name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Special tokens of the styles below, in one vocabulary.
SPECIAL = (
    "<pad>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>",
    "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
    "<end_of_turn>", "[INST]", "[/INST]", "<image>",
)  # fmt: skip
VOCABULARY = 512
_LINES = (
    "What is the capital of France? The capital of France is Paris.",
    "Name a colour of the sky. The sky is blue, and at night it is black.",
    "user assistant system instruction response question answer think",
    "### Instruction: ### Response: one two three four five six seven eight nine ten",
)

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}ANSWER"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_MARKED = "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
_END_OUTSIDE = "{% generation %}{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>\n' }}"
_UNMARKED = "{{ message['content'] + '<|im_end|>\n' }}"
_STRIPPED = "{{ message['content'].split('</think>')[-1].strip() + '<|im_end|>\n' }}"

#: Chat templates in the styles of published models, by name.
TEMPLATES: Mapping[str, str] = {
    "chatml": _CHATML.replace("ANSWER", _UNMARKED),
    "chatml_marked": _CHATML.replace("ANSWER", _MARKED),
    "chatml_end_outside": _CHATML.replace("ANSWER", _END_OUTSIDE),
    "chatml_no_end": _CHATML.replace("ANSWER", "{{ message['content'] + '\n' }}"),
    # DeepSeek-R1's distilled models: what was thought is taken out of every answer.
    "thinking_stripped": _CHATML.replace("ANSWER", _STRIPPED),
    # Its generation prompt opens the thinking, which answers of a data set open as well.
    "thinking_opened": _CHATML.replace(
        "ANSWER", "{{ '<think>\n' + message['content'] + '<|im_end|>\n' }}"
    ).replace("'<|im_start|>assistant\n' }}", "'<|im_start|>assistant\n<think>\n' }}"),
    "llama3": (
        "{{ '<|begin_of_text|>' }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ '<s>' }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}"
        "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role'])"
        " + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ '<s>' }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] + '</s>' }}{% endif %}{% endfor %}"
    ),
}  # fmt: skip


def write_model(
    folder: Path,
    *,
    template: str | None = "chatml_marked",
    bos: str | None = None,
    eos: str = "<|im_end|>",
    pad: str | None = "<pad>",
    stops: Sequence[str] | None = None,
    images: bool = False,
) -> Path:
    """A folder with config, tokenizer and chat template, and no weights.

    ``bos``: the tokenizer puts it before every text. ``stops``: where generation stops; the
    end-of-text token without. ``images``: the config names a token that stands for a part of one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(bos)
    content = json.loads(tokenizer.to_str())
    # As tokenizers before 0.20 write merges, and every release reads them.
    content["model"]["merges"] = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos,
        "clean_up_tokenization_spaces": False, "model_max_length": 512,
        "additional_special_tokens": [one for one in SPECIAL if one not in (bos, eos, pad)],
    }  # fmt: skip
    settings |= {"bos_token": bos} if bos else {}
    settings |= {"pad_token": pad} if pad else {}
    settings |= {"chat_template": TEMPLATES[template]} if template else {}
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 512,
        "pad_token_id": ids[pad] if pad else None, "bos_token_id": ids[bos] if bos else None,
        "eos_token_id": ids[eos], "tie_word_embeddings": False,
    }  # fmt: skip
    config |= {"image_token_id": ids["<image>"]} if images else {}
    generation = {"eos_token_id": [ids[one] for one in stops or (eos,)]}
    for name, content in (
        ("tokenizer_config.json", settings),
        ("config.json", config),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder


def _tokenizer(bos: str | None) -> Any:
    """A byte-level BPE of a few lines, with every special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 40,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    """A row with one question and its answer."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


CHATS = [
    chat("What is the capital of France?", "The capital of France is Paris."),
    chat("Name a colour of the sky.", "The sky is blue, and at night it is black."),
    chat("What is one and two?", "one and two is three."),
    chat("Name four.", "four"),
]
THOUGHT = [chat(f"What is {n}?", f"<think>\nIt is {n}.\n</think>\n\nThe answer is {n}.") for n in
           ("one", "two", "three", "four")]  # fmt: skip
PAIRS = [
    {"prompt": f"### Instruction: {row['messages'][0]['content']}\n### Response:",
     "completion": f" {row['messages'][1]['content']}"}
    for row in CHATS
]  # fmt: skip


def _write_examples(root: Path) -> None:
    """What examples of rules name."""
    write_model(root / "folders" / "chat_model", template="chatml")
    write_model(root / "folders" / "chat_model_with_bos", bos="<s>", eos="</s>", template="mistral")
    write_model(root / "folders" / "chat_model_padded_by_end", pad="<|im_end|>", template="chatml")
    write_model(
        root / "folders" / "chat_model_stops_elsewhere", eos="<|endoftext|>", template="chatml"
    )
    for name, template in TEMPLATES.items():
        path = root / "data" / "templates" / f"{name}.jinja"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template, encoding="utf-8")
    rows = root / "data" / "rows"
    write_rows(rows / "chats.jsonl", CHATS)
    write_rows(rows / "thought.jsonl", THOUGHT)
    write_rows(rows / "pairs.jsonl", PAIRS)
    long = "one two three four five six seven eight nine ten " * 6
    write_rows(rows / "long_prompts.jsonl", [chat(long, "three"), chat(long, "four"), *CHATS])
    write_rows(rows / "system.jsonl", [
        {"messages": [{"role": "system", "content": "Be brief."}, *row["messages"]]}
        for row in CHATS
    ])  # fmt: skip
    write_rows(rows / "texts.jsonl", [{"text": "The sky is blue."}, {"text": "one two three"}])
    write_rows(rows / "texts_with_bos.jsonl", [
        {"text": "<s>The sky is blue."}, {"text": "<s>one two three"},
    ])  # fmt: skip
    write_rows(rows / "no_answers.jsonl", [
        {"messages": row["messages"][:1]} for row in CHATS
    ])  # fmt: skip
    write_rows(rows / "other_chats.jsonl", [chat("Name five.", "five"), chat("Name six.", "six")])
    write_rows(rows / "none.jsonl", [])
    write_rows(rows / "pairs_merged.jsonl", [
        {"prompt": f"{row['prompt']} ", "completion": row["completion"].strip()} for row in PAIRS
    ])  # fmt: skip
    write_model(root / "folders" / "chat_model_with_images", template="chatml", images=True)
    write_rows(rows / "images.jsonl", [
        chat("<image>" * 16 + "What is one?", "one"), chat("<image>" * 48 + "What is two?", "two"),
    ])  # fmt: skip
    write_rows(rows / "masked.jsonl", [
        {"input_ids": [5, 60, 61, 62, 6], "labels": [-100] * 5},
        {"input_ids": [5, 60, 61, 6], "labels": [-100] * 4},
    ])  # fmt: skip
    write_rows(rows / "labels_beyond.jsonl", [
        {"input_ids": [5, 60, 61, 62, 5], "labels": [-100, 60, 61, 700, 5]},
        {"input_ids": [5, 60, 61, 62, 5], "labels": [-100, 60, -1, 62, 5]},
    ])  # fmt: skip
    write_rows(rows / "labels_within.jsonl", [
        {"input_ids": [5, 60, 61, 62, 5], "labels": [-100, 60, 61, 62, 5]},
    ])  # fmt: skip


if __name__ == "__main__":
    _write_examples(Path(__file__).parent)
