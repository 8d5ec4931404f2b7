"""Recordings as pictures: reading a wav file with Python's own library, and the log-mel spectrogram of what is said in it.
A mel is the pitch that the ear hears: 2595 log10(1 + f / 700), f in Hz (O'Shaughnessy 1987)."""

from __future__ import annotations

import io
import wave
from functools import cache
from pathlib import Path

import numpy as np

from metarun.data.picture import UnreadableError

WINDOW = 0.032  # seconds of sound behind a column of the picture
LOWEST, HIGHEST = 50.0, 4000.0  # Hz of the picture's rows; what is said lies below 4 kHz, at which telephones cut
RANGE = 60.0  # dB: what is softer than the loudest by more is silence
QUIET = 18.0  # dB below the loudest moment: softer beginnings and ends are cut off; a breath or a click is no part of a word
SPREAD = 3.0  # standard deviations from grey to white, and to black
MOMENT = 0.05  # seconds, over which loudness is taken
SHORTEST, LONGEST = 0.05, 60.0  # seconds of a recording


def read_wav(file: Path | bytes) -> tuple[np.ndarray, int]:
    """Samples [n] float64 in -1..1 and their number in a second, of a wav file by its path or content: 16 bits, one channel.

    Raises:
        UnreadableError: it is no wav file, or of another form.
    """
    if isinstance(file, Path) and not file.is_file():  # a pipe would wait for ever
        raise UnreadableError("a link to nothing" if file.is_symlink() else "not a regular file" if file.exists() else "does not exist")
    try:
        with wave.open(io.BytesIO(file) if isinstance(file, bytes) else str(file), "rb") as sound:
            channels, width, rate, n = sound.getnchannels(), sound.getsampwidth(), sound.getframerate(), sound.getnframes()
            if channels != 1:
                raise UnreadableError(f"{channels} channels: save it with one (mono)")
            if width != 2:
                raise UnreadableError(f"{8 * width} bits: save it with 16")
            if not 2000 <= rate <= 400_000:
                raise UnreadableError(f"{rate} samples a second: save it with 8,000 to 48,000")
            if n > LONGEST * rate:
                raise UnreadableError(f"{n / rate:.0f} seconds, above the limit of {LONGEST:.0f}: cut it into words")
            samples = np.frombuffer(sound.readframes(n), "<i2") / 2**15
    except UnreadableError:
        raise
    except (wave.Error, EOFError, OSError) as error:
        raise UnreadableError(f"no wav file, or damaged ({' '.join(str(error).split()) or 'too short'})") from None
    except ValueError as error:  # an odd number of bytes
        raise UnreadableError(f"damaged ({error})") from None
    if len(samples) < SHORTEST * rate:
        raise UnreadableError(f"shorter than {SHORTEST:g} seconds")
    if not samples.any():
        raise UnreadableError("silence")
    return samples, rate


def spectrogram(samples: np.ndarray, rate: int, mels: int, frames: int) -> np.ndarray:
    """What is said as [1, mels, frames] uint8: time from left to right, pitch from the bottom up, the louder the whiter.

    Quiet ends are cut off, and ``frames`` windows are spread evenly over the rest, so that fast and slow speech come out alike. Loudness
    in dB is taken less its mean and over its standard deviation in this recording, so that microphones do.
    """
    samples = trimmed(samples, rate)
    wide = round(WINDOW * rate)
    padded = np.pad(samples, wide)
    centres = np.rint(np.linspace(0, len(samples), frames)).astype(np.int64) + wide - wide // 2
    pieces = padded[centres[:, None] + np.arange(wide)] * np.hanning(wide)
    power = np.abs(np.fft.rfft(pieces)) ** 2 @ mel_filters(wide, rate, mels).T
    loudness = 10 * np.log10(power + 1e-12)
    loudness = loudness.clip(loudness.max() - RANGE)
    shown = (loudness - loudness.mean()) / (SPREAD * max(loudness.std(), 1e-6))
    return np.rint(127.5 * (1 + shown.clip(-1, 1))).astype(np.uint8).T[None, ::-1]


def trimmed(samples: np.ndarray, rate: int) -> np.ndarray:
    """From the first to the last moment that is not ``QUIET``."""
    wide = max(1, round(MOMENT * rate))
    energy = np.convolve(samples**2, np.full(wide, 1 / wide), "same")[: len(samples)]
    loud = np.flatnonzero(energy >= energy.max() * 10 ** (-QUIET / 10))
    return samples[loud[0] : loud[-1] + 1]


@cache
def mel_filters(window: int, rate: int, mels: int) -> np.ndarray:
    """Triangles of equal width in mel, [mels, window // 2 + 1]: their tops are 1 and lie where the neighbours end.

    A triangle that lies between two frequencies of the window takes the nearest one, so that no row of a picture is empty.
    """
    lowest, highest = (float(2595 * np.log10(1 + hertz / 700)) for hertz in (LOWEST, min(HIGHEST, rate / 2)))
    mel = np.linspace(lowest, highest, mels + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequencies = np.fft.rfftfreq(window, 1 / rate)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.minimum(rising, falling).clip(0)
    empty = np.flatnonzero(~filters.any(1))
    filters[empty, np.abs(frequencies - edges[1:-1][empty, None]).argmin(1)] = 1
    return filters
