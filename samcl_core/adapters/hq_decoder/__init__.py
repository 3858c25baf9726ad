"""HQ-SAM's additions to SAM's mask decoder (arXiv 2306.01567), the adapter of MoDA (arXiv 2412.06418)."""

from samcl_core.adapters.base import register_adapter
from samcl_core.adapters.hq_decoder.build import HqDecoder, build_hq_decoder
from samcl_core.adapters.hq_decoder.config import HqDecoderConfig
from samcl_core.adapters.hq_decoder.layer import HqDecoderHooks
from samcl_core.adapters.hq_decoder.weights import read_weights

__all__ = ["HqDecoder", "HqDecoderConfig", "HqDecoderHooks", "build_hq_decoder", "read_weights"]

register_adapter(HqDecoder.kind, build_hq_decoder)
