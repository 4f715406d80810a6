"""Which classes transformers has for a config, and what each of them is for.

Runs where transformers is imported.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.static.installed.missing_package import missing_remedy
from lora_doctor.text import one_line

#: Auto classes in the order in which a user would reach for them, with the PEFT task type that
#: fits what they load. Names come and go with transformers: absent ones are passed over.
_DECODER_CLASSES = (
    ("AutoModelForImageTextToText", "CAUSAL_LM"),
    ("AutoModelForVision2Seq", "CAUSAL_LM"),
    ("AutoModelForCausalLM", "CAUSAL_LM"),
)
_ENCODER_DECODER_CLASSES = (
    ("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
    ("AutoModelForSpeechSeq2Seq", "SEQ_2_SEQ_LM"),
    ("AutoModelForImageTextToText", "SEQ_2_SEQ_LM"),
    ("AutoModelForVision2Seq", "SEQ_2_SEQ_LM"),
)
_HEAD_CLASSES = (
    ("AutoModelForSequenceClassification", "SEQ_CLS"),
    ("AutoModelForTokenClassification", "TOKEN_CLS"),
    ("AutoModelForQuestionAnswering", "QUESTION_ANS"),
    ("AutoModelForMaskedLM", None),
    ("AutoModelForVisualQuestionAnswering", None),
    ("AutoModelForImageClassification", None),
    ("AutoModelForAudioClassification", None),
    ("AutoModelForCTC", None),
    ("AutoModelForTextToSpectrogram", None),
    ("AutoModelForTextToWaveform", None),
    ("AutoModelForObjectDetection", None),
    ("AutoModelForSemanticSegmentation", None),
    ("AutoModelForUniversalSegmentation", None),
    ("AutoModelForDepthEstimation", None),
    ("AutoModelForMaskedImageModeling", None),
)
_BASE_CLASSES = (("AutoModel", "FEATURE_EXTRACTION"),)


def classes_for(config: Any, source: Mapping[str, Any]) -> list[tuple[str, type, str | None]]:
    """``(auto class, class, task type)`` for a config, the likeliest use first."""
    order: tuple[tuple[str, str | None], ...]
    if getattr(config, "is_encoder_decoder", False):
        order = (*_ENCODER_DECODER_CLASSES, *_DECODER_CLASSES, *_HEAD_CLASSES, *_BASE_CLASSES)
    elif _is_text_encoder(config):
        order = (*_HEAD_CLASSES, *_DECODER_CLASSES, *_BASE_CLASSES)
    elif hasattr(config, "text_config") and hasattr(config, "vision_config"):
        # A dual encoder (CLIP's kind) is tuned as a whole, not as a classifier of images.
        order = (*_DECODER_CLASSES, *_ENCODER_DECODER_CLASSES, *_BASE_CLASSES, *_HEAD_CLASSES)
    else:
        order = (*_DECODER_CLASSES, *_ENCODER_DECODER_CLASSES, *_HEAD_CLASSES, *_BASE_CLASSES)
    remote = dict(getattr(config, "auto_map", None) or {}) if source["trust_remote_code"] else {}
    found: list[tuple[str, type, str | None]] = []
    for auto_name, task in order:
        if auto_name in remote:
            found.append((auto_name, _remote_class(remote[auto_name], source), task))
            continue
        cls = class_in(auto_name, config)
        if cls is not None and not any(cls is seen for _, seen, _ in found):
            found.append((auto_name, cls, task))
    if not found:  # a class that no auto class can load is loaded by its own name
        for auto_name, task in order:
            cls = listed_class(auto_name, config)
            if cls is not None and not any(cls is seen for _, seen, _ in found):
                found.append((cls.__name__, cls, task))
    return found


def auto_classes(config: Any) -> list[str]:
    """All auto classes of the installed transformers that list a config's class."""
    from transformers.models.auto import modeling_auto  # listing the whole package takes longer

    names = sorted(name for name in vars(modeling_auto) if name.startswith("AutoModel"))
    return [name for name in names if class_in(name, config) is not None]


def is_listed(name: str) -> bool:
    """Whether an auto class of this name lists any config."""
    import transformers

    auto = getattr(transformers, name, None) if name.isidentifier() else None
    return getattr(auto, "_model_mapping", None) is not None


def class_in(auto_name: str, config: Any) -> type | None:
    """The class that an auto class of the installed transformers lists for a config."""
    import transformers

    mapping = getattr(getattr(transformers, auto_name, None), "_model_mapping", None)
    if mapping is None or type(config) not in mapping:
        return None
    classes: Any = mapping[type(config)]
    return classes[0] if isinstance(classes, (tuple, list)) else classes  # type: ignore[no-any-return]


def listed_class(auto_name: str, config: Any) -> type | None:
    """The class under a config's `model_type` in the list of an auto class, whether or not the auto
    class takes the config: it asks by the name of the config's class, which may be there twice."""
    import transformers

    mapping = getattr(getattr(transformers, auto_name, None), "_model_mapping", None)
    listed = (getattr(mapping, "_model_mapping", None) or {}).get(config.model_type)
    name = listed[0] if isinstance(listed, (tuple, list)) else listed
    cls = getattr(transformers, name, None) if isinstance(name, str) else None
    return (
        cls if inspect.isclass(cls) and getattr(cls, "config_class", None) is type(config) else None
    )


def _is_text_encoder(config: Any) -> bool:
    """Whether the config describes an encoder that can also be run as a decoder (BERT's kind)."""
    import transformers

    masked = getattr(transformers, "AutoModelForMaskedLM", None)
    mapping = getattr(masked, "_model_mapping", None)
    in_mapping = mapping is not None and type(config) in mapping
    return in_mapping and not getattr(config, "is_decoder", False)


def _remote_class(reference: Any, source: Mapping[str, Any]) -> type:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    reference = reference[0] if isinstance(reference, (list, tuple)) else reference
    try:
        with quiet():
            cls = get_class_from_dynamic_module(
                str(reference), source["folder"], local_files_only=True
            )
    except Exception as error:
        raise EvidenceError(
            f"the repository's class {reference!r} cannot be imported here: "
            f"{type(error).__name__}: {one_line(error)}",
            remedy=missing_remedy(error),
        ) from error
    return cls  # type: ignore[no-any-return]


@contextlib.contextmanager
def quiet() -> Any:
    """Without the warnings that transformers logs while a class is being built."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
