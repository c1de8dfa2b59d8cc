"""The decoder: plain modules for one device. This room is the specification every faster path is held to."""

from octavo.models.decoder import Decoder, DecoderOutput
from octavo.models.packing import Packing

__all__ = ["Decoder", "DecoderOutput", "Packing"]
