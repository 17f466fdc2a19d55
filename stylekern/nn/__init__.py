"""Blocks of networks over the operators, as modules of [N, C, H, W] features."""

from stylekern.nn.content_gate import ContentGate
from stylekern.nn.decoder import Decoder, channel_shuffle
from stylekern.nn.gated_attention import GatedAttention
from stylekern.nn.safin_module import SAFINModule
from stylekern.nn.style_alignment import StyleAlignment

__all__ = ["ContentGate", "Decoder", "GatedAttention", "SAFINModule", "StyleAlignment", "channel_shuffle"]
