"""What AugModules do to one batch: a prompt-fed low-rank addition to each adapted attention, and to the neck."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from samcl_core.adapters.augmodule.config import AugModuleConfig
from samcl_core.adapters.augmodule.heatmap import pool_heatmap, render_heatmap
from samcl_core.adapters.rows import add_linear, linear, norm
from samcl_core.backbones.base import AdapterSite, Hooks, Prompts
from samcl_core.backbones.blocks import split_windows

__all__ = ["AugModuleHooks"]


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
        features = F.relu(norm(linear(heat, *self._layer("extra.layer")), *self._layer("extra.norm")))
        self._features: Tensor = features.reshape(-1, site.grid, site.grid, config.rank)
        self._windowed: dict[int, Tensor] = {}

    def attention(self, block: int, x: Tensor, out: Tensor) -> Tensor:
        """``out`` plus the module's part; shapes as in ``SuffixHooks.attention``."""
        position = self._order[block]
        heat = self._heat(self._site.windows[position])
        low = linear(x.reshape(self._batch, -1, x.shape[-1]), *self._layer("A"))
        low = norm(low, *self._layer(f"norm1_{position:03d}"))
        warm = norm(heat.flatten(1, 2), *self._layer(f"norm2_{position:03d}")).reshape(heat.shape)
        # A shrunk map is one window's worth of features, the same for all windows: it broadcasts.
        low = (low.reshape(self._batch, -1, heat.shape[2], heat.shape[3]) + warm).flatten(1, 2)
        base = out.reshape(self._batch, -1, out.shape[-1])
        return add_linear(base, low, *self._layer(f"B_{position:03d}")).reshape(out.shape)

    def neck_input(self, x: Tensor) -> Tensor:
        """(B, G, G, C) tokens before the neck, plus the prompt."""
        if self._site.neck_dim is None:
            return x
        return add_linear(x.flatten(1, 2), self._prompt(), *self._layer("extra.upward")).reshape(x.shape)

    def neck_output(self, x: Tensor) -> Tensor:
        """(B, neck_dim, G, G) features after the neck, plus the prompt."""
        if self._site.neck_dim is None:
            return x
        base = x.flatten(2).transpose(1, 2)
        return add_linear(base, self._prompt(), *self._layer("extra.upward_")).transpose(1, 2).reshape(x.shape)

    def _prompt(self) -> Tensor:
        """(B, G * G, rank) heat features as the neck sees them."""
        features = self._features if self._config.neck_axes == "image" else self._features.transpose(1, 2)
        return features.flatten(1, 2)

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

    def _layer(self, name: str) -> tuple[Tensor, Tensor]:
        return self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
