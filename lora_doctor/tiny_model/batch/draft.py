"""A batch in the making: what a model wants in number and shape, read from its config first.

`batch.py` corrects the draft where the model objects; `batch_makers.py` makes the arguments.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from typing import Any

from lora_doctor.nn.embeddings import input_embeddings
from lora_doctor.results.note import Note
from lora_doctor.tiny_model.batch.documented import documented_terms
from lora_doctor.tiny_model.batch.encoder_inputs import stream, vocabulary
from lora_doctor.tiny_model.batch.makers import MAKERS
from lora_doctor.tiny_model.batch.names import common_names, renamed
from lora_doctor.tiny_model.batch.settings import Settings
from lora_doctor.tiny_model.batch.unknown import can_guess, guess


@dataclass
class Draft:
    """A batch in the making. Lengths in tokens, sizes in pixels, frames in spectrogram columns.

    Arguments go by the names that most models have for them (`batch_names`); `own` gives them this
    forward's.
    """

    model: Any
    parameters: dict[str, inspect.Parameter]
    settings: Settings
    batch_size: int
    seq_len: int
    seed: int
    modalities: set[str]
    include: set[str] = field(default_factory=set)
    exclude: set[str] = field(default_factory=set)
    features: dict[str, int] = field(default_factory=dict)
    pixel_layout: str = "bchw"
    audio_layout: str = "mel_frames"
    image_size: int = 0
    channels: int = 0
    frames: int = 0
    mel: int = 0
    patch_dim: int = 0
    codebooks: int = 0
    choices: int = 0
    images: int = 0
    places: int = 0
    samples: int = 6400
    masked: int = 0
    last_id: int = 0
    blind: BaseException | None = None
    vocab: int = 0
    decoder_vocab: int = 0
    mask_dims: dict[str, int] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    #: Modalities whose placeholders were counted again by an objection of the model.
    recounted: set[str] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)
    own_names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = common_names(self.parameters)
        self.parameters = renamed(self.parameters, names)
        self.own_names = self.own_names or {common: own for own, common in names.items()}

    # -- sizes -----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Fill sizes from the config and from the modules of the model."""
        s = self.settings
        vision = r"vision|image|visual|backbone|encoder|^$"
        self.channels = s.number("num_channels", "in_channels", "in_chans", default=3)
        if self.channels > 16:
            self.channels = 3
        self.image_size = s.number(
            "image_size", "img_size", "input_size", "resolution", "max_image_size", within=vision
        )
        patch = self.patch
        if not self.image_size or self.image_size > 512:
            self.image_size = 4 * patch if 8 <= patch <= 64 else 64
        self.mel = s.number("num_mel_bins", "input_feat_per_channel", "n_mel_bins", "n_mels")
        self.mel = self.mel or s.number("input_feat_size", "input_dim", "feature_size", default=80)
        positions = s.number("max_source_positions", within=r"audio|encoder|^$")
        self.frames = 2 * positions if 0 < positions <= 1500 else 64
        self.vocab = self._embedding_rows()
        self.decoder_vocab = s.number("decoder_vocab_size", default=0) or self._decoder_rows()
        self.pixel_layout = self._first_pixel_layout()
        self.audio_layout = self._first_audio_layout()
        fixed = s.number("max_length")  # frames of a spectrogram cut in patches (AST's kind)
        if self.audio_layout == "frames_mel" and not positions and fixed > 64:
            self.frames = fixed
        if documented_terms(self, "input_ids")[1:-1] == ("num_choices",):
            self.choices = 2

    @property
    def patch(self) -> int:
        """Pixels per side of one patch."""
        return self.settings.number(
            "patch_size", within=r"vision|image|visual|backbone|encoder|^$", default=16
        )

    def _embedding_rows(self) -> int:
        rows = getattr(input_embeddings(self.model), "num_embeddings", None)
        if isinstance(rows, int) and rows > 1:
            return rows
        return self.settings.number("vocab_size", "n_vocab", "text_vocab_size", default=64)

    def _decoder_rows(self) -> int:
        try:
            decoder = self.model.get_decoder()
            rows = getattr(decoder.get_input_embeddings(), "num_embeddings", None)
        except (AttributeError, NotImplementedError, TypeError, KeyError):
            rows = None
        if isinstance(rows, int) and rows > 1:
            return rows
        inner = self.settings.number("vocab_size", within=r"decoder|text|generator")
        return inner or self.settings.number("vocab_size", default=self.vocab)

    def _first_pixel_layout(self) -> str:
        names = self.parameters
        if any(re.search(r"grid_(thw|hw)s?$", name) for name in names):
            return "grid"
        if "target_sizes" in names:
            return "strip"
        if "spatial_shapes" in names or "pixel_position_ids" in names:
            return "patches"
        if "aspect_ratio_ids" in names:
            return "tiles"
        if "pixel_attention_mask" in names or "image_num_patches" in names or self._anyres():
            return "bnchw"
        if self.settings.number("num_frames") and "input_ids" not in names:
            return "bnchw"
        return "bchw"

    def _first_audio_layout(self) -> str:
        if "input_features" not in self.parameters:
            return "frames_mel" if self.settings.number("num_mel_bins") else "wave"
        from torch.nn import Conv1d

        for _, module in self.model.named_modules():
            if isinstance(module, Conv1d):
                return "mel_frames" if module.in_channels == self.mel else "frames_mel"
        return "frames_mel"

    # -- making ----------------------------------------------------------------------------------

    def generator(self) -> Any:
        import torch

        return torch.Generator().manual_seed(self.seed)

    def normal_ids(self, count: int, vocab: int) -> Any:
        """`count` random token ids below `vocab` that are not special. Shape [count]."""
        import torch

        special = self.settings.special_ids()
        allowed = [i for i in range(min(vocab, 4096)) if i not in special]
        allowed = [i for i in allowed if i > 2] or allowed or [0]
        pick = torch.randint(len(allowed), (count,), generator=self.generator())
        return torch.tensor(allowed)[pick]

    def wanted(self) -> list[str]:
        """Names of the arguments to make, in the order of the signature."""
        names = []
        for name, parameter in self.parameters.items():
            if name in self.exclude or not (name in MAKERS or can_guess(self, name)):
                continue
            required = parameter.default is parameter.empty and parameter.kind not in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            )
            usual = vocabulary(self, name) or (name in MAKERS and self._by_default(name))
            if required or name in self.include or usual:
                names.append(name)
        return names + sorted(
            n
            for n in self.include
            if n in MAKERS and n not in names and n not in self.exclude and self._takes_any()
        )

    def can_do_without_cache(self) -> bool:
        """Whether `use_cache=False` is something new to say to this forward."""
        config = getattr(self.model, "config", None)
        takes = "use_cache" in self.parameters or (
            self._takes_any() and getattr(config, "use_cache", None) is True
        )
        return takes and "use_cache" not in self.extra

    def _takes_any(self) -> bool:
        return any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

    def _by_default(self, name: str) -> bool:
        groups = {
            "text": ("input_ids", "attention_mask", "return_loss"),
            "image": (
                "pixel_values",
                "image_grid_thw",
                "grid_thw",
                "image_grid_hw",
                "image_grid_hws",
                "grid_hw",
                "grid_hws",
                "image_sizes",
                "pixel_attention_mask",
                "aspect_ratio_ids",
                "aspect_ratio_mask",
                "cross_attention_mask",
                "spatial_shapes",
                "target_sizes",
                "image_merge_sizes",
                "qformer_input_ids",
                "qformer_attention_mask",
                "flattened_patches",
                "bbox",
                "pixel_position_ids",
                "image_position_ids",
                "image_embeds_position_mask",
                "mm_token_type_ids",
                "moe_mm_token_type_ids",
            ),
            "audio": (
                "input_features",
                "input_values",
                "feature_attention_mask",
                "input_features_mask",
            ),
            "video": ("pixel_values_videos", "video_grid_thw"),
        }
        if name == "bbox":
            return "text" in self.modalities
        if name == "image_sizes" and not self._anyres():
            return False  # Pixtral behind LLaVA takes them, CLIP does not: on objection
        if name == "attention_mask" and "input_ids" not in self.parameters:
            return "flattened_patches" in self.parameters
        return any(name in names for kind, names in groups.items() if kind in self.modalities)

    def make(self) -> dict[str, Any]:
        """The forward arguments; [batch, choices, …] where a sample is several to choose from."""
        if self.choices:
            from dataclasses import replace

            flat = replace(self, batch_size=self.batch_size * self.choices, choices=0).make()
            return {
                name: value.reshape(self.batch_size, self.choices, *value.shape[1:])
                if hasattr(value, "reshape")
                else value
                for name, value in flat.items()
            }
        inputs: dict[str, Any] = {}
        for name in self.wanted():
            value = stream(self, name)
            if value is None:
                made = MAKERS.get(name)
                value = made(self, inputs) if made else guess(self, name, inputs)
            if value is not None and name in self.mask_dims:  # of images, not of their pixels
                value = value.new_ones(value.shape[: self.mask_dims[name]])
            if value is not None:
                inputs[name] = value
        inputs.update({k: v for k, v in self.extra.items() if k not in self.exclude})
        return inputs

    def own(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """`inputs` under the names that this forward has for them."""
        return renamed(inputs, self.own_names)

    def marker(self, kind: str) -> int | None:
        """The token that stands for one feature of `kind`. Where forward takes no videos of their
        own and the config marks nothing else, an image is a frame of one."""
        found = self.settings.placeholder(kind)
        if found is None and kind == "image" and "pixel_values_videos" not in self.parameters:
            found = self.settings.placeholder("video")
        return found

    def input_ids(self) -> Any:
        """Token ids with the placeholders of every modality inside. Shape [batch, length]."""
        import torch

        rows = []
        for row in range(self.batch_size):
            text = self.normal_ids(self.batch_size * self.seq_len, self.vocab)
            text = text[row * self.seq_len : (row + 1) * self.seq_len]
            parts = [text[:2]]
            for kind in ("image", "video", "audio"):
                count = self.features.get(kind, 0) if kind in self.modalities else 0
                marker = self.marker(kind)
                if count and marker is not None and marker < max(self.vocab, 1):
                    parts += self.border(kind, "start")
                    parts.append(torch.full((count,), marker))
                    parts += self.border(kind, "end")
            parts.append(text[2:])
            rows.append(torch.cat(parts))
        ids = torch.stack(rows)
        if self.last_id:
            ids[:, -1] = self.last_id
        return ids if not self.codebooks else ids[..., None].repeat(1, 1, self.codebooks)

    def border(self, kind: str, which: str) -> list[Any]:
        """The start or end token that M-RoPE code looks for around an image."""
        import torch

        names = [f"vision_{which}_token_id"] if kind != "audio" else []
        names += [f"{kind}_{which}_token_id"]
        marker = self.settings.number(*names)
        return [torch.tensor([marker])] if 0 < marker < self.vocab else []

    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of patches of one image, in the merge factor of the model."""
        merge = self.settings.number(
            "spatial_merge_size", "merge_size", "merge_kernel_size", default=2
        )
        side = max(2, -(-4 // merge)) * merge if merge > 1 else 4
        return 1, side, side

    def flat_patch(self) -> int:
        """Numbers in one flattened patch."""
        if self.patch_dim:
            return self.patch_dim
        s = self.settings
        frames = any(name.endswith("_thw") for name in self.parameters)
        temporal = s.number("temporal_patch_size", default=1) if frames else 1
        return self.channels * temporal * self.patch**2

    def pixels(self) -> Any:
        """Image values in the layout of this draft."""
        import torch

        b, c, h = self.batch_size, self.channels, self.image_size
        if self.pixel_layout == "grid":
            t, rows, columns = self.grid()
            shape: tuple[int, ...] = (b * t * rows * columns, self.flat_patch())
        elif self.pixel_layout == "grid_patches":
            t, rows, columns = self.grid()
            shape = (b * t * rows * columns, c, self.patch, self.patch)
        elif self.pixel_layout == "strip":  # patches of all images, one beside the other
            t, rows, columns = self.grid()
            shape = (1, c, self.patch, b * t * rows * columns * self.patch)
        elif self.pixel_layout == "patches":
            shape = (b, 16, self.flat_patch())
        elif self.pixel_layout == "bnchw":
            shape = (b, self.images_per_row(), c, h, h)
        elif self.pixel_layout == "tiles":
            shape = (b, 1, self.settings.number("max_num_tiles", default=4), c, h, h)
        elif self.pixel_layout == "bcthw":
            shape = (b, c, self.settings.number("num_frames", default=2), h, h)
        else:
            shape = (b, c, h, h)
        return torch.rand(shape, generator=self.generator()) * 2 - 1

    def shapes(self) -> tuple[Any, ...]:
        """What decides how pictures and sound are laid out, and so how many tokens they take."""
        return (
            self.pixel_layout, self.image_size, self.patch_dim, self.images,
            self.audio_layout, self.frames, self.mel, self.samples, frozenset(self.exclude),
        )  # fmt: skip

    def images_per_row(self) -> int:
        """Pictures per sample in a five-dimensional layout: frames, tiles of one image, as many as
        an objection asks for, or one."""
        if self._anyres():
            return 1 + self.tile_rows() * self.tile_columns()  # the overview comes first
        if self.images:
            return self.images
        frames = self.settings.number("num_frames")
        return frames if frames and "input_ids" not in self.parameters else 1

    def _anyres(self) -> bool:
        """Whether images are cut into tiles by their size (LLaVA-NeXT)."""
        return "image_sizes" in self.parameters and self._pinpoint() is not None

    def tile_rows(self) -> int:
        return max(1, (self._pinpoint() or (0, 0))[0] // self.image_size)

    def tile_columns(self) -> int:
        return max(1, (self._pinpoint() or (0, 0))[1] // self.image_size)

    def _pinpoint(self) -> tuple[int, int] | None:
        for node in self.settings.nodes():
            points = node.values.get("image_grid_pinpoints")
            if isinstance(points, (list, tuple)) and points:
                smallest = min(points, key=lambda p: p[0] * p[1])
                return int(smallest[0]), int(smallest[1])
        return None
