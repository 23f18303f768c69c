"""Frames, and the films that are made of them: GIF by Pillow, MP4 by FFmpeg."""

import importlib.util
import io
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

T = TypeVar("T")
_HOLD = 1.5  # seconds for which the end of an episode is shown
_BAND, _WRITING = "#26323f", "white"
_COLORS = 128  # of a frame in a GIF


class _Kept(NamedTuple, Generic[T]):
    is_end: bool
    frame: T


class Film(Generic[T]):
    """Keeps the frame of every `stride`-th step, and of each end of an episode."""

    def __init__(self, stride: int):
        self.stride = stride
        self._step = 0
        self._kept: list[_Kept[T]] = []

    def offer(self, make: Callable[[], T], is_end: bool) -> None:
        """Takes the frame of the next step, which is made only if it is kept."""
        if self._step % self.stride == 0 or is_end:
            self._kept.append(_Kept(is_end, make()))
        self._step += 1

    @property
    def frames(self) -> list[T]:
        return [kept.frame for kept in self._kept]

    @property
    def ends(self) -> list[bool]:
        """Which of the frames end an episode."""
        return [kept.is_end for kept in self._kept]


def frame(picture: np.ndarray, size: int, lines: Sequence[str]) -> Image.Image:
    """A picture under a band of text.

    Args:
      picture: RGB, uint8 [height, width, 3]; brought to `size` where its longer side is off by more
        than a quarter.
      size: pixels.
      lines: of the text.
    """
    image = Image.fromarray(picture)
    scale = size / max(image.size)
    if not 0.8 < scale < 1.25:
        filter_ = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        image = image.resize((round(image.width * scale), round(image.height * scale)), filter_)
    width = max(image.width, 3 * size // 4)  # narrow ones leave no room for words
    # All frames of a film are of one size, whatever is said on them.
    height = round(1.35 * max(9, size / 28))
    top = height * len(lines) + height // 2
    # Even, for films of many kinds halve the resolution of colours.
    whole = Image.new("RGB", (width + width % 2, top + image.height + (top + image.height) % 2))
    draw = ImageDraw.Draw(whole)
    draw.rectangle((0, 0, *whole.size), fill=_BAND)
    for i, line in enumerate(lines):
        font = _font(line, width - 16, max(9, round(size / 28)))
        draw.text((8, height * i + height // 4), line, _WRITING, font)
    whole.paste(image, ((whole.width - image.width) // 2, top))
    return whole


def _font(longest: str, width: int, size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, as large as the line allows."""
    while True:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        if size <= 8 or font.getlength(longest) <= width:
            return font
        size -= 1


def gif(film: Film[Image.Image], fps: float, comment: str) -> bytes:
    """An animated GIF that repeats; a comment inside says what it shows."""
    frames = [
        frame.quantize(_COLORS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        for frame in film.frames
    ]
    duration = [1000 * (_HOLD if end else 1 / fps) for end in film.ends]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=duration,
        loop=0,
        comment=comment.encode(),
    )
    return buffer.getvalue()


def mp4_is_possible() -> bool:
    """Whether FFmpeg is there, which an extra brings."""
    return importlib.util.find_spec("imageio_ffmpeg") is not None


def mp4(film: Film[Image.Image], fps: float, comment: str) -> bytes:
    """An H.264 film, which every browser plays; its comment says what it shows."""
    import imageio_ffmpeg

    frames: list[bytes] = []
    for frame, is_end in zip(film.frames, film.ends, strict=True):
        frames += [np.asarray(frame).tobytes()] * (round(_HOLD * fps) if is_end else 1)
    width, height = film.frames[0].size
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps)]
    h264 = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *raw, "-i", "-"]
        command += [*h264, "-metadata", f"comment={comment}", str(path)]
        subprocess.run(command, input=b"".join(frames), check=True)
        return path.read_bytes()
