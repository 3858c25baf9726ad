"""From images and prompts to masks, mixed domains in one batch."""

from samcl_core.inference.segmenter import Prediction, Prompt, Routing, Segmenter

__all__ = ["Prediction", "Prompt", "Routing", "Segmenter"]
