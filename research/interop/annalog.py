"""ANNalog (Dai et al. 2025): SMILES to SMILES of analogous molecules, an encoder-decoder of Vaswani et al. 2017 with
learned positions and a token table for each side.

Shapes and rates are those of `model_handler.py` in the package annalog 1.0.6. Dropout between the two layers of its
MLPs, which matters in training alone, is left out.
"""

from dataclasses import dataclass
from pathlib import Path

import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers

from research.attention.positions import Learned
from research.data.pretrained import Pretrained, TokenizerFile
from research.interop.architecture import Architecture, Settings
from research.interop.hub import Checkpoint
from research.interop.pickled import Pickled, plain
from research.interop.tables import TRANSPOSED, Row, row
from research.interop.weights import WeightsError
from research.models.config import EmbeddingConfig, StackConfig
from research.models.families import EncoderDecoderConfig

STACK = StackConfig(
    layers=3,
    width=256,
    heads=8,
    hidden=512,
    activation="relu",
    norm="layer",
    placement="post",
    epsilon=1e-5,
    use_bias=True,
    positions=Learned(length=102, scale=1.0),
    dropout=0.1,
    attention_dropout=0.1,
)
WEIGHTS, VOCABULARY = "Lev_extended.pt", "stereo_experiment_vocab_ttf.pkl"
SPECIALS = {"pad": "<pad>", "bos": "<sos>", "eos": "<eos>"}
# Atoms in brackets, rings of two digits, the two elements of two letters, else single characters.
TOKEN = r"\[[^\]]*\]|%\d{2}|Br|Cl|[\s\S]"


@dataclass(frozen=True, kw_only=True)
class FromSMILES(Pretrained):
    """A vocabulary of the parts of SMILES, as ANNalog's package has it: a pickle of {"itos": [token], ...}.

    Attributes:
      path: of the pickle, which is read without running what is in it; `~` is your home.
    """

    path: str
    before: tuple[str, ...] = ("bos",)
    after: tuple[str, ...] = ("eos",)

    @property
    def place(self) -> str:
        """The path."""
        return self.path

    def files(self, data_dir: str | Path | None) -> dict[str, TokenizerFile]:
        """The vocabulary as a `tokenizer.json`.

        Raises:
          WeightsError: the file is missing, or is no such pickle.
        """
        tokens = vocabulary(Path(self.path).expanduser())
        tokenizer = hf.Tokenizer(
            models.WordLevel(vocab={token: i for i, token in enumerate(tokens)}, unk_token="<unk>")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Split(hf.Regex(TOKEN), behavior="isolated")
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens(["<unk>", *SPECIALS.values()])
        return {"tokenizer.json": TokenizerFile(self.path, tokenizer.to_str().encode(), SPECIALS)}


def open_folder(folder: str | Path) -> Checkpoint:
    """The published model in a folder with its two files; no array is read yet.

    Raises:
      WeightsError: a file is missing or damaged, or holds more than it should.
    """
    folder = Path(folder).expanduser()
    path = folder / VOCABULARY
    config = ANNALOG.model(Settings({"vocab_size": len(vocabulary(path))}, str(path)))
    return Checkpoint(config, ANNALOG, Pickled(folder / WEIGHTS), FromSMILES(path=str(path)))


def model(settings: Settings) -> EncoderDecoderConfig:
    """The configuration, whose one setting is the number of tokens."""
    return EncoderDecoderConfig(
        encoder=STACK,
        decoder=STACK,
        tied_embeddings=False,
        embedding=EmbeddingConfig(rows=settings.count("vocab_size"), bias=True),
        shared_embeddings=False,
    )


def vocabulary(path: Path) -> list[str]:
    """The tokens by id.

    Raises:
      WeightsError: the file is missing, or is no pickle of them.
    """
    held = plain(path)
    tokens = held.get("itos") if isinstance(held, dict) else None
    needed = {"<unk>", *SPECIALS.values()}
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise WeightsError(
            f"{path}: it has no list of tokens 'itos', expected a vocabulary; replace the file"
        )
    if len(set(tokens)) < len(tokens) or not needed <= set(tokens):
        raise WeightsError(
            f"{path}: its {len(tokens)} tokens repeat or lack one of {', '.join(sorted(needed))}; replace the file"
        )
    return tokens


def rows(config: EncoderDecoderConfig) -> list[Row]:
    """Which arrays hold which parameters."""
    table = [
        row("encoder.tok_embedding.weight", "source_embedding/table"),
        row("decoder.tok_embedding.weight", "embedding/table"),
        row("decoder.fc_out.weight", "head/kernel", form=TRANSPOSED),
        row("decoder.fc_out.bias", "finish/bias"),
    ]
    inside = {"self_attention": ("attention", "self_attn_layer_norm"), "": ("mlp", "ff_layer_norm")}
    for side, parts in (
        ("encoder", inside),
        ("decoder", {**inside, "encoder_attention": ("cross", "enc_attn_layer_norm")}),
    ):
        table.append(row(f"{side}.pos_embedding.weight", f"{side}/positions/0/table"))
        theirs, ours = f"{side}.layers.{{layer}}", f"{side}/blocks/{{layer}}"
        for attention, (own, norm) in parts.items():
            table += [row(f"{theirs}.{norm}.{a}", f"{ours}/{own}/norm/{b}") for a, b in _NORM]
            for layer, name in _ATTENTION if attention else _MLP:
                other = f"{theirs}.{attention or 'positionwise_feedforward'}.{layer}"
                table += [row(f"{other}.weight", f"{ours}/{own}/inner/{name}/kernel", form=TRANSPOSED)]
                table += [row(f"{other}.bias", f"{ours}/{own}/inner/{name}/bias")]
    return table


_NORM = (("weight", "scale"), ("bias", "bias"))
_ATTENTION = (("fc_q", "query"), ("fc_k", "key"), ("fc_v", "value"), ("fc_o", "output"))
_MLP = (("fc_1", "up"), ("fc_2", "down"))

ANNALOG = Architecture(name="annalog", model=model, rows=rows, family=EncoderDecoderConfig, language="SMILES")
