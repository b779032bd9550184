"""Pictures and sounds as a model's graph takes them, the same where it is proved and where it serves.

Pillow, soundfile and soxr are imported when the first file comes; they are the extra `llmos[media]`.
"""

from io import BytesIO
from typing import TYPE_CHECKING, Any

from llmos.contracts.models import AudioInput, ImageInput
from llmos.errors import Rejected

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 50_000_000  # of a file; a picture that unpacks to more is refused before it is unpacked
REMEDY = "Install it there: pip install 'llmos[media]'."


def pixels(data: bytes, how: ImageInput) -> "NDArray[np.uint8]":
    """A picture's file as RGB `[height, width, 3]`: turned upright, resized, the middle cut out as `how` says.

    Rounds as transformers does. Raises `Rejected` for what is no picture, or one of too many pixels.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise Rejected("pictures can't be read here: Pillow is missing", remedy=REMEDY) from error
    import numpy as np

    try:
        opened = Image.open(BytesIO(data), formats=FORMATS)
        if opened.width * opened.height > MAX_PIXELS:
            raise Rejected(
                f"the picture has {opened.width} x {opened.height} pixels, more than {MAX_PIXELS}",
                remedy="Send a smaller one.",
            )
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    except Rejected:
        raise
    except Exception as error:  # Pillow raises whatever its decoders do
        raise Rejected(f"the picture can't be read: {error}", remedy=f"Send one of {', '.join(FORMATS)}.") from error
    height, width = _resized(picture.height, picture.width, how.resize)
    if (height, width) != (picture.height, picture.width):
        picture = picture.resize((width, height), Image.Resampling[how.resample.upper()])
    if how.crop:
        top, left = (height - how.crop[0]) // 2, (width - how.crop[1]) // 2
        picture = picture.crop((left, top, left + how.crop[1], top + how.crop[0]))  # black beyond the edges
    return np.asarray(picture, np.uint8)


def _resized(height: int, width: int, size: list[int]) -> tuple[int, int]:
    """The height and width after resizing; one number is the length of the shorter edge."""
    if len(size) != 1:
        return size[0], size[1]
    shorter = size[0]
    if width <= height:
        return int(shorter * height / width), shorter
    return shorter, int(shorter * width / height)


def samples(data: bytes, how: AudioInput) -> "NDArray[np.float32]":
    """A recording's file (WAV, FLAC, OGG, MP3) as mono samples `[length]` at `how.rate`, padded or cut to
    `how.seconds` if that is above 0.

    Raises `Rejected` for what is no recording, an empty one, and one longer than `how.max_seconds`.
    """
    try:
        import numpy as np
        import soundfile
        import soxr
    except ImportError as error:
        raise Rejected(f"sounds can't be read here: {error}", remedy=REMEDY) from error
    try:
        with soundfile.SoundFile(BytesIO(data)) as file:
            if not how.seconds and file.frames / file.samplerate > how.max_seconds:
                raise Rejected(
                    f"the recording lasts {file.frames / file.samplerate:.1f} s, the model takes {how.max_seconds:g} s",
                    remedy="Cut it into pieces.",
                )
            rate: int = file.samplerate
            most = int((how.seconds or how.max_seconds) * rate) + rate
            channels: Any = file.read(most, dtype="float32", always_2d=True)
    except Rejected:
        raise
    except Exception as error:  # libsndfile's errors, and what its header may make numpy raise
        raise Rejected(f"the recording can't be read: {error}", remedy="Send WAV, FLAC, OGG or MP3.") from error
    if not len(channels):
        raise Rejected("the recording is empty", remedy="Send one that has samples.")
    mono = channels.mean(axis=1, dtype=np.float32)
    if rate != how.rate:
        mono = soxr.resample(mono, rate, how.rate)
    if how.seconds:
        wanted = int(how.seconds * how.rate)
        mono = np.pad(mono[:wanted], (0, max(0, wanted - len(mono))))
    return np.ascontiguousarray(mono, np.float32)
