"""samcl core: continual learning for Segment Anything, without any orchestration."""
