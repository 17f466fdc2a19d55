"""A photograph, smoothed along its own edges by style_kernel_conv: filters a pixel from the picture's structure tensor.

    python examples/painterly.py [PICTURE]

Where edges run along an axis, the filter along that axis is wide and the one across is narrow, so strokes follow the
contours. Writes out/painterly.png, before and after side by side, and prints how long the operator took.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from stylekern import reference
from stylekern.ops import style_kernel_conv

TAPS = 9
ROUNDS = 8  # strokes over strokes


def load(path: Path | None) -> Tensor:
    """[1, 3, H, W] in [0, 1], upright; scikit-image's astronaut without a path."""
    pixels = skimage.data.astronaut()
    if path:
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode.startswith(("I", "F")):  # convert() would cut what is above 255 off
            raise OSError(f"its values are of mode {image.mode}; save it with 8 bits a channel")
        pixels = np.asarray(image.convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float().contiguous() / 255


def blur(x: Tensor, sigma: float) -> Tensor:
    """A Gaussian over [N, C, H, W]."""
    r = int(3 * sigma)
    t = torch.arange(-r, r + 1, dtype=x.dtype)
    k = torch.exp(-(t**2) / (2 * sigma**2))
    k, c = (k / k.sum()).expand(x.shape[1], 1, 1, -1), x.shape[1]
    x = F.conv2d(F.pad(x, (r, r, 0, 0), mode="replicate"), k, groups=c)
    return F.conv2d(F.pad(x, (0, 0, r, r), mode="replicate"), k.transpose(2, 3), groups=c)


def filters(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal filters, [1, 1, TAPS, H, W] each: wide along edges, narrow across, stopping at them."""
    grey = blur(picture.mean(1, keepdim=True), 0.7)
    gy, gx = torch.gradient(grey, dim=(2, 3))
    jxx, jyy = (blur(g * g, 2.0) for g in (gx, gy))  # the diagonal of the structure tensor
    energy = jxx + jyy + 1e-5
    t = torch.arange(TAPS, dtype=picture.dtype).view(1, 1, -1, 1, 1) - TAPS // 2
    found = []
    for dim, across in ((2, jxx), (3, jyy)):  # a vertical edge has jxx: smooth along y
        width = 0.5 + 3.5 * across / energy
        side = (0, 0, TAPS // 2, TAPS // 2) if dim == 2 else (TAPS // 2, TAPS // 2, 0, 0)
        neighbours = F.pad(grey, side, mode="replicate").unfold(dim, TAPS, 1).movedim(-1, 2).contiguous()
        like = torch.exp(-((neighbours - grey[:, :, None]) ** 2) / (2 * 0.06**2))
        taps = like * torch.exp(-(t**2) / (2 * width[:, :, None] ** 2))
        found.append(taps / taps.sum(2, keepdim=True))  # [1, 1, TAPS, H, W]
    vertical, horizontal = found
    return vertical, horizontal


def median_time(run: Callable[[], Tensor], rounds: int = 9) -> float:
    """Seconds a call, after a warm-up."""
    run()
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", nargs="?", type=Path, help="any picture; default: scikit-image's astronaut")
    parser.add_argument("--output", type=Path, default=Path("out/painterly.png"))
    arguments = parser.parse_args()
    if arguments.picture and not arguments.picture.is_file():
        parser.error(f"there is no file {arguments.picture}")

    try:
        picture = load(arguments.picture)
    except OSError as error:
        parser.error(f"{arguments.picture} is no picture that can be read here: {error}")
    if min(picture.shape[2:]) < 2:
        parser.error(f"a picture of 2 x 2 pixels or more, please; {arguments.picture} has no edges to follow")
    if arguments.output.suffix.lower() not in Image.registered_extensions():
        parser.error(f"--output must end as pictures do, such as .png, got {arguments.output}")
    try:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"there is no folder {arguments.output.parent}, and none can be made: {error}")
    print(f"{arguments.picture or 'astronaut'}: {picture.shape[3]} x {picture.shape[2]} pixels")
    result = picture
    for i in range(ROUNDS):
        print(f"\rstroke {i + 1} of {ROUNDS}", end="", flush=True)
        vertical, horizontal = filters(result)
        result = style_kernel_conv(result, vertical, horizontal, padding_mode="replicate")
    result = (result + 0.6 * (result - blur(result, 2.0))).clamp(0, 1)  # crisp strokes

    both = torch.cat([picture, result], 3)[0].permute(1, 2, 0)
    Image.fromarray((both * 255).round().byte().numpy()).save(arguments.output)
    print(f"\nwrote {arguments.output}: before and after")

    tensors = (picture, *filters(picture))
    runs = {"stylekern": style_kernel_conv, "eager": reference.style_kernel_conv}
    print("compiling the plain formula for comparison ...", flush=True)
    runs["torch.compile"] = torch.compile(reference.style_kernel_conv)
    size = sum(x.numel() * x.element_size() for x in (*tensors, picture))
    for name, run in runs.items():
        seconds = median_time(lambda run=run: run(*tensors, padding_mode="replicate"))
        print(f"{name:>14}: {1e3 * seconds:8.2f} ms, {size / seconds / 1e9:6.1f} GB/s of the fewest bytes")


if __name__ == "__main__":
    main()
