"""What AugModules do to one batch: a prompt-fed low-rank addition to each adapted attention, and to the neck."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from samcl_core.adapters.augmodule.config import AugModuleConfig
from samcl_core.adapters.augmodule.heatmap import pool_heatmap, render_heatmap
from samcl_core.backbones.base import AdapterSite, Hooks, Prompts
from samcl_core.backbones.blocks import split_windows

__all__ = ["AugModuleHooks"]

_EPS = 1e-5


class AugModuleHooks(Hooks):
    """``SuffixHooks`` of one batch (SAMCL, arXiv 2412.05012, section "AugModule").

    With the heat features P = ReLU(LN(Linear(heat-map))), in adapted block i::

        attention'(x) = attention(x) + B_i(LN1_i(A x) + LN2_i(P))

    and at SAM's neck ``neck(x + U1(P)) + U2(P)``.

    Args:
        tensors: one module's tensors for all, or (B, ...) one module's for each sample.
        prompts: the batch's prompts, on the device of ``tensors``.
        site: where the module acts.
        config: its settings.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], prompts: Prompts, site: AdapterSite, config: AugModuleConfig
    ) -> None:
        self._tensors = tensors
        self._site = site
        self._config = config
        self._batch = len(prompts)
        self._order = {block: position for position, block in enumerate(site.blocks)}
        heat = render_heatmap(prompts.points, prompts.labels, signed=config.point_labels == "signed")
        heat = pool_heatmap(heat, site.grid).to(tensors["A.weight"].dtype)
        heat = heat.flatten(1)[..., None].expand(-1, -1, config.rank)
        features = F.relu(self._norm("extra.norm", self._linear("extra.layer", heat)))
        self._features: Tensor = features.reshape(-1, site.grid, site.grid, config.rank)
        self._windowed: dict[int, Tensor] = {}

    def attention(self, block: int, x: Tensor, out: Tensor) -> Tensor:
        """``out`` plus the module's part; shapes as in ``SuffixHooks.attention``."""
        position = self._order[block]
        heat = self._heat(self._site.windows[position])
        low = self._norm(f"norm1_{position:03d}", self._linear("A", x.reshape(self._batch, -1, x.shape[-1])))
        warm = self._norm(f"norm2_{position:03d}", heat.flatten(1, 2)).reshape(heat.shape)
        # A shrunk map is one window's worth of features, the same for all windows: it broadcasts.
        low = low.reshape(self._batch, -1, heat.shape[2], heat.shape[3]) + warm
        return out + self._linear(f"B_{position:03d}", low.flatten(1, 2)).reshape(out.shape)

    def neck_input(self, x: Tensor) -> Tensor:
        """(B, G, G, C) tokens before the neck, plus the prompt."""
        return x if self._site.neck_dim is None else x + self._upward("extra.upward")

    def neck_output(self, x: Tensor) -> Tensor:
        """(B, neck_dim, G, G) features after the neck, plus the prompt."""
        return x if self._site.neck_dim is None else x + self._upward("extra.upward_").permute(0, 3, 1, 2)

    def _upward(self, name: str) -> Tensor:
        features = self._features if self._config.neck_axes == "image" else self._features.transpose(1, 2)
        return self._linear(name, features.flatten(1, 2)).reshape(*features.shape[:3], -1)

    def _heat(self, window: int) -> Tensor:
        """(B, windows or 1, tokens, rank) heat features as a block with this window sees them."""
        if window not in self._windowed:
            self._windowed[window] = self._cut(window)
        return self._windowed[window]

    def _cut(self, window: int) -> Tensor:
        if window == 0:
            return self._features.flatten(1, 2)[:, None]
        if self._config.window_heatmap == "shrink":
            nearest = torch.arange(window, device=self._features.device) * self._site.grid // window
            return self._features[:, nearest][:, :, nearest].flatten(1, 2)[:, None]
        return split_windows(self._features, window).reshape(self._batch, -1, window * window, self._config.rank)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        """(B, T, in) to (B, T, out)."""
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        if weight.dim() == 2:
            return F.linear(x, weight, bias)
        return torch.matmul(x, weight.transpose(1, 2)) + bias[:, None]

    def _norm(self, name: str, x: Tensor) -> Tensor:
        """Layer norm of (B, T, rank) over the last axis."""
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        if weight.dim() == 1:
            return F.layer_norm(x, list(weight.shape), weight, bias, _EPS)
        return F.layer_norm(x, list(weight.shape[1:]), eps=_EPS) * weight[:, None] + bias[:, None]
