"""Which tokenizers are loaded, with their special ids and templates: what labels are judged by."""

from __future__ import annotations

import weakref
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.plain import plain

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def prepare(acting: Acting) -> None:
    """Once transformers has tokenizers."""
    acting.after("transformers.tokenization_utils_base", lambda m: _tokenizers(acting, m))


def _tokenizers(acting: Acting, module: ModuleType) -> None:
    def loaded(original: Any, kind: Any, *arguments: Any, **named: Any) -> Any:
        tokenizer = original(*arguments, **named)
        if not acting.in_contract:
            acting.tokenizers.append(weakref.ref(tokenizer))
            acting.journal.tell(
                "tokenizer",
                name=str(getattr(tokenizer, "name_or_path", "")),
                type=type(tokenizer).__name__,
                size=len(tokenizer),
                chat_template=plain(getattr(tokenizer, "chat_template", None)),
                **{name: plain(getattr(tokenizer, name, None)) for name in _IDS},
            )
        return tokenizer

    acting.replaced.around(module.PreTrainedTokenizerBase, "from_pretrained", loaded)
