"""Networks that turn windowed head CT volumes into features; nothing of training, nothing of files."""

from __future__ import annotations

from headct.encoders.anatomy import AnatomyEncoder, AnatomySettings
from headct.encoders.architectures import ARCHITECTURES, Architecture, build, compilable
from headct.encoders.conv import ConvEncoder, ConvSettings
from headct.encoders.features import Encoder, Features, Grid, Lattice
from headct.encoders.segres import SegResEncoder, SegResSettings, segmentation_network
from headct.encoders.slices import SliceEncoder, SliceSettings
from headct.encoders.vit import ViT3D, ViTSettings
from headct.encoders.windowing import Window, apply_windows, as_input

__all__ = [
    "ARCHITECTURES",
    "AnatomyEncoder",
    "AnatomySettings",
    "Architecture",
    "ConvEncoder",
    "ConvSettings",
    "Encoder",
    "Features",
    "Grid",
    "Lattice",
    "SegResEncoder",
    "SegResSettings",
    "SliceEncoder",
    "SliceSettings",
    "ViT3D",
    "ViTSettings",
    "Window",
    "apply_windows",
    "as_input",
    "build",
    "compilable",
    "segmentation_network",
]
