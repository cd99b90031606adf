"""How fast a scan becomes a vector on a CPU: each way to run a ViT-B, then all the way from DICOM files.

    python benchmarks/embed.py [--rounds 3] [--heads 8] [--shared ../shared]

The ViT-B of FM-HCT: 96 x 96 x 96, patches of 12, three windows, on one thread, a scan at a time. Times are those of the
processor, which other work on the machine lengthens less than the clock's, the best of several rounds; ratios are of
times of this run. «As published» is the same network with the same weights as its authors' code
runs it: a convolution over the patches, attention as matrix product, softmax and product, float32, with gradients
recorded. The heads are drawn, and a real one is added where the shared folder is there.

The weights are random, which makes speed comparable and cosines flattering: such an encoder gives all heads almost the
same vector. So the least cosine stands beside the one between different heads, and beside the cosine of vectors from
which the mean of all heads was taken, which shows whether what tells heads apart survives a precision.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from headct import encoders
from headct.checkpoints import Card, PretrainedEncoder, load, save
from headct.checkpoints.export import export
from headct.checkpoints.exported import cosine
from headct.encoders import ViT3D
from headct.failure import Failure
from headct.preparing import Prepared, prepare, recipes
from headct.preparing.windows import WINDOWS
from headct.reading import read
from headct.scan import Scan
from headct.virtual.phantom import Phantom
from headct.writing import write_dicom

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
REAL = "data/nifti/ge_hispeed_dcm2niix_tilt_eq_1mm.nii.gz"
RECIPE = "fm-hct"
FAST = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
GRAPHS = (("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"))

TARGETS: Mapping[str, tuple[float, float]] = {"bf16": (2.3, 0.9999), "int8": (3.3, 0.9995)}
"""How many times as fast as published, at which least cosine, where the processor has bf16 and VNNI units."""

See = Callable[[Tensor], Tensor]
"""From one scan's channels (1, C, X, Y, Z) to its vector (1, F)."""


@dataclass(frozen=True)
class Heads:
    """Prepared heads (1, C, X, Y, Z), and their vectors as published, (n, F)."""

    channels: list[Tensor]
    vectors: np.ndarray

    @property
    def alike(self) -> float:
        """The largest cosine between two different heads."""
        count = len(self.vectors)
        return max(cosine(self.vectors[i], self.vectors[j]) for i in range(count) for j in range(i))


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    torch.set_num_threads(1)
    print(f"processor: {processor()}")
    with tempfile.TemporaryDirectory() as place:
        model = vit_base(Path(place) / "checkpoint")
        arrays = list(prepared_heads(options.heads, options.shared))
        fastest = compare_ways(model, arrays, Path(place), options.rounds)
        time_stages(model, fastest, Path(place), options.rounds)
    if torch.cuda.is_available():
        time_batches(model.encoder, torch.device("cuda"), batch=64)
    else:
        print("\nno GPU here: scans/s at bf16 not measured")


def processor() -> str:
    """Its name and those of its units that matter here (Linux)."""
    place = Path("/proc/cpuinfo")
    lines = place.read_text().splitlines() if place.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    units = [unit for unit in FAST if unit in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.processor())}; {', '.join(units) or 'units not known'}"


def vit_base(folder: Path) -> PretrainedEncoder:
    """The published architecture with random weights, saved and loaded as any other."""
    torch.manual_seed(0)
    encoder = encoders.build("vit-base", patch=(12, 12, 12), grid=(8, 8, 8), input_mean=0.0, input_std=1.0)
    save(folder, encoder, Card(recipe=recipes[RECIPE], windows={}))
    return load(folder)


def prepared_heads(count: int, shared: Path) -> Iterator[np.ndarray]:
    """Drawn heads, every third with blood in the brain and every third with blood below the skull; a real one last."""
    for seed in range(count):
        bleed = (None, "iph", "sdh")[seed % 3]
        scan = Phantom(seed, bleed).scan(slices=40, rows=128, cols=128, pixel_mm=1.8, gap_mm=4.0, noise_hu=4.0)
        yield prepared(scan, RECIPE)
    if (shared / REAL).exists():
        yield prepared(only_scan(shared / REAL), RECIPE)


def only_scan(path: Path) -> Scan:
    (scan,) = read([path], isolated=False)
    assert isinstance(scan, Scan), scan
    return scan


def prepared(scan: Scan, recipe: str) -> np.ndarray:
    done = prepare(scan, recipe)
    assert isinstance(done, Prepared), done
    return done.array


def compare_ways(
    model: PretrainedEncoder, arrays: list[np.ndarray], place: Path, rounds: int
) -> dict[str, PretrainedEncoder]:
    """The first table; gives the model and those of its graphs that came near enough, by their names."""
    published = as_published(model.encoder)
    channels = [torch.from_numpy(array[None]).float() for array in arrays]
    heads = Heads(channels, np.concatenate([published(one).detach().numpy() for one in channels]))
    with torch.inference_mode():
        assert np.allclose(model(channels[0]).scan.numpy(), heads.vectors[:1], atol=1e-4), "another network"
    print(f"{len(arrays)} heads, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million random weights")
    print(f"cosine between two different heads: up to {heads.alike:.6f}\n")
    print(f"{'way':28} {'ms':>7} {'ratio':>7} {'cosine':>9} {'centred':>8}  wanted")
    published_s = show("as published, fp32", published, heads, rounds, None)
    show("ours, torch fp32", lambda one: model(one).scan, heads, rounds, published_s)
    show("ours, torch bf16", in_bf16(model), heads, rounds, published_s, TARGETS["bf16"])
    usable = {"torch fp32": model}
    for kind, precision in GRAPHS:
        name = f"{kind} {precision}"
        try:
            folder = export(model, kind, place / name, precision=precision, arrays=arrays).folder
        except Failure as failure:
            print(f"{name:28} not written: {failure.why}", flush=True)
            continue
        usable[name] = load(folder)
        show(name, lambda one, n=name: usable[n](one).scan, heads, rounds, published_s, TARGETS.get(precision))
    return usable


def as_published(encoder: Any) -> See:
    """The same network in the operations of the published description, one after the other."""
    assert isinstance(encoder, ViT3D)
    settings = encoder.settings
    linear = encoder.embedding.linear
    kernels = linear.weight.reshape(settings.width, settings.channels, *settings.patch)
    length = settings.width // settings.heads

    def attend(attention: Any, tokens: Tensor) -> Tensor:
        qkv = attention.qkv(tokens).reshape(*tokens.shape[:2], 3, settings.heads, length).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(qkv[0] @ qkv[1].transpose(-2, -1) * length**-0.5, dim=-1)
        return attention.out((weights @ qkv[2]).transpose(1, 2).flatten(2))

    def see(channels: Tensor) -> Tensor:
        patches = F.conv3d(channels, kernels, linear.bias, stride=settings.patch).flatten(2).transpose(1, 2)
        tokens = torch.cat([encoder.class_token, encoder.register_tokens, patches + encoder.positions.table], dim=1)
        for block in encoder.blocks:
            tokens = tokens + attend(block.attention, block.attention_norm(tokens))
            tokens = tokens + block.mlp(block.mlp_norm(tokens))
        return encoder.norm(tokens)[:, 0]

    return see


def in_bf16(model: PretrainedEncoder) -> See:
    def see(channels: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(channels).scan.float()

    return see


def show(
    name: str,
    see: See,
    heads: Heads,
    rounds: int,
    published_s: float | None,
    target: tuple[float, float] | None = None,
) -> float:
    """One row; gives the seconds of a scan. Only what is not published runs without recording gradients."""
    with torch.inference_mode(published_s is not None):
        vectors = np.concatenate([see(one).detach().numpy() for one in heads.channels])
        _, seconds = timed(lambda: see(heads.channels[0]), rounds)
    near, mean = nearest(vectors, heads.vectors), heads.vectors.mean(axis=0)
    centred = nearest(vectors - mean, heads.vectors - mean)
    ratio = (published_s or seconds) / seconds
    wanted = ""
    if target:
        reached = ratio >= target[0] and near >= target[1]
        wanted = f"{target[0]}x at {target[1]}: {'reached' if reached else 'NOT REACHED'}"
    print(f"{name:28} {seconds * 1e3:7.0f} {ratio:6.2f}x {near:9.6f} {centred:8.3f}  {wanted}".rstrip(), flush=True)
    return seconds


def nearest(vectors: np.ndarray, wanted: np.ndarray) -> float:
    """The least cosine between rows of two tables (n, F)."""
    return min(cosine(one, other) for one, other in zip(vectors, wanted, strict=True))


def timed(run: Callable[[], Any], rounds: int, clock: Callable[[], float] = time.process_time) -> tuple[Any, float]:
    """The result and the best time, of all threads of this process unless by another clock."""
    best_s = float("inf")
    for _ in range(rounds):
        started_s = clock()
        result = run()
        best_s = min(best_s, clock() - started_s)
    return result, best_s


def time_stages(
    published: PretrainedEncoder, usable: Mapping[str, PretrainedEncoder], place: Path, rounds: int
) -> None:
    """From a DICOM folder to a vector: what each stage takes, for the published recipe and for ours."""
    scan = Phantom(0).scan(slices=40, rows=512, cols=512, pixel_mm=0.45, gap_mm=4.0, noise_hu=4.0)
    write_dicom(scan, place / "series")
    torch.manual_seed(0)
    ours = PretrainedEncoder(
        encoders.build("vit-base").eval(), Card(recipe=recipes["head"], windows=WINDOWS), ""
    ).eval()
    print(f"\n{'DICOM, 512 x 512 x 40, to a vector':40} {'s':>6} {'read':>6} {'prepare':>8} {'window, encode':>15}")
    scan, read_s = timed(lambda: only_scan(place / "series"), rounds)
    for recipe, name, model in (
        *((RECIPE, name, model) for name, model in usable.items()),
        ("head", "torch fp32, patches of 16", ours),
    ):
        array, prepare_s = timed(lambda recipe=recipe: prepared(scan, recipe), rounds)
        batch = torch.from_numpy(array[None])
        with torch.inference_mode():
            _, encode_s = timed(lambda model=model, batch=batch: model.see(batch), rounds)
        total_s = read_s + prepare_s + encode_s
        shares = f"{read_s / total_s:5.0%} {prepare_s / total_s:8.0%} {encode_s / total_s:14.0%}"
        print(f"{recipe + ', ' + name:40} {total_s:6.2f} {shares}", flush=True)


def time_batches(encoder: Any, device: torch.device, batch: int) -> None:
    """Scans/s in bf16, and the share of the peak that a large matrix product reaches on this device in this run."""
    encoder = encoder.to(device)
    channels = torch.rand(batch, encoder.channels, 96, 96, 96, device=device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        encoder(channels[:1])
    flops = counter.get_total_flops()

    def waiting(run: Callable[[], Any]) -> Callable[[], None]:
        def whole() -> None:
            run()
            torch.cuda.synchronize(device)

        return whole

    side = torch.rand(8192, 8192, device=device, dtype=torch.bfloat16)
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16):
        _, seconds = timed(waiting(lambda: encoder(channels)), 10, time.perf_counter)
        _, product_s = timed(waiting(lambda: side @ side), 10, time.perf_counter)
    reached, peak = batch * flops / seconds, 2 * 8192**3 / product_s
    print(f"\n{torch.cuda.get_device_name(device)}, bf16, {batch} scans at a time: {batch / seconds:.0f} scans/s")
    print(f"{reached / 1e12:.0f} TFLOP/s, {reached / peak:.0%} of the {peak / 1e12:.0f} of a matrix product")


if __name__ == "__main__":
    main()
