"""Whisper with Seq2SeqTrainer and a collator of its own."""

import wave
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

processor = WhisperProcessor.from_pretrained("whisper")


def audio(number):
    with wave.open("data/tone.wav") as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
    return samples.astype(np.float32) / 32768 * (1 - number % 7 / 10)


def prepare_dataset(row):
    features = processor.feature_extractor(audio(row["number"]), sampling_rate=16000)
    return {
        "input_features": features.input_features[0],
        "labels": processor.tokenizer(row["sentence"]).input_ids,
    }


rows = [{"number": n, "sentence": f"tone number {n}"} for n in range(200)]
data = Dataset.from_list(rows).map(prepare_dataset, remove_columns=["number", "sentence"])


@dataclass
class DataCollatorSpeechSeq2SeqWithPadding:
    processor: Any

    def __call__(self, features):
        inputs = [{"input_features": one["input_features"]} for one in features]
        batch = self.processor.feature_extractor.pad(inputs, return_tensors="pt")
        texts = [{"input_ids": one["labels"]} for one in features]
        padded = self.processor.tokenizer.pad(texts, return_tensors="pt")
        labels = padded["input_ids"].masked_fill(padded.attention_mask.ne(1), -100)
        if (labels[:, 0] == self.processor.tokenizer.bos_token_id).all().cpu().item():
            labels = labels[:, 1:]
        batch["labels"] = labels
        return batch


model = WhisperForConditionalGeneration.from_pretrained("whisper")
model.config.forced_decoder_ids = None
model.config.suppress_tokens = []
model = get_peft_model(
    model,
    LoraConfig(r=32, lora_alpha=64, target_modules=["q_proj", "v_proj"], lora_dropout=0.05),
)
model.print_trainable_parameters()
trainer = Seq2SeqTrainer(
    args=Seq2SeqTrainingArguments(
        output_dir="whisper-lora",
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        warmup_steps=5,
        max_steps=200,
        fp16=True,
        generation_max_length=64,
        remove_unused_columns=False,
        label_names=["labels"],
    ),
    model=model,
    train_dataset=data,
    data_collator=DataCollatorSpeechSeq2SeqWithPadding(processor=processor),
    processing_class=processor.feature_extractor,
)
model.config.use_cache = False
trainer.train()
model.save_pretrained("whisper-lora/adapter")
