"""Set-ups of training frameworks in the styles in which people write them, each with its broken
twins: what is put in the place of what, and which rule has to say so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "set_ups"
FORMATS = ("llamafactory", "axolotl", "trl", "ms_swift")


@dataclass(frozen=True)
class Twin:
    """A mistake in a set-up."""

    #: Below ``tests/set_ups``; the file that the mistake is in.
    name: str
    old: str
    new: str
    rule: str
    #: What is given as MODEL, where that is another file.
    given: str = ""
    #: Whether the fix changes what is learnt, so that it is asked for with ``--unsafe-fixes``.
    unsafe: bool = False
    #: On whose line the finding is, where that is not the line of the mistake: the key of a list,
    #: the setting that another one is missing for.
    at: str = ""

    @property
    def id(self) -> str:
        return f"{Path(self.name).with_suffix('')}-{self.rule}"

    def copy(self, folder: Path, *, broken: bool) -> Path:
        """The set-up in a folder of its own; the path of what is given as MODEL."""
        place = FOLDER / self.name
        for file in place.parent.iterdir():
            if file.is_file() and (file.name[:2] == place.name[:2] or file.suffix == ".json"):
                folder.joinpath(file.name).write_bytes(file.read_bytes())
        if broken:
            file = folder / place.name
            data = file.read_bytes()
            assert data.count(self.old.encode()) == 1, "the mistake is at one place"
            file.write_bytes(data.replace(self.old.encode(), self.new.encode()))
        return folder / (self.given or place.name)

    def line(self, folder: Path) -> int:
        """Where the mistake begins."""
        text = (folder / Path(self.name).name).read_bytes().decode("utf-8-sig")
        return text[: text.index(self.at or self.new)].count("\n") + 1


TWINS = (
    Twin("llamafactory/01_sections.yaml", "lora_target: all", "lora_target: qkv", "LD201"),
    Twin("llamafactory/02_quoted.yaml", "'lora_target': \"q_proj,v_proj\"",
         "'lora_target': \"q_prj,v_prj\"", "LD201"),
    Twin("llamafactory/03_crlf.yaml", "lora_target: q_proj,k_proj,v_proj,o_proj",
         "lora_target: query,value", "LD201"),
    Twin("llamafactory/04_object.json", '"lora_target": "q_proj,v_proj"',
         '"lora_target": "q_prj,v_prj"', "LD201"),
    Twin("llamafactory/05_anchors.yaml", "lora_target: q_proj,v_proj", "lora_targt: q_proj,v_proj",
         "LD530"),
    Twin("llamafactory/06_flow.yaml", 'lora_target: "q_proj,v_proj"',
         'lora_target: "q_prj,v_prj"', "LD201"),
    Twin("llamafactory/07_saved_modules.yaml", "additional_target: embed_tokens,lm_head",
         "additional_target: embed_token,lm_head", "LD209", unsafe=True),
    Twin("llamafactory/08_options.sh", "q_proj,v_proj", "q_prj,v_prj", "LD201"),
    Twin("llamafactory/09_named.yaml", "lora_target: q_proj,v_proj", "lora_target: q_prj,v_prj",
         "LD201", given="09_names_a_file.sh"),
    Twin("llamafactory/10_variables.sh", "--lora_rank $RANK", "--lora_rnk $RANK", "LD530"),
    Twin("llamafactory/11_non_ascii.yaml", "neat_packing: true", "neat_packing: false", "LD532",
         unsafe=True, at='packing: true'),
    Twin("llamafactory/12_no_last_line_end.yaml", "lora_target: q_proj,v_proj",
         "lora_target: q_prj,v_prj", "LD201"),
    Twin("axolotl/01_example.yml", "lora_dropout: 0.05", "lora_dropuot: 0.05", "LD530",
         unsafe=True),
    Twin("axolotl/02_linear.yml", "adapter: lora\n", "", "LD531", unsafe=True),
    Twin("axolotl/03_flow_list.yml", "lora_target_modules: [q_proj, v_proj]",
         "lora_target_modules: [q_prj, v_prj]", "LD201"),
    Twin("axolotl/04_crlf.yml", "  - q_proj", "  - q_prj", "LD202", at='lora_target_modules'),
    Twin("axolotl/05_anchor.yml", "lora_target_modules: [q_proj, v_proj]",
         "lora_target_moduls: [q_proj, v_proj]", "LD530", unsafe=True),
    Twin("axolotl/06_saved.yml", "  - embed_tokens", "  - embed_token", "LD209", unsafe=True,
         at="lora_modules_to_save"),
    Twin("axolotl/07_indented_list.yml", "- q_proj\n- v_proj", "- q_prj\n- v_prj", "LD201",
         at="lora_target_modules"),
    Twin("axolotl/08_quotes.yml", '"adapter": lora', '"adapter": qlora', "LD533"),
    Twin("axolotl/09_regex.yml", "(q|v)_proj", "(q|v)_prj", "LD201"),
    Twin("axolotl/10_named.yml", "[q_proj, v_proj]", "[q_prj, v_prj]", "LD201",
         given="10_run.sh"),
    Twin("axolotl/11_packed.yml", "sdp_attention: true", "sdp_attention: false", "LD532",
         unsafe=True, at='sample_packing'),
    Twin("axolotl/12_spaces.yml", "lora_alpha:   32", "lora_alfa:   32", "LD530", unsafe=True),
    Twin("trl/01_plain.yaml", "use_peft: true\n", "", "LD531", unsafe=True),
    Twin("trl/02_block.yaml", "  - q_proj\n", "  - q_prj\n", "LD202", at='lora_target_modules'),
    Twin("trl/03_all_linear.yaml", "all-linear", "all_linear", "LD201"),
    Twin("trl/04_regex.yaml", "(q|v)_proj", "(q|v)_prj", "LD201"),
    Twin("trl/05_crlf.yaml", "[q_proj, v_proj]", "[q_prj, v_prj]", "LD201"),
    Twin("trl/06_env.yaml", "use_peft: true", "use_pft: true", "LD530", unsafe=True),
    Twin("trl/07_saved.yaml", '"embed_tokens"', '"embed_token"', "LD209", unsafe=True),
    Twin("trl/08_command.sh", "--use_peft \\\n    ", "", "LD531", unsafe=True),
    Twin("trl/09_script.sh", "q_proj v_proj", "q_prj v_prj", "LD201"),
    Twin("trl/10_named.yaml", "[q_proj, v_proj]", "[q_prj, v_prj]", "LD201",
         given="10_config_and_flags.sh"),
    Twin("trl/11_no_last_line_end.yaml", "lora_alpha: 32", "lora_alfa: 32", "LD530", unsafe=True),
    Twin("trl/12_quoted.yaml", "[\"q_proj\", 'v_proj']", "['q_proj']", "LD201"),
    Twin("ms_swift/01_readme.sh", "--tuner_type lora", "--train_type lora", "LD530"),
    Twin("ms_swift/02_names.sh", "q_proj v_proj", "q_prj v_prj", "LD201"),
    Twin("ms_swift/03_regex.sh", "(q|v)_proj", "(q|v)_prj", "LD201"),
    Twin("ms_swift/04_one_line.sh", "q_proj v_proj", "q_prj v_proj", "LD202"),
    Twin("ms_swift/05_crlf.sh", "q_proj v_proj", "q_prj v_prj", "LD201"),
    Twin("ms_swift/06_variables.sh", "--lora_rank 8", "--lora_rank 8 --quant_method bnb", "LD533"),
    Twin("ms_swift/07_set_up.yaml", "[q_proj, v_proj]", "[q_prj, v_prj]", "LD201"),
    Twin("ms_swift/08_set_up.json", '"lora_rank": 8', '"lora_rnk": 8', "LD530"),
    Twin("ms_swift/09_named.yaml", "[q_proj, v_proj]", "[q_prj, v_prj]", "LD201",
         given="09_names_a_file.sh"),
    Twin("ms_swift/10_saved.sh", "embed_tokens lm_head", "embed_token lm_head", "LD209",
         unsafe=True),
    Twin("ms_swift/11_comments.sh", '"q_proj" "v_proj"', '"q_prj" "v_prj"', "LD201"),
    Twin("ms_swift/12_env_block.yaml", "- q_proj\n", "- q_prj\n", "LD202", at='target_modules'),
)  # fmt: skip
