"""A default config that its own class cannot be built from is completed as a user would do it.

What is missing is read from the code that raised; these tests use small classes of their own, so
that they say the same with every transformers, and then the architectures where it was seen.
"""

from __future__ import annotations

from typing import Any

import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from lora_doctor.errors import EvidenceError, InputError  # noqa: E402
from lora_doctor.model.loading import Loader  # noqa: E402
from lora_doctor.recipe.files.read_write import as_recipe  # noqa: E402
from lora_doctor.static.installed.missing_package import missing_package  # noqa: E402
from lora_doctor.tiny_model.config_roles import spread  # noqa: E402
from lora_doctor.tiny_model.shrink.config_gaps import gaps  # noqa: E402
from lora_doctor.tiny_model.shrink.config_mending import mend  # noqa: E402
from lora_doctor.tiny_model.shrink.shrink import shrink  # noqa: E402


class GapConfig(transformers.PretrainedConfig):
    """
    Args:
        rate (`str`, *optional*):
            How much is kept, e.g. `"1/4"` or `"3/8"`.
        names (`dict`, *optional*):
            Names of tokens.
        budget (`int`, *optional*):
            How many.
    """

    model_type = "gap"

    def __init__(
        self, rate: str | None = None, names: dict[str, int] | None = None,
        budget: int | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.rate = rate
        self.names = names
        self.budget = budget
        self.image_id = names.get("<image>") if names is not None else None
        super().__init__(**kwargs)


class Names:
    def __init__(self, names: Any) -> None:
        self.image = names.get("<image>")


class ReadsNames(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, config: GapConfig) -> None:
        super().__init__()
        self.names = Names(config.names)


class CountsBudget(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, config: GapConfig) -> None:
        super().__init__()
        self.budget = config.budget
        self.rate = config.rate if config.rate is not None else "1/2"
        self.half = self.budget // 2


class SplitsRate(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, config: GapConfig) -> None:
        super().__init__()
        self.parts = [int(part) for part in config.rate.split("/")]


def raised_by(make: Any, config: Any) -> Exception:
    with pytest.raises((AttributeError, TypeError)) as caught:
        make(config)
    return caught.value


def test_the_entry_is_the_one_that_the_failing_line_reads() -> None:
    """An error message says "unsupported operand"; which of three empty entries, the code says."""
    error = raised_by(CountsBudget, GapConfig())
    assert [gap.key for gap in gaps(error)] == ["budget"]


def test_a_mapping_gets_the_names_that_the_code_asks_for() -> None:
    """And what the config's own class makes of the entry follows: it is made again."""
    mended = mend(GapConfig(), raised_by(ReadsNames, GapConfig()))
    assert mended is not None
    assert list(mended.config.names) == ["<image>"]
    assert mended.config.image_id == mended.config.names["<image>"]
    assert ReadsNames(mended.config).names.image == mended.config.image_id


def test_an_example_in_the_docstring_is_what_a_user_would_write() -> None:
    """`e.g. "1/4"` is better than anything that could be guessed from the name."""
    mended = mend(GapConfig(), raised_by(SplitsRate, GapConfig()))
    assert mended is not None
    assert mended.config.rate == "1/4"
    assert mended.changes == ("rate = 1/4",)


def test_an_error_that_no_entry_explains_changes_nothing() -> None:
    """Otherwise a bug of the model's class would be papered over with made-up entries."""

    class Broken(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, config: GapConfig) -> None:
            super().__init__()
            torch.zeros(2).no_such_method()

    assert mend(GapConfig(), raised_by(Broken, GapConfig())) is None


class NumbersThatDoNotFit(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, config: GapConfig) -> None:
        super().__init__()
        self.budget = config.budget
        raise TypeError("10 cannot be split into 3")


def test_an_error_about_numbers_fills_no_empty_entry() -> None:
    """An optional entry (a padding token) that was read on the way is not at fault."""
    assert mend(GapConfig(), raised_by(NumbersThatDoNotFit, GapConfig())) is None


def test_equal_sections_stay_equal() -> None:
    """Height and width are rotated side by side: `[22, 22, 20]` cannot become `[14, 13, 13]`."""
    assert spread(40, [22, 22, 20]) == [14, 14, 12]
    assert sum(spread(5, [1, 1, 1])) == 5


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("X requires the timm library but it was not found. `pip install timm`."),
         "needs timm, which is not installed here: pip install timm"),
        (ModuleNotFoundError("No module named 'scipy.linalg'"),
         "needs scipy, which is not installed here: pip install scipy"),
        (ImportError("The required package 'scipy' is not installed."),
         "needs scipy, which is not installed here: pip install scipy"),
        (ValueError("No module named 'scipy'"), ""),
    ],
)  # fmt: skip
def test_a_missing_package_is_one_plain_sentence(error: Exception, said: str) -> None:
    """A user installs it; ten attempts at other numbers would not."""
    assert missing_package(error) == said


def loader(name: str, auto_class: str = "AutoModelForImageTextToText") -> Loader:
    from lora_doctor.static.model_source import parse_model

    mapping = getattr(getattr(transformers, auto_class, None), "_model_mapping", None)
    if name not in (getattr(mapping, "_model_mapping", None) or {}):
        pytest.skip(f"{auto_class} has no {name} here")
    source = parse_model(f"arch:{name}").to_json()
    return Loader(source, as_recipe({"model_class": auto_class}))


@pytest.mark.parametrize(
    "name",
    ["aya_vision", "chameleon", "emu3", "granite4_vision", "qwen4_exp", "cohere_compass",
     "ernie4_5_vl_moe", "hunyuan_vl", "granite_docling"],
)  # fmt: skip
def test_a_default_config_with_gaps_gets_a_tiny_model(name: str) -> None:
    """Each was "cannot be built" for another reason; each has a batch that it takes."""
    found = loader(name)
    found.build("meta")
    tiny = shrink(found.config, lambda config: found.build("cpu", config=config))
    assert tiny.batch is not None
    assert tiny.batch.loss == "labels"


def test_a_class_that_its_auto_class_refuses_is_named() -> None:
    """AutoModelForImageTextToText lists Evolla and cannot load it in transformers 5."""
    try:
        loader("evolla")
    except InputError as error:
        assert "--class EvollaForProteinText2Text" in str(error)
    else:
        pytest.skip("this transformers loads it")


def test_a_config_of_another_class_is_told_apart_from_a_broken_one() -> None:
    """`pixtral` is the config of a vision tower, and is listed as a model with a text part."""
    from lora_doctor.evidence.meta import gather

    found = loader("pixtral")
    if isinstance(found.config, getattr(found.model_class, "config_class", object)):
        pytest.skip("this transformers lists it with its own class")
    with pytest.raises(EvidenceError, match=r"is built from a LlavaConfig and not from"):
        gather(found.source, as_recipe({"model_class": found.loaded_by}).to_json())


def test_stages_of_a_tower_that_are_joined_get_one_width() -> None:
    """DeepSeek-OCR-2's default has two stages of different width, and joins what they put out."""
    found = loader("deepseek_ocr2")
    tiny = shrink(found.config, lambda config: found.build("cpu", config=config))
    assert tiny.batch is not None
    assert "image" in tiny.batch.modality


@pytest.mark.parametrize(
    ("name", "auto_class"),
    [
        ("sapiens2", "AutoModelForPoseEstimation"),  # lists of channels, empty
        ("lw_detr", "AutoModelForObjectDetection"),  # no factor for any scale
        ("vitmatte", "AutoModelForImageMatting"),  # tuples that are added to lists; two widths
        ("pp_doclayout_v2", "AutoModelForObjectDetection"),  # a threshold for each label
    ],
)
def test_an_empty_default_of_a_vision_model_is_filled(name: str, auto_class: str) -> None:
    """As the checkpoints have them, in kind: the class gives no number that works."""
    found = loader(name, auto_class)
    tiny = shrink(found.config, lambda config: found.build("cpu", config=config))
    assert tiny.batch is not None and tiny.batch.modality == ["image"]


def test_ids_that_only_the_code_knows_are_inside_the_small_vocabulary() -> None:
    """ShieldGemma 2 reads the logits of "yes" and "no" at numbers that its config does not have."""
    found = loader("shieldgemma2", "AutoModelForImageClassification")
    tiny = shrink(found.config, lambda config: found.build("cpu", config=config))
    assert tiny.batch is not None and "image" in tiny.batch.modality
    assert tiny.config.yes_token_index != tiny.config.no_token_index
