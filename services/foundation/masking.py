"""Personal data in what customers write, found and taken out.

Each kind is found by its own form, and by its check digits where it has any, so that order numbers, prices and dates
stay: they are what the words are about. What is found is replaced by its kind, such as `[email]`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum

from phonenumbers import SUPPORTED_REGIONS, Leniency, PhoneNumberMatcher
from stdnum import iban, luhn

Span = tuple[int, int]


class Pii(StrEnum):
    """Kinds of personal data, in the order in which they are looked for."""

    EMAIL = "email"
    IBAN = "iban"
    CARD = "card"
    PHONE = "phone"


#: The countries whose national numbers are known, by ISO 3166; numbers with a country code are known everywhere.
DEFAULT_REGIONS = ("ES", "PT", "SI", "GB", "US", "BR", "MX")

#: Lengths as in RFC 5321, 4.5.3.1, so that a search takes time in proportion to the text.
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{0,63}[\w+%-]@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,63}")

_IBAN_START = re.compile(r"\b[A-Za-z]{2}\d{2}(?=[ -]?[A-Za-z0-9])")
_LONGEST_IBAN = 34
_SHORTEST_IBAN = 15

_DIGITS = re.compile(r"\d(?:[ .-]?\d)+")
#: Issuers' number ranges (ISO/IEC 7812; each scheme's own publications) and the lengths in use: Visa, Mastercard,
#: American Express, Diners, Discover, JCB, UnionPay, Maestro.
_CARD = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"
    r"|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}"
    r"|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11,16}"
    r"|6(?:011|4[4-9]\d|5\d{2})\d{12,15}"
    r"|35(?:2[89]|[3-8]\d)\d{12,15}"
    r"|62\d{14,17}"
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{9,15}"
)
_CARD_LENGTHS = range(19, 12, -1)

#: A bare row of digits behind one of these is a reference, not a telephone number.
_REFERENCE = re.compile(
    r"(?:#|\b(?:nr|no|nº|n\.º|št|ref)\.?|\b(?:order|invoice|ticket|case|tracking|reference|parcel|booking"
    r"|pedido|factura|fatura|referencia|referência|seguimiento|encomenda|reserva|caso|guia|guía"
    r"|naročil\w*|račun\w*|pošiljk\w*|primer\w*|zahtev\w*|sledenj\w*)(?:\s+(?:number|no|nr|number|número|numero|nº|št"
    r"|številk\w*|id))?\.?)[\s:#]*$",
    re.IGNORECASE,
)
_LOOK_BACK = 40
#: No national number is shorter; looking for them is the dearest part.
_MAY_BE_PHONE = re.compile(r"\d(?:[\s()./+-]{0,3}\d){7}")
#: Candidates looked at in one text, for each region: more than anybody writes, few enough to be quick.
_MAX_TRIES = 200


def kinds_of(policy: str) -> tuple[Pii, ...]:
    """Read a policy such as `email,card`; empty: nothing is masked. Raises ValueError."""
    names = [name.strip() for name in policy.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(Pii)):
        raise ValueError(f"expected some of {', '.join(Pii)}, not {', '.join(unknown)}")
    return tuple(map(Pii, names))


def regions_of(regions: str) -> tuple[str, ...]:
    """Read regions such as `ES,PT`. Raises ValueError."""
    names = tuple(name.strip() for name in regions.split(",") if name.strip())
    if unknown := sorted(set(names) - SUPPORTED_REGIONS):
        raise ValueError(f"expected ISO 3166 codes of two letters, not {', '.join(unknown)}")
    return names


class Masker:
    """Masks the kinds of a policy."""

    def __init__(self, kinds: Sequence[Pii], regions: Sequence[str] = DEFAULT_REGIONS) -> None:
        self.kinds = [kind for kind in Pii if kind in kinds]
        self._regions = tuple(regions)
        self._find: Mapping[Pii, Callable[[str], Iterator[Span]]] = {
            Pii.EMAIL: _emails,
            Pii.IBAN: _ibans,
            Pii.CARD: _cards,
            Pii.PHONE: self._phones,
        }

    def text(self, text: str) -> str:
        """Return `text` with every finding replaced by its kind in brackets."""
        for kind in self.kinds:
            pieces, at = [], 0
            for start, end in _apart(self._find[kind](text)):
                pieces += [text[at:start], f"[{kind}]"]
                at = end
            text = "".join([*pieces, text[at:]])
        return text

    def _phones(self, text: str) -> Iterator[Span]:
        if not _MAY_BE_PHONE.search(text):
            return
        for region in self._regions or (None,):
            for found in PhoneNumberMatcher(text, region, leniency=Leniency.VALID, max_tries=_MAX_TRIES):
                if not (found.raw_string.isdigit() and _REFERENCE.search(text[: found.start][-_LOOK_BACK:])):
                    yield found.start, found.end


def _apart(spans: Iterator[Span]) -> Iterator[Span]:
    """Yield spans in order, those that touch or overlap as one."""
    joined: Span | None = None
    for start, end in sorted(spans):
        if joined is not None and start <= joined[1]:
            joined = joined[0], max(joined[1], end)
            continue
        if joined is not None:
            yield joined
        joined = start, end
    if joined is not None:
        yield joined


def _emails(text: str) -> Iterator[Span]:
    if "@" in text:
        yield from (found.span() for found in _EMAIL.finditer(text))


def _ibans(text: str) -> Iterator[Span]:
    """Yield where an account number stands, alone or in groups, whatever words follow it."""
    for start in (found.start() for found in _IBAN_START.finditer(text)):
        ends = []
        number = ""
        for at in range(start, len(text)):
            if text[at].isascii() and text[at].isalnum():
                number += text[at]
                ends.append((at + 1, number))
            elif text[at] not in " -" or text[at - 1] in " -":
                break
            if len(number) == _LONGEST_IBAN:
                break
        for end, candidate in ends[_SHORTEST_IBAN - 1 :]:
            ends_here = end == len(text) or not text[end].isalnum()
            if ends_here and iban.is_valid(candidate, check_country=False):
                yield start, end
                break


def _cards(text: str) -> Iterator[Span]:
    """Yield where a card number stands: of an issuer's range, with its check digit, from group to group."""
    for row in _DIGITS.finditer(text):
        digits = [at for at in range(*row.span()) if text[at].isdigit()]
        starts = [i for i, at in enumerate(digits) if not i or digits[i - 1] != at - 1]
        done = -1
        for first in starts:
            if first < done:
                continue
            for count in _CARD_LENGTHS:
                last = first + count
                if last > len(digits) or (last < len(digits) and digits[last] == digits[last - 1] + 1):
                    continue
                number = "".join(text[at] for at in digits[first:last])
                if _CARD.fullmatch(number) and luhn.is_valid(number):
                    yield digits[first], digits[last - 1] + 1
                    done = last
                    break
