"""The families by name: what a config may build."""

from research.models.cache import Cache, Output
from research.models.decoder import Decoder, DecoderConfig, Encoder, EncoderConfig
from research.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig

FamilyConfig = DecoderConfig | EncoderDecoderConfig
Model = Decoder | EncoderDecoder

__all__ = [
    "Cache",
    "Decoder",
    "DecoderConfig",
    "Encoder",
    "EncoderConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "FamilyConfig",
    "Model",
    "Output",
]
