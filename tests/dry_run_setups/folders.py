"""What the set-ups load: configs of published models at their full size, without weights, with
tokenizers and processors made on the spot; and their data."""

from __future__ import annotations

import json
import math
import struct
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.chat_models import SPECIAL, VOCABULARY, chat, write_model, write_rows
from tests.vlm_folders import PUBLISHED

#: Rows of each data file: more than a dry run takes.
ROWS = 300

#: Llama 2 of 7 billion parameters, but for its vocabulary.
_LLAMA = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}  # fmt: skip
_BERT = {
    "architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_size": 768,
    "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "vocab_size": VOCABULARY, "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip
_T5 = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 768,
    "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": VOCABULARY,
    "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip
_VIT = {
    "architectures": ["ViTModel"], "model_type": "vit", "hidden_size": 768,
    "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 16,
}  # fmt: skip
_WHISPER_SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>",
                    "<|translate|>", "<|notimestamps|>")  # fmt: skip


def write_all(root: Path) -> None:
    """Every folder and file that a set-up may name, in one place; a second or two."""
    _chat_model(root / "llama")
    end = "<|endoftext|>"
    _chat_model(root / "llama-base", template="chatml", eos=end, stops=(end,))
    # Without generation marks, which transformers before 4.42 cannot read.
    _chat_model(root / "llama-chatml", template="chatml")
    _chat_model(root / "llama2", template="mistral", bos="<s>", eos="</s>")
    _with_config(root / "bert", _BERT)
    _with_config(root / "t5", _T5, eos="</s>")
    _embedder(root / "embedder")
    _vit(root / "vit")
    _whisper(root / "whisper")
    _llava(root / "llava")
    _qwen2_vl(root / "qwen2-vl")
    _adapter(root / "adapter", "llama")
    _data(root)


def _write(path: Path, content: Mapping[str, Any] | list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _chat_model(folder: Path, **options: Any) -> None:
    write_model(folder, **options)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _write(folder / "config.json", {**config, **_LLAMA})
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    _write(folder / "tokenizer_config.json", {**settings, "model_max_length": 4096})


def _with_config(folder: Path, config: Mapping[str, Any], eos: str = "<|endoftext|>") -> None:
    """Another model with the same tokenizer, and nothing that generates."""
    write_model(folder, template=None, eos=eos)
    _write(folder / "config.json", config)
    (folder / "generation_config.json").unlink()


def _embedder(folder: Path) -> None:
    """As sentence-transformers saves one."""
    _with_config(folder, {**_BERT, "architectures": ["BertModel"]})
    _write(folder / "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling",
         "type": "sentence_transformers.models.Pooling"},
    ])  # fmt: skip
    _write(folder / "1_Pooling" / "config.json",
           {"word_embedding_dimension": 768, "pooling_mode_mean_tokens": True})  # fmt: skip
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})


def _vit(folder: Path) -> None:
    _write(folder / "config.json", _VIT)
    _write(folder / "preprocessor_config.json", {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224},
        "do_resize": True, "do_normalize": True, "do_rescale": True,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    })  # fmt: skip


def _whisper(folder: Path) -> None:
    """whisper-small, but for its vocabulary."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*letters, *_WHISPER_SPECIAL])}
    end, start = vocabulary["<|endoftext|>"], vocabulary["<|startoftranscript|>"]
    _write(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    _write(folder / "tokenizer_config.json", {
        "tokenizer_class": "WhisperTokenizer", "unk_token": "<|endoftext|>",
        "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(_WHISPER_SPECIAL), "model_max_length": 448,
    })  # fmt: skip
    _write(folder / "preprocessor_config.json", {
        "feature_extractor_type": "WhisperFeatureExtractor", "processor_class": "WhisperProcessor",
        "feature_size": 80, "sampling_rate": 16000, "hop_length": 160, "chunk_length": 30,
        "n_fft": 400, "padding_value": 0.0,
    })  # fmt: skip
    _write(folder / "config.json", {
        "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper",
        "d_model": 768, "encoder_layers": 12, "decoder_layers": 12, "encoder_attention_heads": 12,
        "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072,
        "vocab_size": len(vocabulary), "num_mel_bins": 80, "max_source_positions": 1500,
        "max_target_positions": 448, "pad_token_id": end, "bos_token_id": end, "eos_token_id": end,
        "decoder_start_token_id": start, "suppress_tokens": [], "begin_suppress_tokens": [end],
    })  # fmt: skip


def _llava(folder: Path) -> None:
    """LLaVA 1.5 of 7 billion parameters, but for its vocabulary."""
    write_model(folder, template="chatml", images=True)
    token = SPECIAL.index("<image>")
    entries = json.loads(json.dumps(PUBLISHED["LLaVA 1.5"].entries))
    entries["architectures"] = ["LlavaForConditionalGeneration"]
    entries["image_token_index"], entries["pad_token_id"] = token, 0
    entries["text_config"] |= {"vocab_size": VOCABULARY, "pad_token_id": 0}
    _write(folder / "config.json", entries)
    _write(folder / "preprocessor_config.json", {
        "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor",
        "crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 336},
        "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True,
        "do_resize": True, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
    })  # fmt: skip
    _write(folder / "processor_config.json", {
        "processor_class": "LlavaProcessor", "patch_size": 14, "image_token": "<image>",
        "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
    })  # fmt: skip


def _qwen2_vl(folder: Path) -> None:
    """Qwen2-VL of 2 billion parameters, but for its vocabulary."""
    write_model(folder, template="chatml", images=True)
    entries = json.loads(json.dumps(PUBLISHED["Qwen2-VL"].entries))
    named = {"vision_start": "[INST]", "vision_end": "[/INST]", "vision": "<start_of_turn>",
             "image": "<image>", "video": "<end_of_turn>", "bos": "<|endoftext|>",
             "eos": "<|im_end|>", "pad": "<pad>"}  # fmt: skip
    entries |= {f"{key}_token_id": SPECIAL.index(token) for key, token in named.items()}
    entries |= {"architectures": ["Qwen2VLForConditionalGeneration"], "vocab_size": VOCABULARY}
    _write(folder / "config.json", entries)
    _write(folder / "preprocessor_config.json", {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2,
        "temporal_patch_size": 2, "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    })  # fmt: skip


def _adapter(folder: Path, base: str) -> None:
    """An adapter that somebody has trained, of which a dry run reads the config alone."""
    _write(folder / "adapter_config.json", {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 32,
        "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": base,
    })  # fmt: skip


def _data(root: Path) -> None:
    colours = ("blue", "red", "green", "black", "white")
    chats = [
        chat(f"What is the colour of number {n}?", f"Number {n} is {colours[n % 5]}.")
        for n in range(ROWS)
    ]
    write_rows(root / "data" / "chats.jsonl", chats)
    write_rows(root / "data" / "held_out.jsonl", [
        chat(f"Which number is {colour}?", f"{colour} is the number {n}.")
        for n, colour in enumerate(colours * 8)
    ])  # fmt: skip
    write_rows(root / "data" / "preferences.jsonl", [
        {"prompt": f"Name number {n}.", "chosen": f" It is {colours[n % 5]}.", "rejected": " No."}
        for n in range(ROWS)
    ])  # fmt: skip
    write_rows(root / "data" / "reviews.jsonl", [
        {"text": f"The film {n} is {'good' if n % 3 else 'bad'}.", "label": n % 3}
        for n in range(ROWS)
    ])  # fmt: skip
    write_rows(root / "data" / "entities.jsonl", [
        {"words": ["Paris", "is", "number", str(n)], "tags": [1, 0, 0, 2]} for n in range(ROWS)
    ])  # fmt: skip
    alpaca = [
        {"instruction": f"Name the colour of number {n}.", "input": "" if n % 2 else "In one word.",
         "output": colours[n % 5]}
        for n in range(ROWS)
    ]  # fmt: skip
    _write(root / "data" / "alpaca.json", alpaca)
    _write(root / "data" / "dataset_info.json", {
        "alpaca": {"file_name": "alpaca.json"},
        "chats": {"file_name": "chats.jsonl", "formatting": "sharegpt",
                  "columns": {"messages": "messages"},
                  "tags": {"role_tag": "role", "content_tag": "content",
                           "user_tag": "user", "assistant_tag": "assistant"}},
    })  # fmt: skip
    _tone(root / "data" / "tone.wav")


def _tone(path: Path) -> None:
    """Half a second of 440 Hz at 16 kHz."""
    samples = [int(8000 * math.sin(2 * math.pi * 440 * n / 16000)) for n in range(8000)]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))
