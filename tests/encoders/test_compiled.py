"""Every encoder as one compiled graph. Oracle: the same network run eagerly; normalised features are of size 1, and
fused kernels sum in another order, by which float32 differs by 1e-6.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from headct.encoders import AnatomyEncoder, ViT3D, build, compilable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="torch.compile needs a C compiler"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),  # by PyTorch of itself
]
TINY = {"depth": 2, "patch": (8, 8, 4), "grid": (2, 2, 2), "width": 24, "heads": 2, "mlp_width": 48}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit as named": ("vit-tiny", TINY),
    "vit with every option": (
        "vit-tiny",
        TINY
        | {
            "positions": "rotary-mm",
            "drop_air": True,
            "pooling": "class+mean",
            "layer_scale": 0.1,
            "drop_path": 0.1,
            "norm": "rms",
        },
    ),
    "slices as named": ("slices-tiny", {"widths": (8, 16), "blocks": (1, 1)}),
    "slices with positions": ("slices-tiny", {"widths": (8, 16), "blocks": (1, 1), "positions": "mm"}),
}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Graphs of one test do not count as recompilations of the next."""
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("case", ENCODERS)
def test_compiled_equals_eager(case: str) -> None:
    torch.manual_seed(0)
    name, settings = ENCODERS[case]
    encoder = build(name, **settings).eval()
    x, spacing_mm = torch.rand(2, 3, 24, 16, 10), torch.tensor([[1.0, 1.0, 2.0], [0.5, 0.5, 5.0]])
    x[0, :, 16:] = 0
    with torch.no_grad():
        eager, compiled = encoder(x, spacing_mm), torch.compile(encoder, fullgraph=True)(x, spacing_mm)
    assert compiled.grid == eager.grid
    torch.testing.assert_close(compiled.scan, eager.scan, atol=1e-5, rtol=0)
    torch.testing.assert_close(compiled.tokens, eager.tokens, atol=1e-5, rtol=0)


def test_gradients_of_the_compiled_network_equal_those_of_the_eager_one() -> None:
    torch.manual_seed(0)
    name, settings = ENCODERS["vit with every option"]
    encoder = build(name, **(settings | {"drop_path": 0.0}))
    x, spacing_mm = torch.rand(2, 3, 16, 16, 8), torch.ones(2, 3)
    gradients = []
    for network in (encoder, torch.compile(encoder, fullgraph=True)):
        encoder.zero_grad()
        network(x, spacing_mm).scan[:, 0].square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit-tiny", "anatomy-vit", "conv-tiny", "anatomy-conv"])
def test_parts_are_compiled_however_the_network_is_called(name: str) -> None:
    """Counted by a compiler that compiles nothing: all blocks of a transformer share one graph."""
    settings: dict[str, Any] = {"vit-tiny": TINY, "anatomy-vit": {"inner_settings": TINY}}.get(name, {})
    encoder = build(name, **settings).eval()
    counter = CompileCounter()
    for part in compilable(encoder):
        part.compile(backend=counter)
    x = torch.rand(1, 3, 16, 16, 16)
    with torch.no_grad():
        if isinstance(encoder, ViT3D):
            encoder.sequence(x)
        elif isinstance(encoder, AnatomyEncoder):
            encoder.look(x)
        else:
            encoder(x)
    assert counter.frame_count == 1
