"""From a record of a file to an interaction, as a mapping says."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from hashlib import sha256
from typing import Any

import msgspec
from google.protobuf.descriptor import EnumDescriptor

from recorrido.ingest.v1 import interaction_pb2
from recorrido.ingest.v1.identity_pb2 import IdentityKind
from recorrido.ingest.v1.interaction_pb2 import (
    Channel,
    CustomerKind,
    Interaction,
    Outcome,
    Rating,
    RatingMetric,
    ReferralDirection,
)
from services.cli import show
from services.cli.importing import mapping as form
from services.cli.importing import times
from services.cli.importing.formats import segment
from services.cli.importing.records import RECORD_LIMIT, Record

#: Attributes that tell where a refused interaction comes from.
FILE, LINE, ROW = "import.file", "import.line", "import.row"
#: Where a record can be read in no part, all of it is told as this field.
WHOLE = "row"

_AS_JSON = msgspec.json.Encoder(decimal_format="number")
_ATTRIBUTE_LIMIT = 1024
#: More of them were never meant to be read by people.
_MOST_DIGITS = 400
_HASH = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Problem:
    """What of a record could not be read: the interaction's field, and why."""

    field: str
    why: str

    def __str__(self) -> str:
        return self.why if self.field == WHOLE else f"{self.field}: {self.why}"


Problems = list[Problem]
Getter = Callable[[Record], Any]
Reader = Callable[[Record], str]
Setter = Callable[[Record, Interaction, Problems], None]


class BadValueError(Exception):
    """A value cannot be used; the text tells why."""


@dataclass(frozen=True, slots=True)
class IdentityLink:
    """Behind the identity is the customer."""

    kind: IdentityKind.ValueType
    value: str
    customer_id: str


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a record: an interaction, links, both, or nothing.

    An interaction with problems is what could be read of it; ingest refuses and keeps it when it is told of them. Links
    with problems are not made.
    """

    record: Record
    interaction: Interaction | None = None
    links: Sequence[IdentityLink] = ()
    problems: Sequence[Problem] = ()
    skipped: str = ""

    @property
    def told(self) -> str:
        """Every problem, on one line."""
        return "; ".join(map(str, self.problems))


class Mapper:
    """Makes interactions of records."""

    def __init__(self, mapping: form.ImportMapping) -> None:
        self._links = [(_condition(each.when), _link_reader(each)) for each in mapping.all_links]
        self._about_people = mapping.format == "segment"
        self._skips = [(_condition(each.when), each.reason or f"skip[{n}]") for n, each in enumerate(mapping.skip)]
        self._conditions = [_condition(each.when) for each in mapping.rules]
        self._rules = [each.set_ for each in mapping.rules]
        self._fields = mapping.fields
        #: Of records that cannot be read, as far as the mapping tells it.
        self._source = (self._fields.source and self._fields.source.value) or ""
        # Few combinations of rules come about, so each is prepared once.
        self._prepared: dict[tuple[int, ...], list[Setter]] = {}

    def row(self, record: Record) -> Row:
        if record.content is None:
            kept = _kept(Interaction(source=self._source), record)
            return Row(record, kept, problems=(Problem(WHOLE, record.problem),))
        links, problems = _links(record, [read for holds, read in self._links if holds(record)])
        skipped = next((reason for holds, reason in self._skips if holds(record)), "")
        if not skipped and self._about_people and record.content["type"] in segment.ABOUT_PEOPLE:
            skipped = f"{record.content['type']} calls"
        if skipped:
            return Row(record, links=links, problems=problems, skipped=skipped)
        applying = tuple(n for n, holds in enumerate(self._conditions) if holds(record))
        interaction = Interaction()
        for put in self._setters(applying):
            put(record, interaction, problems)
        if interaction.ByteSize() > RECORD_LIMIT:
            problems.append(Problem(WHOLE, f"is larger than {RECORD_LIMIT:,} bytes"))
            interaction = Interaction(source=self._source)
        if problems:
            interaction = _kept(interaction, record)
        return Row(record, interaction, links=links, problems=problems)

    def _setters(self, applying: tuple[int, ...]) -> list[Setter]:
        if applying not in self._prepared:
            fields = self._fields
            for n in applying:
                fields = self._rules[n].over(fields)
            self._prepared[applying] = list(_setters(fields))
        return self._prepared[applying]


def _links(
    record: Record, reads: Sequence[Callable[[Record], IdentityLink]]
) -> tuple[Sequence[IdentityLink], Problems]:
    links, problems = [], Problems()
    for read in reads:
        try:
            links.append(read(record))
        except BadValueError as error:
            problems.append(Problem("link", str(error)))
    return links, problems


def _link_reader(link: form.Link) -> Callable[[Record], IdentityLink]:
    kind = IdentityKind.Value(f"IDENTITY_KIND_{link.kind.upper()}")
    read, read_customer = _reader(link.value, key=True), _reader(link.customer_id, key=True)

    def identity(record: Record) -> IdentityLink:
        value = _required(read(record), link.value)
        if kind == IdentityKind.IDENTITY_KIND_EMAIL_HASH and not _HASH.fullmatch(value):
            value = sha256(value.lower().encode()).hexdigest()
        return IdentityLink(kind, value, _required(read_customer(record), link.customer_id))

    return identity


def _kept(interaction: Interaction, record: Record) -> Interaction:
    """Return what is sent of a row with problems: whatever could be read, and where it comes from."""
    told = {FILE: record.file, LINE: str(record.line), ROW: record.raw}
    for key, text in told.items():
        if text:
            interaction.attributes[key] = _CONTROL.sub(" ", text)[:_ATTRIBUTE_LIMIT]
    return interaction


# -- values ----------------------------------------------------------------------------------------------------------


def getter(path: str) -> Getter:
    """Return a function that gives what a record holds at a path, or None.

    The parts of a path are divided by dots; keys that have dots in them are found too, the longest first.
    """
    facts: dict[str, Getter] = {
        "$file": lambda record: record.file,
        "$line": lambda record: record.line,
        "$position": lambda record: record.position,
        "$digest": lambda record: record.digest,
    }
    return facts.get(path) or (lambda record: find(record.content, path))


def find(content: Any, path: str) -> Any:
    """Return what stands at the path in objects and lists, or None."""
    if isinstance(content, Mapping):
        if path in content:
            return content[path]
        end = path.rfind(".")
        while end > 0:
            inner = content.get(path[:end])
            if inner is not None:
                found = find(inner, path[end + 1 :])
                if found is not None:
                    return found
            end = path.rfind(".", 0, end)
    elif isinstance(content, list):
        index, _, rest = path.partition(".")
        if index.isdecimal() and int(index) < len(content):
            return find(content[int(index)], rest) if rest else content[int(index)]
    return None


def text(content: Any) -> str:
    """Return a value as text: numbers as they were written, truths in lower case, objects as JSON, null as empty."""
    if isinstance(content, str):
        return content.strip()
    if content is None:
        return ""
    if isinstance(content, bool):
        return str(content).lower()
    if isinstance(content, int):
        return str(content)
    if isinstance(content, Decimal):
        return f"{content:f}" if abs(content.adjusted()) < _MOST_DIGITS else str(content)
    return _AS_JSON.encode(content).decode()


def _reader(value: form.Value, *, key: bool = False) -> Reader:
    """Return a function that reads a value as text, empty where there is none.

    As a key, different values never come to the same text.

    It raises:
        BadValueError: the table lacks it.
    """
    read = _raw_reader(value, key=key)
    table, default, otherwise = value.table, value.default or "", value.otherwise
    if table is None:
        return lambda record: read(record) or default

    def look_up(record: Record) -> str:
        found = read(record)
        if found in table:
            return table[found]
        if not found:
            return default
        if otherwise is None:
            raise BadValueError(f"the table does not have {found!r:.100}")
        return otherwise

    return look_up


def _raw_reader(value: form.Value, *, key: bool) -> Reader:
    if value.value is not None:
        constant = value.value
        return lambda _: constant
    gets = [getter(path) for path in value.paths]
    if len(gets) == 1:
        (only,) = gets
        return lambda record: text(only(record))
    if value.first:
        return lambda record: next(filter(None, (text(get(record)) for get in gets)), "")
    if key:
        return lambda record: _key([text(get(record)) for get in gets], value.join)
    return lambda record: value.join.join(filter(None, (text(get(record)) for get in gets)))


def _key(parts: Sequence[str], separator: str) -> str:
    # What divides the parts is marked where it is a part's own; a separator holds no percent sign, letter or digit.
    marked = separator[0]
    mark = f"%{ord(marked):02X}"
    marked_parts = [part.replace("%", "%25").replace(marked, mark) for part in parts]
    return separator.join(marked_parts) if any(parts) else ""


def _condition(when: Mapping[str, form.Condition]) -> Callable[[Record], bool]:
    tests = [(getter(path), _test(condition)) for path, condition in when.items()]
    return lambda record: all(test(text(get(record))) for get, test in tests)


def _test(condition: form.Condition) -> Callable[[str], bool]:
    tests: list[Callable[[str], bool]] = []
    if condition.is_ is not None:
        tests.append(frozenset(condition.is_).__contains__)
    if condition.not_ is not None:
        barred = frozenset(condition.not_)
        tests.append(lambda found: found not in barred)
    if condition.empty is not None:
        wanted = condition.empty
        tests.append(lambda found: (not found) is wanted)
    if condition.matches is not None:
        pattern = re.compile(condition.matches)
        tests.append(lambda found: pattern.search(found) is not None)
    return lambda found: all(test(found) for test in tests)


def decimal_reader(value: form.Number) -> Callable[[Record], Decimal | None]:
    """Return a function that reads a number.

    It raises:
        BadValueError: it is no number.
    """
    read = _reader(value)
    point, group = re.escape(value.decimal), re.escape(value.thousands)
    whole = rf"(?:\d+|\d{{1,3}}(?:{group}\d{{3}})+)?" if group else r"\d*"
    digits = re.compile(rf"[+-]?{whole}(?:{point}\d+)?(?:[eE][+-]?\d{{1,2}})?")

    def number(record: Record) -> Decimal | None:
        # A space that must not break groups digits too.
        found = read(record).replace("\u00a0", " ").replace("\u202f", " ")
        if not found:
            return None
        plain = found.replace(value.thousands, "") if value.thousands else found
        try:
            return Decimal(plain.replace(value.decimal, ".") if digits.fullmatch(found) else "")
        except InvalidOperation:
            raise BadValueError(f"{found!r:.60} is no number such as {_example(value)}") from None

    return number


def _example(value: form.Number) -> str:
    return f"1{value.thousands}234{value.decimal}5"


# -- fields ----------------------------------------------------------------------------------------------------------


def _setters(fields: form.Fields) -> Iterator[Setter]:
    for name in form.REQUIRED:
        value = getattr(fields, name)
        yield _REQUIRED_FIELDS[name](value) if value else _lacking(name)
    yield _kind(fields.customer_kind or form.Value(value="buyer"))
    for name, make in _OPTIONAL_FIELDS.items():
        value = getattr(fields, name)
        if value:
            yield make(value)
    for rating in fields.ratings or ():
        yield _rating(rating)
    # The first to set an attribute wins.
    for key, value in (fields.attributes or {}).items():
        yield _attribute(key, value)
    for each in fields.attributes_from or ():
        yield _attributes(each)


def _lacking(name: str) -> Setter:
    def put(_record: Record, _interaction: Interaction, problems: Problems) -> None:
        problems.append(Problem(name, "no rule sets it for this row"))

    return put


def _guarded(name: str, put: Callable[[Record, Interaction], None]) -> Setter:
    def guarded(record: Record, interaction: Interaction, problems: Problems) -> None:
        try:
            put(record, interaction)
        except (BadValueError, ValueError) as error:
            problems.append(Problem(name, str(error)))

    return guarded


def _required(found: str, value: form.Value) -> str:
    if not found:
        raise BadValueError(f"nothing in {' and '.join(value.paths)}")
    return found


def _text_setter(name: str, value: form.Value, *, required: bool) -> Setter:
    read = _reader(value, key=name.endswith("_id"))
    parts = [getter(path) for path in value.from_ or ()]

    def put(record: Record, interaction: Interaction) -> None:
        if required and name == "interaction_id":
            for get, path in zip(parts, value.from_ or (), strict=True):
                # With a part missing, different rows would have the same id.
                if value.default is None and not text(get(record)):
                    raise BadValueError(f"nothing in {path}")
        found = read(record)
        setattr(interaction, name, _required(found, value) if required else found)

    return _guarded(name, put)


def _customer(value: form.Value) -> Setter:
    read = _reader(value, key=True)

    def put(record: Record, interaction: Interaction) -> None:
        interaction.customer.customer_id = _required(read(record), value)

    return _guarded("customer_id", put)


def _kind(value: form.Value) -> Setter:
    read = _enum(value, CustomerKind.DESCRIPTOR)

    def put(record: Record, interaction: Interaction) -> None:
        interaction.customer.kind = read(record) or _required("", value)  # type: ignore[assignment]

    return _guarded("customer_kind", put)


def _enum_setter(name: str, value: form.Value, enum: EnumDescriptor, *, required: bool = True) -> Setter:
    read = _enum(value, enum)

    def put(record: Record, interaction: Interaction) -> None:
        number = read(record)
        if number:
            setattr(interaction, name, number)
        elif required:
            _required("", value)

    return _guarded(name, put)


def _enum(value: form.Value, enum: EnumDescriptor) -> Callable[[Record], int]:
    read = _reader(value)
    known = show.names(enum)

    def number(record: Record) -> int:
        found = read(record)
        if found and found not in known:
            raise BadValueError(f"{found!r:.60} is not one of {', '.join(known)}; a table can tell what it means")
        return int(known.get(found, 0))

    return number


def _moment(value: form.Time) -> Setter:
    read, understand = _reader(value), times.reader(value.format, value.zone)

    def put(record: Record, interaction: Interaction) -> None:
        moment: datetime = understand(_required(read(record), value))
        interaction.occurred_at.FromDatetime(moment.astimezone(UTC).replace(tzinfo=None))

    return _guarded("occurred_at", put)


def _verbatim(words: form.Words) -> Setter:
    read = _reader(words.text)
    language = _reader(words.language) if words.language else None

    def put(record: Record, interaction: Interaction) -> None:
        found = read(record)
        if found:
            interaction.verbatim.text = found
            if language:
                interaction.verbatim.language = language(record)

    return _guarded("verbatim", put)


def _rating(rating: form.RatingOf) -> Setter:
    read = decimal_reader(rating.value)
    convert = _conversion(rating)

    def put(record: Record, interaction: Interaction) -> None:
        found = read(record)
        if found is None:
            return
        made = Rating(metric=rating.number, value=convert(found), name=rating.name)  # type: ignore[arg-type]
        if rating.scale:
            made.scale_min, made.scale_max = rating.scale
        interaction.ratings.append(made)

    return _guarded(f"ratings ({rating.name or rating.metric})", put)


def _conversion(rating: form.RatingOf) -> Callable[[Decimal], float]:
    """Return the function from the file's scale to the metric's: in proportion, whole numbers, half rounded up."""
    if rating.from_scale is None:
        return float
    first, last = map(Decimal, map(str, rating.from_scale))
    scale = RatingMetric.DESCRIPTOR.values_by_number[rating.number].GetOptions().Extensions[interaction_pb2.scale]

    def convert(found: Decimal) -> float:
        if not min(first, last) <= found <= max(first, last):
            raise BadValueError(f"{found} is not between {float(first):g} and {float(last):g}")
        exact = scale.lowest + (found - first) * (scale.highest - scale.lowest) / (last - first)
        return float(exact.quantize(Decimal(1), ROUND_HALF_UP))

    return convert


def _amount(money: form.MoneyOf) -> Setter:
    read, currency = decimal_reader(money.value), _reader(money.currency)

    def put(record: Record, interaction: Interaction) -> None:
        found = read(record)
        if found is not None:
            interaction.amount.amount = f"{found:f}"
            interaction.amount.currency_code = currency(record)

    return _guarded("amount", put)


def _referral(referral: form.ReferralOf) -> Setter:
    direction = _enum(referral.direction, ReferralDirection.DESCRIPTOR)
    other = _reader(referral.other_customer_id, key=True) if referral.other_customer_id else None

    def put(record: Record, interaction: Interaction) -> None:
        number = direction(record)
        if number:
            interaction.referral.direction = number  # type: ignore[assignment]
            if other:
                interaction.referral.other_customer_id = other(record)

    return _guarded("referral", put)


def _attribute(key: str, value: form.Value) -> Setter:
    read = _reader(value)

    def put(record: Record, interaction: Interaction) -> None:
        found = read(record)
        if found:
            interaction.attributes[key] = found

    return _guarded(f"attributes.{key}", put)


def _attributes(origin: form.AttributesOf) -> Setter:
    get = (lambda record: record.content) if origin.from_ == form.WHOLE_ROW else getter(origin.from_)
    left_out = frozenset(origin.except_)

    def put(record: Record, interaction: Interaction) -> None:
        for key, value in _entries(get(record), ""):
            if key in left_out or key.partition(".")[0] in left_out:
                continue
            name, found = origin.prefix + key, text(value)
            if found and name not in interaction.attributes:
                interaction.attributes[name] = found

    return _guarded(f"attributes from {origin.from_}", put)


def _entries(content: Any, outer: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        name = f"{outer}{key}"
        if isinstance(value, Mapping):
            yield from _entries(value, f"{name}.")
        else:
            yield name, value


_REQUIRED_FIELDS: Mapping[str, Callable[[Any], Setter]] = {
    "source": lambda value: _text_setter("source", value, required=True),
    "interaction_id": lambda value: _text_setter("interaction_id", value, required=True),
    "touchpoint": lambda value: _text_setter("touchpoint", value, required=True),
    "customer_id": _customer,
    "channel": lambda value: _enum_setter("channel", value, Channel.DESCRIPTOR),
    "occurred_at": _moment,
}
_OPTIONAL_FIELDS: Mapping[str, Callable[[Any], Setter]] = {
    "episode_id": lambda value: _text_setter("episode_id", value, required=False),
    "verbatim": _verbatim,
    "amount": _amount,
    "outcome": lambda value: _enum_setter("outcome", value, Outcome.DESCRIPTOR, required=False),
    "referral": _referral,
}
