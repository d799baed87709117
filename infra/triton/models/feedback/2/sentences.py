"""Where the sentences of a text begin and end.

The rules are those of Unicode's text segmentation (UAX #29, sentence boundaries) as far as customers' texts need them:
a sentence ends at a line break, at `.`, `!`, `?`, `…` with what closes after it (quotes, brackets, emoji) and white
space, and at the full stops of scripts that need no space. Two things differ: customers often begin sentences in lower
case, so that does not join two of them; and a full stop after a known abbreviation, a single letter, or a short number
before a word in lower case (an ordinal: "am 3. mai") does not end one.
"""

# ruff: noqa: INP001, RUF001, SIM905 - Triton loads this folder by path; the marks of other scripts are meant

import re

#: After these a full stop is no end, in the languages that the model is trained on.
_ABBREVIATIONS = frozenset(
    # en, es and pt, sl, de, fr
    """
    mr mrs ms dr prof st vs dept approx inc ltd co e.g i.e a.m p.m tel ext
    sr sra srta d dña dra ud uds núm num pág av avda p.ej aprox depto exmo exma lda ltda
    g ga gdč ul št npr oz itd itn tj d.o.o d.d mag str sv min
    hr fr z.b d.h u.a bzw ca evtl ggf inkl nr usw vgl zzgl abs
    m mm mme mlle me p.ex env bd tél apr
    """.split()
)
_CLOSING = r"[\"'”’»)\]}\u2600-\u27bf\ufe0f\U0001f000-\U0001faff]*"
# In linear time whatever the text: no alternative begins inside a run that it has failed on, or gives back of one.
_END = re.compile(rf"(?<![.!?…])[.!?…]++{_CLOSING}+(?=\s)|[。！？｡]+{_CLOSING}|[\r\n\u2028\u2029]\s*")
_LAST_WORD = re.compile(r"([^\W_]+(?:\.[^\W_]+)*)\.$")
_VISIBLE = re.compile(r"[^\W_]|[\u2600-\u27bf\U0001f000-\U0001faff]")


def spans(text: str, most: int) -> list[tuple[int, int]]:
    """Start and end, in characters, of each sentence without the white space around it; at most `most`, the first.

    A piece without a letter, digit or emoji belongs to the sentence before it. A text without any has no sentences.
    """
    found: list[tuple[int, int]] = []
    start = 0
    for end in [*_ends(text), len(text)]:
        piece = text[start:end]
        if _VISIBLE.search(piece):
            left = start + len(piece) - len(piece.lstrip())
            if len(found) == most:
                break
            found.append((left, start + len(piece.rstrip())))
        elif found:
            found[-1] = (found[-1][0], start + len(piece.rstrip()) if piece.strip() else found[-1][1])
        start = end
    return found


def _ends(text: str) -> list[int]:
    ends = []
    for match in _END.finditer(text):
        mark = match.group()
        if mark.startswith(".") and not mark.startswith("..") and not _ends_here(text, match.start()):
            continue
        ends.append(match.end())
    return ends


def _ends_here(text: str, stop: int) -> bool:
    """Whether the full stop at `stop` ends a sentence."""
    word = _LAST_WORD.search(text, max(0, stop - 24), stop + 1)
    if word is None:
        return True
    last = word.group(1).casefold()
    if last in _ABBREVIATIONS or (len(last) == 1 and last.isalpha()):
        return False
    # An ordinal or a date: "am 3. Mai", "v 2. nadstropju".
    following = text[stop + 1 :].lstrip()[:1]
    return not (last.isdigit() and len(last) <= 2 and following.isalpha() and following == following.lower())
