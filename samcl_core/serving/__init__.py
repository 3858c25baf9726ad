"""A bank behind a request: rows of JSON values to masks, scores and chosen modules."""

from samcl_core.serving.masks import mask_from_png, mask_to_png
from samcl_core.serving.requests import Request, prompt_in_pixels, read_request
from samcl_core.serving.service import BackboneReference, Service

__all__ = [
    "BackboneReference",
    "Request",
    "Service",
    "mask_from_png",
    "mask_to_png",
    "prompt_in_pixels",
    "read_request",
]
