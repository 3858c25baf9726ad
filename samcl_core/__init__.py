"""samcl core: continual learning for Segment Anything, without any orchestration."""

__all__ = ["__version__"]

__version__ = "0.1.0"
