"""Invented requests to an assistant, the same for everybody: no files, no network. What a class asks for is told by words of no language;
the words around them are English and mean nothing."""

from __future__ import annotations

import numpy as np

CLASSES, TEXTS = 100, 24  # of the corpus, and of each class
SEED = 1978
BEFORE = ("please", "can you", "could you", "i want to", "i would like to", "help me", "let me", "hey", "how do i", "will you", "")
BETWEEN = ("the", "my", "this", "a", "some of the", "all my", "our", "that")
AFTER = ("", "now", "today", "please", "for me", "as soon as you can", "tomorrow", "thanks", "if you can", "in the evening")
ENDS = ("", "", "s", "ing", "ed", "er")  # of a word, by which it stays the same word
ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "br", "dr", "fl", "gr", "kl", "pl", "st", "tr")
RIMES = ("a", "e", "i", "o", "u", "ai", "or", "en", "il", "at", "um")


def invent(classes: int = CLASSES, texts: int = TEXTS, seed: int = SEED) -> dict[str, list[str]]:
    """Texts by class. A class is a verb and a thing, each of which has three words; a verb or a thing is in several classes."""
    random = np.random.default_rng(seed)
    pool = max(4, round(classes**0.5) * 2)
    verbs, things = ([[_word(random) for _ in range(3)] for _ in range(pool)] for _ in range(2))
    pairs = random.permutation(pool * pool)[:classes]

    def one(pair: int) -> str:
        verb, thing = verbs[pair // pool], things[pair % pool]
        words = (_any(random, BEFORE), _form(random, verb), _any(random, BETWEEN), _form(random, thing), _any(random, AFTER))
        return " ".join(word for word in words if word)

    return {f"request{i:03d}_{verbs[pair // pool][0]}_{things[pair % pool][0]}": [one(pair) for _ in range(texts)]
            for i, pair in enumerate(pairs.tolist())}  # fmt: skip


def _word(random: np.random.Generator) -> str:
    return "".join(_any(random, ONSETS) + _any(random, RIMES) for _ in range(int(random.integers(2, 4))))


def _form(random: np.random.Generator, words: list[str]) -> str:
    """One of the words, with one of the ends."""
    return _any(random, words) + _any(random, ENDS)


def _any(random: np.random.Generator, these: tuple[str, ...] | list[str]) -> str:
    return these[int(random.integers(len(these)))]
