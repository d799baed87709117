"""Texts to hashed n-grams, for a whole batch at once and without a Python loop over characters.

Serving and training share this file, and each model version keeps its own copy, so an old version goes on working
when the features change. It holds nothing that is learnt: weights, idf and labels are in the ONNX graph.

Two blocks of buckets: n-grams of 1 to 5 characters inside a word (with its borders), and runs of 1 to 3 words. Text is
lower-cased, accents are folded (customers often leave them out) but also counted on their own (they tell the language),
digits become 0 and a letter repeated more than twice counts as two.
"""

# ruff: noqa: INP001 - Triton loads this folder by path; it is no package

import unicodedata

import numpy as np

CHAR_BUCKETS = 16384
WORD_BUCKETS = 12288
BUCKETS = CHAR_BUCKETS + WORD_BUCKETS
CHAR_LENGTHS = (1, 2, 3, 4, 5)

_SPACE = np.uint32(32)
# Below: letters are looked up. Above: every character (ideograph, emoji) is a word of its own.
_TABLE_SIZE = 0x3000
_BASE = np.uint64(0x9E3779B97F4A7C15)
_BASE_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))
_MIXER = np.uint64(0xD6E8FEB86659FD93)


def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per code point: lower case, lower case without accent, and whether it belongs to a word."""
    lower = np.arange(_TABLE_SIZE, dtype=np.uint32)
    folded = lower.copy()
    in_word = np.zeros(_TABLE_SIZE, dtype=bool)
    for code in range(_TABLE_SIZE):
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] in "ZC":
            lower[code] = folded[code] = _SPACE
            continue
        if category[0] == "N":
            lower[code] = folded[code] = ord("0")
            in_word[code] = True
            continue
        small = character.lower()
        lower[code] = ord(small) if len(small) == 1 else code
        base = unicodedata.normalize("NFD", chr(lower[code]))[0]
        folded[code] = ord(base)
        in_word[code] = category[0] in "LM"
    return lower, folded, in_word


_LOWER, _FOLDED, _IN_WORD = _tables()


def _mix(hashes: np.ndarray, salt: int) -> np.ndarray:
    hashes = (hashes ^ np.uint64(salt * 0x2545F4914F6CDD1D & 0xFFFFFFFFFFFFFFFF)) * _MIXER
    return hashes ^ (hashes >> np.uint64(32))


def _bucket(hashes: np.ndarray, salt: int, buckets: int) -> np.ndarray:
    top = _mix(hashes, salt) * _MIXER >> np.uint64(33)
    return (top * np.uint64(buckets) >> np.uint64(31)).astype(np.int64)


def _lookup(table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return np.where(codes < _TABLE_SIZE, table[np.minimum(codes, _TABLE_SIZE - 1)], codes)


def _characters(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All texts in one row of code points, each between two spaces: lower case, folded, and the text of each."""
    padded = [f" {text if text.isascii() else unicodedata.normalize('NFC', text)} " for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "replace"), dtype=np.uint32)
    rows = np.repeat(np.arange(len(texts)), [len(text) for text in padded])
    lower = _lookup(_LOWER, codes)
    folded = _lookup(_FOLDED, codes)
    # Drop a third equal character, and any space after a space of the same text.
    keep = np.ones(len(codes), dtype=bool)
    same_row = rows[1:] == rows[:-1]
    twice = (folded[1:] == folded[:-1]) & same_row
    keep[2:] = ~(twice[1:] & twice[:-1])
    keep[1:] &= ~(twice & (folded[1:] == _SPACE))
    return lower[keep], folded[keep], rows[keep]


def _char_ngrams(folded: np.ndarray, rows: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    space = folded == _SPACE
    ids, owners = [], []
    hashes = np.zeros(len(folded), dtype=np.uint64)
    # Windows of growing length; one that starts at i lives while no inner character is a space.
    alive = np.ones(len(folded), dtype=bool)
    for length in CHAR_LENGTHS:
        count = len(folded) - length + 1
        if count <= 0:
            break
        last = folded[length - 1 :].astype(np.uint64)
        hashes = hashes[:count] * _BASE + last + np.uint64(1)
        alive = alive[:count]
        if length > 2:
            alive = alive & ~space[length - 2 : length - 2 + count]
        good = alive & ~(space[:count] & space[length - 1 : length - 1 + count]) & (rows[:count] == rows[length - 1 :])
        ids.append(_bucket(hashes[good], length, CHAR_BUCKETS))
        owners.append(rows[:count][good])
    return ids, owners


def _words(codes: np.ndarray, folded: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash and text number of each word: a run of letters and digits, or one other character (punctuation, emoji)."""
    inside = _lookup(_IN_WORD, folded).astype(bool) & (folded < _TABLE_SIZE)
    solid = codes != _SPACE
    previous_inside = np.concatenate(([False], inside[:-1]))
    starts = np.flatnonzero(solid & ~(inside & previous_inside))
    if not len(starts):
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    # A word ends where the next starts or, before a space, at the space: spaces add nothing to the sum.
    ends = np.append(starts[1:], len(codes))
    powers = np.concatenate(([np.uint64(1)], np.cumprod(np.full(len(codes) - 1, _BASE, dtype=np.uint64))))
    terms = np.where(solid, codes.astype(np.uint64) + np.uint64(1), np.uint64(0)) * powers
    sums = np.concatenate(([np.uint64(0)], np.cumsum(terms, dtype=np.uint64)))
    back = np.concatenate(([np.uint64(1)], np.cumprod(np.full(len(codes) - 1, _BASE_INVERSE, dtype=np.uint64))))
    return (sums[ends] - sums[starts]) * back[starts], rows[starts]


def _word_ngrams(lower: np.ndarray, folded: np.ndarray, rows: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    words, owners = _words(folded, folded, rows)
    accented, accented_owners = _words(lower, folded, rows)
    pairs = owners[1:] == owners[:-1]
    pair = words[:-1] * _BASE + words[1:]
    triples = owners[2:] == owners[:-2]
    triple = pair[:-1] * _BASE + words[2:] if len(words) > 2 else words[:0]
    return (
        [
            CHAR_BUCKETS + _bucket(words, 11, WORD_BUCKETS),
            CHAR_BUCKETS + _bucket(accented, 12, WORD_BUCKETS),
            CHAR_BUCKETS + _bucket(pair[pairs], 13, WORD_BUCKETS),
            CHAR_BUCKETS + _bucket(triple[triples], 14, WORD_BUCKETS),
        ],
        [owners, accented_owners, owners[:-1][pairs], owners[:-2][triples]],
    )


def sparse(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashed n-grams of `texts` in compressed sparse row form.

    Returns:
        `ends` int64 [len(texts) + 1], `ids` int64 [n] in [0, BUCKETS) sorted in each text, `counts` float32 [n] >= 1.
        A text without any visible character has no entries.
    """
    if not texts:
        return np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    lower, folded, rows = _characters(texts)
    char_ids, char_owners = _char_ngrams(folded, rows)
    word_ids, word_owners = _word_ngrams(lower, folded, rows)
    keys = np.concatenate(char_owners + word_owners) * BUCKETS + np.concatenate(char_ids + word_ids)
    unique, counts = np.unique(keys, return_counts=True)
    ends = np.searchsorted(unique, np.arange(len(texts) + 1) * BUCKETS)
    return ends, unique % BUCKETS, counts.astype(np.float32)


def padded(ends: np.ndarray, ids: np.ndarray, counts: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows `texts` of a sparse batch as the graph's inputs.

    Returns:
        `ids` int64 [rows, longest], padded with BUCKETS (a bucket of zero weight), and `counts` float32 of that shape,
        padded with 0. The longest is at least 1.
    """
    lengths = ends[texts + 1] - ends[texts]
    width = max(int(lengths.max()), 1)
    out_ids = np.full((len(texts), width), BUCKETS, dtype=np.int64)
    out_counts = np.zeros((len(texts), width), dtype=np.float32)
    mask = np.arange(width) < lengths[:, None]
    source = (ends[texts][:, None] + np.arange(width))[mask]
    out_ids[mask] = ids[source]
    out_counts[mask] = counts[source]
    return out_ids, out_counts
