"""SAM-Adapter: hints from patch embedding and high frequencies before every adapted block."""

from samcl_core.adapters.base import register_adapter
from samcl_core.adapters.sam_adapter.build import SamAdapter, build_sam_adapter
from samcl_core.adapters.sam_adapter.config import SamAdapterConfig
from samcl_core.adapters.sam_adapter.layer import SAM_ADAPTER_PLAN, SamAdapterHooks

__all__ = ["SAM_ADAPTER_PLAN", "SamAdapter", "SamAdapterConfig", "SamAdapterHooks", "build_sam_adapter"]

register_adapter(SamAdapter.kind, build_sam_adapter)
