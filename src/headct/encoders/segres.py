"""CT-FM's convolutional networks (arXiv 2501.09001): MONAI's own classes behind our signature.

MONAI is imported when a network is built, not before: that alone takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from headct.encoders.features import Encoder, Features, Lattice
from headct.failure import Misuse


@dataclass(frozen=True, kw_only=True)
class SegResSettings:
    """The shape of a `SegResEncoder`; the defaults are CT-FM's. Raises Misuse for impossible numbers."""

    channels: int = 1
    init_filters: int = 32  # features of the first level; each further level has twice as many, at half the resolution
    blocks_down: tuple[int, ...] = (1, 2, 2, 4, 4)  # residual blocks of each level

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks_down", tuple(self.blocks_down))
        for name in ("channels", "init_filters"):
            if getattr(self, name) < 1:
                raise Misuse(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.blocks_down or min(self.blocks_down) < 1:
            raise Misuse(f"blocks_down must be positive whole numbers, got {self.blocks_down}")

    @property
    def width(self) -> int:
        """Features of the last level."""
        return self.init_filters * 2 ** (len(self.blocks_down) - 1)


class SegResEncoder(Encoder):
    """Residual blocks with BatchNorm on ever coarser levels; the scan vector is the spatial mean of the last one.

    X, Y, Z are the axes of the recipe that the weights were trained with, for CT-FM superior, posterior, left. In
    training mode BatchNorm takes its statistics from the batch: vectors are meant to be made in evaluation mode.
    """

    settings: SegResSettings

    def __init__(self, settings: SegResSettings) -> None:
        from monai.networks.nets.segresnet_ds import SegResEncoder as Network

        super().__init__()
        self.settings = settings
        self.network: nn.Module = Network(
            spatial_dims=3,
            init_filters=settings.init_filters,
            in_channels=settings.channels,
            blocks_down=settings.blocks_down,
        )

    @property
    def channels(self) -> int:
        return self.settings.channels

    @property
    def scan_width(self) -> int:
        return self.settings.width

    @property
    def example_shape(self) -> tuple[int, int, int]:
        stride = 2 ** (len(self.settings.blocks_down) - 1)
        return 2 * stride, 3 * stride, 2 * stride

    def lattice(self, shape: tuple[int, int, int]) -> Lattice:
        stride = float(2 ** (len(self.settings.blocks_down) - 1))
        return Lattice(first=(0.0, 0.0, 0.0), step=(stride, stride, stride))

    def levels(self, x: Tensor) -> list[Tensor]:
        """The maps of all levels, from x (B, C, X, Y, Z): level i has 2^i as many features and ceil(n / 2^i) places."""
        maps: list[Tensor] = self.network(x)
        return maps

    def forward(self, x: Tensor, spacing_mm: Tensor | None = None) -> Features:
        """Features of x, (B, C, X, Y, Z); this encoder counts in voxels and does not use the spacing."""
        last = self.levels(x)[-1]
        nx, ny, nz = last.shape[2:]
        tokens = last.flatten(2).transpose(1, 2)
        return Features(scan=tokens.mean(dim=1), tokens=tokens, grid=(nx, ny, nz))


def segmentation_network(settings: SegResSettings, *, outputs: int, depths: int = 1) -> nn.Module:
    """CT-FM's segmentation network, MONAI's SegResNetDS around the same encoder, with random weights.

    `outputs` counts classes with the background. In training mode it gives logits at `depths` resolutions, the finest
    first, in evaluation mode the finest alone. Sizes of the input must be divisible by 16 with five levels.
    """
    from monai.networks.nets.segresnet_ds import SegResNetDS

    network: Any = SegResNetDS(
        spatial_dims=3,
        init_filters=settings.init_filters,
        in_channels=settings.channels,
        out_channels=outputs,
        blocks_down=settings.blocks_down,
        dsdepth=depths,
    )
    return network
