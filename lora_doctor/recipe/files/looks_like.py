"""What a file that is no set-up looks like: told instead of the nearest key of a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What it is, names of which a file has all, and names of which it has one.
_KINDS: tuple[tuple[str, frozenset[str], frozenset[str]], ...] = tuple(
    (what, frozenset(every.split()), frozenset(one.split()))
    for what, every, one in (
        ("a DeepSpeed config", "", "zero_optimization train_micro_batch_size_per_gpu"),
        ("a config of accelerate", "", "compute_environment distributed_type"),
        ("a model's config.json", "model_type", "architectures hidden_size num_hidden_layers"),
        ("a tokenizer's config", "tokenizer_class", ""),
        ("a tokenizer", "added_tokens", "model normalizer"),
        ("a generation config", "", "max_new_tokens do_sample"),
        ("the state of a Trainer", "log_history global_step", ""),
        ("a config of torchtune", "", "_component_"),
        ("a mergekit config", "merge_method", ""),
        ("a config of verl", "actor_rollout_ref", ""),
        ("a config of NeMo", "trainer exp_manager", ""),
        ("a config of Ludwig", "input_features output_features", ""),
        ("a workflow of GitHub Actions", "jobs", ""),
        ("a compose file", "services", ""),
        ("a task of SkyPilot", "resources run", ""),
        ("a package.json", "name version", "scripts dependencies devDependencies"),
        ("an index of weights", "weight_map", ""),
        ("a preprocessor's config", "", "image_processor_type feature_extractor_type"),
    )
)


def looks_like(values: Mapping[str, Any]) -> str:
    """What a file with these entries is, after "looks like"; empty where nothing is known."""
    names = {str(name) for name in values}
    inner = {str(key) for value in values.values() if isinstance(value, Mapping) for key in value}
    for what, every, one in _KINDS:
        if every <= names and (not one or one & names):
            return what
    if "_component_" in inner:
        return "a config of torchtune"
    data = inner & {"file_name", "hf_hub_url", "script_url"}
    if data and all(isinstance(value, Mapping) for value in values.values()):
        return "a dataset_info.json of LLaMA-Factory"
    return ""


#: By the name of the file alone; YAML and JSON say nothing by it.
_SUFFIXES = {
    ".py": "a Python script", ".ipynb": "a notebook", ".toml": "TOML", ".md": "Markdown",
    ".csv": "training data (--data FILE)", ".tsv": "training data (--data FILE)",
    ".jsonl": "training data (--data FILE)", ".yaml": "", ".yml": "", ".json": "",
}  # fmt: skip


def text_looks_like(path: Path, text: str) -> str:
    """The same for a file that is no YAML or JSON of keys and values."""
    name, suffix = path.name.lower(), path.suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if re.fullmatch(r"requirements.*\.(txt|in)", name):
        return "a list of requirements"
    if re.match(r"\s*\[[\w.\"-]+\]\s*$", text, re.MULTILINE):
        return "TOML"
    if name.startswith("dockerfile") or re.match(r"(?:#.*\n)*FROM\s+\S+", text):
        return "a Dockerfile"
    if re.search(r"^\s*(?:from\s+[\w.]+\s+)?import\s+\w+", text, re.MULTILINE):
        return "a Python script"
    if "Traceback (most recent call last)" in text:
        return "a log (lora-doctor explain - < FILE)"
    return ""
