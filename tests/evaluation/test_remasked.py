"""The loss of a model's parameters under another mask."""

import dataclasses

import jax
import pytest

from research.attention.masks import Causal, Full, Prefix, Window
from research.data.documents import Document
from research.data.layouts import Concatenate, Split
from research.data.objectives import PrefixLM
from research.data.pipeline import Data
from research.evaluation.likelihood import Likelihood
from research.evaluation.remasked import UnderMask
from research.evaluation.trained import Trained
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig, EncoderDecoderConfig
from research.training.optimizers import AdamW
from research.training.step import Trainer

STACK = StackConfig(layers=2, width=16, heads=2, hidden=16)


@dataclasses.dataclass(frozen=True)
class Counting:
    """Lines of numbers."""

    def documents(self, data_dir=None):
        return tuple(
            Document(str(i), "".join(f"{i} times {n} is {i * n}. " for n in range(20))) for i in range(30)
        )


def trained(model, layout):
    data = Data(
        corpus=Counting(),
        objective=PrefixLM(),
        layout=layout,
        window=64,
        batch=8,
        held_out=16,
        near_duplicates=None,
    )
    text = data.load()
    trainer = Trainer(model, vocab=text.tokenizer.vocab_size, optimizer=AdamW(), steps=10)
    return Trained(trainer=trainer, params=trainer.initial(jax.random.key(0)).params, text=text, seed=0)


def test_parameters_are_scored_as_a_model_with_that_mask_would_be():
    """Under its own mask the held-out loss, and under another that of a model that was built with it."""
    masks = (Causal(), Prefix(), Window(4))
    own = {mask: trained(DecoderConfig(stack=STACK, mask=mask), Concatenate()) for mask in masks}
    causal = own[Causal()]
    found = {mask: UnderMask(mask=mask)(causal)["loss"] for mask in masks}
    assert len(set(found.values())) == len(masks)
    for mask in masks:
        built = dataclasses.replace(own[mask], params=causal.params)
        assert found[mask] == pytest.approx(Likelihood()(built)["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        (EncoderDecoderConfig(encoder=STACK, decoder=STACK), Split()),
        (
            DecoderConfig(stack=dataclasses.replace(STACK, pattern=(BlockSpec(), BlockSpec(mask=Window(4))))),
            Concatenate(),
        ),
    ],
    ids=["encoder-decoder", "blocks with masks"],
)
def test_what_has_not_one_mask_is_refused(model, layout):
    with pytest.raises(
        ValueError, match=r"under another mask, Prefix\(\): expected a single stack whose blocks"
    ):
        UnderMask(mask=Prefix())(trained(model, layout))


def test_a_mask_that_shows_the_targets_is_refused():
    with pytest.raises(ValueError, match=r"^UnderMask.mask = Full\(\) lets a token see the targets"):
        UnderMask(mask=Full())(trained(DecoderConfig(stack=STACK), Concatenate()))
