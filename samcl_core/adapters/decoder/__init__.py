"""Decoder tuning: the mask decoder's own weights, one set per domain."""

from samcl_core.adapters.base import register_adapter
from samcl_core.adapters.decoder.build import DecoderTuning, build_decoder_tuning
from samcl_core.adapters.decoder.layer import DECODER_PLAN, DecoderHooks

__all__ = ["DECODER_PLAN", "DecoderHooks", "DecoderTuning", "build_decoder_tuning"]

register_adapter(DecoderTuning.kind, build_decoder_tuning)
