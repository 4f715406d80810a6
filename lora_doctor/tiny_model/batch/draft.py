"""A batch in the making, as data: what a model takes, in number and shape, as far as it is known.

`first_guess` fills it from config and modules, `arguments` makes the forward arguments that it
describes, `forward_errors` corrects it by what the model raises.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_doctor.results.note import Note
from lora_doctor.tiny_model.batch.config_entries import ConfigEntries
from lora_doctor.tiny_model.batch.names import common_names, renamed
from lora_doctor.tiny_model.model_error import ModelError


@dataclass
class Tokens:
    """Token ids. `vocab` and `decoder_vocab` are numbers of tokens, ids are below them."""

    vocab: int = 0
    decoder_vocab: int = 0
    #: Codes per position, where ids have a third dimension; 0 where they have two.
    codebooks: int = 0
    #: The id that each row ends with; 0 for none.
    last_id: int = 0


@dataclass
class _Layout:
    """The order of dimensions, and which were tried."""

    layout: str = ""
    tried_layouts: set[str] = field(default_factory=set)

    def use(self, layout: str) -> None:
        """Change to another layout; neither it nor the one before is tried again."""
        self.tried_layouts |= {self.layout, layout}
        self.layout = layout

    def is_new(self, layout: str) -> bool:
        return layout != self.layout and layout not in self.tried_layouts


@dataclass
class Images(_Layout):
    """How images are laid out. `size` in pixels per side, square.

    `layout`: one letter per dimension (`bchw`, `bnchw` with several images per sample, `bcthw`),
    or `tiles`, or one of the kinds that are cut into patches beforehand: `grid` (a row per patch),
    `grid_patches` (a small image per patch), `patches` (a fixed number per sample), `strip` (all
    of them side by side in one image).
    """

    layout: str = "bchw"
    size: int = 0
    channels: int = 0
    #: Elements of one flattened patch, where an error called for them; 0 for what the config gives.
    patch_dim: int = 0
    #: Images per sample, where an error called for several; 0 for what the config gives.
    per_sample: int = 0
    #: Least patches per side in the layouts of a grid; 0 for the smallest that can be merged.
    least_grid_side: int = 0
    #: Positions in the text that an image takes, where they are marked by a mask; 0 by the config.
    positions: int = 0
    #: Patches that are masked or not in masked image modelling; 0 for those of one image.
    masked_patches: int = 0


@dataclass
class Audio(_Layout):
    """How audio is laid out: `frames` columns of a spectrogram with `mel_bins` values each, or
    `samples` values of a waveform.

    `layout`: `mel_frames`, `frames_mel`, `wave`, the last two also behind a dimension of 1
    (`b1_frames_mel`, `b1_wave`).
    """

    layout: str = "mel_frames"
    frames: int = 0
    mel_bins: int = 0
    samples: int = 6400
    #: Whether masks of frames are of dtype bool, not int64.
    bool_masks: bool = False
    #: Whether the number of placeholders was corrected after a forward.
    recounted: bool = False


@dataclass
class Draft:
    """A batch in the making: `batch_size` samples of `seq_len` tokens, without placeholders.

    Arguments go by the names that most models have for them (`names`); `with_own_names` gives them
    this forward's.
    """

    model: Any
    parameters: dict[str, inspect.Parameter]
    entries: ConfigEntries
    batch_size: int
    seq_len: int
    seed: int
    modalities: set[str]
    tokens: Tokens = field(default_factory=Tokens)
    image: Images = field(default_factory=Images)
    audio: Audio = field(default_factory=Audio)
    #: Texts per sample, of which one is to be chosen; 0 where a sample is one text.
    choices: int = 0
    #: Placeholder tokens per sample, by modality.
    placeholders: dict[str, int] = field(default_factory=dict)
    #: What forward raised on more than one sample; empty where it takes several.
    one_sample: str = ""
    #: Arguments that are made, or left out, whatever is usual.
    include: set[str] = field(default_factory=set)
    exclude: set[str] = field(default_factory=set)
    #: Arguments that only the model's processor makes, and sends with every image.
    sent: frozenset[str] = frozenset()
    #: Number of dimensions of a mask, where it has fewer than what it masks.
    mask_dims: dict[str, int] = field(default_factory=dict)
    #: Arguments with their values, in place of what would be made.
    extra: dict[str, Any] = field(default_factory=dict)
    #: Values that were tried for arguments that have to be one of a few.
    tried_choices: dict[str, list[Any]] = field(default_factory=dict)
    #: What forward raised about a cache that its default makes; it went on without one.
    cache_error: BaseException | None = None
    #: What forward raised before the first change that its text did not call for.
    first_error: BaseException | None = None
    notes: list[Note] = field(default_factory=list)
    #: What was raised on the way, whether a note tells of it or not.
    objections: list[ModelError] = field(default_factory=list)
    own_names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = common_names(self.parameters)
        self.parameters = renamed(self.parameters, names)
        self.own_names = self.own_names or {common: own for own, common in names.items()}

    def with_own_names(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """`inputs` under the names that this forward has for them."""
        return renamed(inputs, self.own_names)

    def takes_any_argument(self) -> bool:
        """Whether forward has `**kwargs`."""
        return any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

    def is_decided(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether an argument is among `inputs`, or was added or left out before."""
        return name in inputs or name in self.exclude or name in self.include

    def end_of_sequence(self) -> int:
        """The token that the config names; 0 for none, or for one that the vocabulary lacks
        (SigLIP's defaults are CLIP's)."""
        token = self.entries.number("eos_token_id")
        return token if token < max(self.tokens.vocab, 1) else 0

    def layouts(self) -> tuple[Any, ...]:
        """What decides how images and audio are laid out, and so how many tokens they take."""
        image, audio = self.image, self.audio
        return (
            image.layout, image.size, image.patch_dim, image.per_sample,
            audio.layout, audio.frames, audio.mel_bins, audio.samples, frozenset(self.exclude),
        )  # fmt: skip

    def generator(self) -> Any:
        """A new random generator with the seed of this batch."""
        import torch

        return torch.Generator().manual_seed(self.seed)
