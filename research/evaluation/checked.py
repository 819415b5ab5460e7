"""Evaluations that can tell from the config of a model alone that they do not go with it."""

from typing import Protocol, runtime_checkable

from research.models.families import DecoderConfig, EncoderConfig, FamilyConfig


@runtime_checkable
class Checked(Protocol):
    """An evaluation that is refused before the model is trained, not after."""

    def check(self, model: FamilyConfig) -> None:
        """ValueError, in a line, where models of that config cannot be measured."""
        ...


def require_decoder(model: FamilyConfig, evaluation: str) -> DecoderConfig:
    """The config of a single stack that predicts a token from those before it alone.

    Raises:
      ValueError: the model also reads a source, or what comes later; `evaluation` is of what.
    """
    plain = isinstance(model, DecoderConfig) and not isinstance(model, EncoderConfig)
    if not plain or not all(spec.visible(model.mask).extendable for spec in model.stack.pattern):
        raise ValueError(
            f"{evaluation} scores each token from those before it, but {type(model).__name__.removesuffix('Config')} "
            "also reads a source or what comes later; expected a decoder: leave the evaluation out"
        )
    return model


def require_no_memory(model: DecoderConfig, alone: str) -> None:
    """ValueError where the model has a memory; `alone`: what it is that begins anew each time."""
    if model.stack.memory is not None:
        raise ValueError(
            f"{alone}, but StackConfig.memory = {model.stack.memory} reads in segments and carries one on to the next; "
            "expected None: leave the evaluation out"
        )


def require_positions(model: DecoderConfig, most: int, lengths: str) -> None:
    """ValueError where positions of the model end before `most`; `lengths`: what asks for so many, `name = value`."""
    for spec in model.stack.pattern:
        scheme = spec.positions or model.stack.positions
        if scheme.limit is not None and scheme.limit < most:
            raise ValueError(
                f"{lengths}: windows of up to {most} tokens, but {type(scheme).__name__} positions of the model end at "
                f"{scheme.limit}; leave out lengths above {scheme.limit}"
            )
