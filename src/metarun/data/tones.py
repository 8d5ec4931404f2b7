"""Invented words by invented speakers, as sound: no files, no network. A word is a glide through three vowels, each told by two
resonances of the throat; a speaker has a pitch, a size of the throat and a pace."""

from __future__ import annotations

import numpy as np

RATE = 8000  # samples a second
WORDS, SPEAKERS, TAKES = 20, 4, 5
SEED = 1952
LOW, HIGH = (280.0, 800.0), (900.0, 2400.0)  # Hz of the two resonances


def invent(words: int = WORDS, speakers: int = SPEAKERS, takes: int = TAKES, seed: int = SEED) -> dict[tuple[str, str, int], np.ndarray]:
    """Samples [n] in -1..1 by word, speaker and number of the take."""
    random = np.random.default_rng(seed)
    vowels = np.stack([random.uniform(*LOW, (words, 3)), random.uniform(*HIGH, (words, 3))], 1)
    voices = [(random.uniform(90, 220), random.uniform(0.88, 1.14), random.uniform(0.3, 0.55)) for _ in range(speakers)]
    return {
        (f"word{word:02d}", f"speaker{speaker}", take): say(vowels[word], *voices[speaker], random)
        for word in range(words)
        for speaker in range(speakers)
        for take in range(takes)
    }


def say(vowels: np.ndarray, pitch: float, throat: float, seconds: float, random: np.random.Generator) -> np.ndarray:
    """One take of a word, [n] in -1..1: harmonics of the voice as loud as they are near the resonances, a breath, and a little noise.

    Args:
        vowels: [2, 3] Hz, the resonances at beginning, middle and end.
        pitch, throat, seconds: of the speaker: Hz, a factor of all resonances, and how long a word takes; each take is a little other.
        random: what the take differs by.
    """
    n = round(RATE * seconds * random.uniform(0.85, 1.15))
    time = np.linspace(0, 1, n)
    tune = pitch * random.uniform(0.95, 1.05) * (1.1 - 0.2 * time)
    phase = 2 * np.pi * np.cumsum(tune) / RATE
    resonances = [np.interp(time, (0, 0.5, 1), hertz * throat * random.uniform(0.95, 1.05, 3)) for hertz in vowels]
    sound = np.zeros(n)
    for harmonic in range(1, int(RATE / 2 / tune.max())):
        near = sum(1 / (1 + ((harmonic * tune - centre) / 90) ** 2) for centre in resonances)
        sound += near * np.sin(harmonic * phase)
    sound = sound * np.sin(np.pi * time) ** 0.3 + 0.02 * random.standard_normal(n)
    silence = 0.002 * random.standard_normal((2, round(RATE * random.uniform(0.02, 0.15))))
    whole = np.concatenate([silence[0], sound / np.abs(sound).max(), silence[1]])
    return whole / np.abs(whole).max()
