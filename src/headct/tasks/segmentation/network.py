"""Networks that draw: an encoder and a decoder, from channels to a logit for each class at each voxel.

B scans, C channels, K classes with the background, X Y Z voxels, N tokens of W features.

CT-FM's is MONAI's SegResNetDS around its own encoder (arXiv 2501.09001). Every other encoder gives tokens too coarse to
draw by; the light decoder adds what it sees of the voxels itself, so that a comparison of encoders under it is one of
what their tokens add.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct import encoders
from headct.detection.training.network import token_width
from headct.encoders import Encoder, Grid, Lattice, SegResEncoder, segmentation_network
from headct.failure import Misuse

DECODERS = ("segresnet", "light")
DEPTHS = 4
"""Resolutions at which a SegResNetDS is taught."""
LIGHT_WIDTHS = (16, 32, 64)
GROUPS = 8


class SegmentationNetwork(nn.Module, ABC):
    """What both kinds are used by.

    In training mode `forward` gives logits (B, K, ...) at several resolutions, the finest first, each half of the one
    before; in evaluation mode the finest alone. A frozen encoder gets no gradients. `held` keeps the encoder in
    evaluation mode while the rest is trained, so that its BatchNorms keep the statistics of its own training.
    """

    decoder: str
    divisor: int  # sizes of the input must be multiples of it
    held = False

    @property
    @abstractmethod
    def encoder_part(self) -> nn.Module:
        """The encoder."""

    @abstractmethod
    def forward(self, x: Tensor, spacing_mm: Tensor) -> Any:
        """Logits from x (B, C, X, Y, Z) and voxels (B, 3) in mm."""

    def train(self, mode: bool = True) -> SegmentationNetwork:
        super().train(mode)
        if self.held:
            self.encoder_part.eval()
        return self

    def hold_encoder(self, *, frozen: bool) -> None:
        """Keep its statistics, and its weights too if it is frozen."""
        self.held = True
        self.encoder_part.requires_grad_(not frozen)


class ResidualSegmenter(SegmentationNetwork):
    """SegResNetDS on a `SegResEncoder`, whose weights it takes over."""

    decoder = "segresnet"

    def __init__(self, encoder: SegResEncoder, outputs: int) -> None:
        super().__init__()
        levels = len(encoder.settings.blocks_down)
        self.divisor = 2 ** (levels - 1)
        self.network = segmentation_network(encoder.settings, outputs=outputs, depths=min(DEPTHS, levels - 1))
        self.encoder_part.load_state_dict(encoder.network.state_dict())

    @property
    def encoder_part(self) -> nn.Module:
        return self.network.get_submodule("encoder")

    def forward(self, x: Tensor, spacing_mm: Tensor) -> Any:
        return self.network(x)


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution and a norm that needs no batch; a kernel as wide as its stride keeps each place in the middle."""
    padding = kernel // 2 if stride == 1 else 0
    groups = next(groups for groups in range(min(GROUPS, after), 0, -1) if after % groups == 0)
    return nn.Sequential(
        nn.Conv3d(before, after, kernel, stride=stride, padding=padding, bias=False), nn.GroupNorm(groups, after)
    )


class _Block(nn.Module):
    """Two convolutions beside a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(width, width, 3), _convolution(width, width, 3)

    def forward(self, places: Tensor) -> Tensor:
        return F.relu(places + self.second(F.relu(self.first(places))))


class LightSegmenter(SegmentationNetwork):
    """Any encoder's tokens, and a small pyramid of convolutions over the voxels that they are spread out on.

    Level i of the pyramid halves the resolution i times. Tokens join at the coarsest one, each where the encoder's
    lattice says it lies, interpolated between; from there features go up, level by level, added to those of the way
    down.
    """

    decoder = "light"

    def __init__(self, encoder: Encoder, outputs: int, widths: Sequence[int] = LIGHT_WIDTHS) -> None:
        super().__init__()
        self.encoder = encoder
        self.divisor = 2 ** (len(widths) - 1)
        self.stem = _convolution(encoder.channels, widths[0], 3)
        self.down = nn.ModuleList(_convolution(before, after, 2, 2) for before, after in pairwise(widths))
        self.tokens = nn.Sequential(nn.LayerNorm(token_width(encoder)), nn.Linear(token_width(encoder), widths[-1]))
        self.joined = _convolution(2 * widths[-1], widths[-1], 1)
        self.blocks = nn.ModuleList(_Block(width) for width in widths)
        self.up = nn.ModuleList(nn.Conv3d(after, before, 1) for before, after in pairwise(widths))
        self.heads = nn.ModuleList(nn.Conv3d(width, outputs, 1) for width in widths)

    @property
    def encoder_part(self) -> nn.Module:
        return self.encoder

    def forward(self, x: Tensor, spacing_mm: Tensor) -> Any:
        levels = [F.relu(self.stem(x))]
        for halving in self.down:
            levels.append(F.relu(halving(levels[-1])))
        shape = (x.shape[2], x.shape[3], x.shape[4])
        seen = self.encoder(x, spacing_mm)
        tokens = self.tokens(seen.tokens).transpose(1, 2).unflatten(2, seen.grid)
        coarsest = (levels[-1].shape[2], levels[-1].shape[3], levels[-1].shape[4])
        spread = spread_out(tokens, self.encoder.lattice(shape), coarsest, 2 ** len(self.down))
        places = self.blocks[-1](F.relu(self.joined(torch.cat([levels[-1], spread], dim=1))))
        drawn = [self.heads[-1](places)] if self.training else []
        for index in range(len(self.up) - 1, -1, -1):
            upper = F.interpolate(self.up[index](places), scale_factor=2, mode="trilinear", align_corners=False)
            places = self.blocks[index](levels[index] + upper)
            if self.training or index == 0:
                drawn.insert(0, self.heads[index](places))
        return drawn if self.training else drawn[0]


def spread_out(tokens: Tensor, lattice: Lattice, shape: Grid, stride: int) -> Tensor:
    """Tokens (B, W, nx, ny, nz) on a grid of `shape`, whose places hold `stride` voxels a side: linear interpolation.

    Beyond the outermost tokens their features stay the same.
    """
    axes = []
    for size, first, step, count in zip(shape, lattice.first, lattice.step, tokens.shape[2:], strict=True):
        voxels = (torch.arange(size, device=tokens.device, dtype=torch.float32) + 0.5) * stride - 0.5
        axes.append(2 * (voxels - first) / step / max(count - 1, 1) - 1)
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    places = torch.stack([z, y, x], dim=-1).expand(len(tokens), -1, -1, -1, -1)
    with torch.autocast(tokens.device.type, enabled=False):
        return F.grid_sample(tokens.float(), places, padding_mode="border", align_corners=True)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What network it is, in plain values; `built` makes it again with random weights."""

    architecture: str
    encoder_settings: Mapping[str, Any]
    decoder: str
    outputs: int

    def built(self) -> SegmentationNetwork:
        """Raises Misuse for an unknown encoder, setting or decoder."""
        return network_of(encoders.build(self.architecture, **self.encoder_settings), self.decoder, self.outputs)

    @classmethod
    def of(cls, encoder: Encoder, decoder: str, outputs: int) -> Plan:
        """The plan of a network around an encoder that was made by `encoders.build`."""
        return cls(
            architecture=encoder.architecture,
            encoder_settings=asdict(encoder.settings),
            decoder=decoder,
            outputs=outputs,
        )


def decoder_for(encoder: Encoder, wanted: str = "auto") -> str:
    """`segresnet` for CT-FM's encoder and `light` for others, unless another is wanted that fits.

    Raises Misuse for one that does not exist or does not fit.
    """
    if wanted == "auto":
        return "segresnet" if isinstance(encoder, SegResEncoder) else "light"
    if wanted not in DECODERS:
        raise Misuse(f"no decoder is called {wanted!r}", do=f"take auto, or one of {', '.join(DECODERS)}")
    if wanted == "segresnet" and not isinstance(encoder, SegResEncoder):
        raise Misuse(
            f"the decoder segresnet does not fit {encoder.architecture}",
            why="it needs the maps of all levels of CT-FM's encoder",
            do="take light, or an encoder of the architecture segresenc",
        )
    return wanted


def network_of(encoder: Encoder, decoder: str, outputs: int) -> SegmentationNetwork:
    """A decoder with random weights around an encoder."""
    if decoder_for(encoder, decoder) == "segresnet":
        assert isinstance(encoder, SegResEncoder)
        return ResidualSegmenter(encoder, outputs)
    return LightSegmenter(encoder, outputs)
