"""What is published of the sizes of the named models in configs/models, in the order in which they are shown."""

import dataclasses
import re

UNITS = {"": 1, "M": 10**6, "B": 10**9}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A published number of parameters.

    Attributes:
      count: as it is written, "124,439,808" or rounded "12,850M"; None: there is none.
      source: who says so. A class of transformers is counted in tests/interop/test_counts.py.
      vocab: rows of the token table that it holds for, where the config has as many as the tokenizer has ids.
      apart: parameters of the published model that ours leaves out, with what they are.
      differs: why the count of ours is another, where it is.
    """

    count: str | None
    source: str
    vocab: int | None = None
    apart: tuple[int, str] = (0, "")
    differs: str = ""

    def __post_init__(self):
        if self.count is not None and not re.fullmatch(r"[\d,]+|[\d,.]+[MB]", self.count):
            raise ValueError(
                f"Published.count = {self.count!r}: expected digits, or digits and M or B for a rounded count"
            )

    @property
    def exact(self) -> bool:
        """Whether it is published to the last parameter."""
        return self.count is not None and self.count[-1].isdigit()

    def agrees(self, counted: int) -> bool:
        """Whether a count, with what is left out, is the published one, or rounds to it; zeros at its end may be
        rounded away.
        """
        if self.count is None:
            return False
        digits, unit = (self.count, "") if self.exact else (self.count[:-1], self.count[-1])
        whole, _, fraction = digits.replace(",", "").partition(".")
        value = int(whole + fraction)
        step = UNITS[unit] / 10 ** len(fraction)
        counted += self.apart[0]
        if self.exact:
            return counted == value
        zeros = 0 if fraction else len(whole) - len(whole.rstrip("0"))
        return abs(counted - value * step) <= step * 10**zeros / 2


def _same(names: str, source: str) -> dict[str, Published]:
    """Models of one source, "name count" each."""
    pairs = (line.split() for line in names.strip().splitlines())
    return {name: Published(count=count, source=source) for name, count in pairs}


_NEXT_SENTENCE = "the classifier of next sentences, 2 x {0} + 2"
_COMPRESSIVE = Published(count=None, source="Rae et al. 2020 give none")

PUBLISHED: dict[str, Published] = {
    **_same(
        """
        gpt2 124,439,808
        gpt2_medium 354,823,168
        gpt2_large 774,030,080
        gpt2_xl 1,557,611,200
        """,
        "transformers, GPT2LMHeadModel",
    ),
    **_same(
        """
        gpt3_small 125M
        gpt3_medium 356M
        gpt3_large 760M
        """,
        "Brown et al. 2020, table D.1",
    ),
    "gpt3_xl": Published(
        count="1,320M",
        source="Brown et al. 2020, table D.1",
        differs="table 2.1 gives 24 heads of 128 for a width of 2048; with 16 heads of 128 it would be 1,316M",
    ),
    **_same(
        """
        gpt3_2_7b 2,650M
        gpt3_6_7b 6,660M
        """,
        "Brown et al. 2020, table D.1",
    ),
    "gpt3_13b": Published(
        count="12,850M",
        source="Brown et al. 2020, table D.1",
        differs="table 2.1 gives a width of 5140 for 40 heads of 128; with a width of 5120 it would be 12,853M",
    ),
    "gpt3_175b": Published(count="174,600M", source="Brown et al. 2020, table D.1"),
    **_same(
        """
        llama_7b 6,738,415,616
        llama_13b 13,015,864,320
        llama_33b 32,528,943,616
        llama_65b 65,285,660,672
        llama2_7b 6,738,415,616
        llama2_13b 13,015,864,320
        llama2_70b 68,976,648,192
        llama3_8b 8,030,261,248
        llama3_70b 70,553,706,496
        llama3_1_8b 8,030,261,248
        llama3_1_70b 70,553,706,496
        llama3_1_405b 405,853,388,800
        smollm2_135m 134,515,008
        """,
        "transformers, LlamaForCausalLM",
    ),
    "mistral_7b": Published(count="7,241,732,096", source="transformers, MistralForCausalLM"),
    "gemma2_2b": Published(
        count="2,614,636,800", source="Gemma Team 2024, table 2: 590,118,912 + 2,024,517,888"
    ),
    "bert_base": Published(
        count="110,106,428",
        source="transformers, BertForPreTraining",
        apart=(2 * 768 + 2, _NEXT_SENTENCE.format(768)),
    ),
    "bert_large": Published(
        count="336,226,108",
        source="transformers, BertForPreTraining",
        apart=(2 * 1024 + 2, _NEXT_SENTENCE.format(1024)),
    ),
    "minilm_l6": Published(count="22,713,216", source="transformers, BertModel"),
    **_same(
        """
        t5_small 60,506,624
        t5_base 222,903,552
        t5_large 737,668,096
        t5_3b 2,851,598,336
        t5_11b 11,307,321,344
        t5_v1_1_small 76,961,152
        t5_v1_1_base 247,577,856
        t5_v1_1_large 783,150,080
        t5_v1_1_xl 2,849,757,184
        t5_v1_1_xxl 11,135,332,352
        """,
        "transformers, T5ForConditionalGeneration",
    ),
    "ul2_20b": Published(count="20B", source="Tay et al. 2022"),
    "glm_10b": Published(count="10B", source="Du et al. 2022, section 3"),
    "chatglm_6b": Published(
        count="6,173,286,400",
        source="peft's count in github.com/shibing624/textgen/issues/40, less its adapters",
    ),
    "chatglm2_6b": Published(
        count="6,243,584,000",
        source="peft's count in github.com/hiyouga/ChatGLM-Efficient-Tuning/issues/396",
    ),
    "transformer_xl_wt103_base": Published(count="151M", source="Dai et al. 2019, table 1"),
    "transformer_xl_wt103_large": Published(
        count="257M",
        source="Dai et al. 2019, table 1",
        differs="the released script has 18 layers, which make 285M; 16 of them would make 257.9M",
    ),
    "transformer_xl_enwik8_12l": Published(count="41M", source="Dai et al. 2019, table 2", vocab=204),
    "transformer_xl_enwik8_18l": Published(count="88M", source="Dai et al. 2019, table 2", vocab=204),
    "transformer_xl_enwik8_24l": Published(count="277M", source="Dai et al. 2019, table 2", vocab=204),
    "compressive_wt103": _COMPRESSIVE,
    "compressive_enwik8": dataclasses.replace(_COMPRESSIVE, vocab=204),
    "compressive_pg19": _COMPRESSIVE,
    "annalog": Published(count="4,051,259", source="the released weights, counted", vocab=59),
}
