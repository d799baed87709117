"""The mapping file: how rows of somebody's file become interactions.

A mapping is YAML. Its form is this module's classes; `schemas/import-mapping.schema.json` is the same as JSON Schema,
for editors. `docs/import.md` tells it to people.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from google.protobuf.descriptor import EnumDescriptor
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from recorrido.ingest.v1.interaction_pb2 import Channel, CustomerKind, Outcome, RatingMetric, ReferralDirection
from services.cli import show, yamlfiles
from services.cli.importing.times import offset

SCHEMA = Path(__file__).parents[1] / "schemas/import-mapping.schema.json"
SCHEMA_ID = "urn:recorrido:schema:import-mapping:1"
#: Paths that begin with it are about the row itself: `$file`, `$line`, `$position`, `$digest`.
OF_THE_ROW = "$"
#: Stands for the row as a whole.
WHOLE_ROW = "*"
ROW_FACTS = ("$file", "$line", "$position", "$digest")


_BETWEEN = r"^[^%0-9A-Za-z]+$"


class Form(BaseModel):
    """A part of the file: nothing unknown in it, nothing converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _text(content: Any) -> Any:
    # A number is written as it stands; `yes` and `no` are truths in YAML, and were likely meant as words.
    if isinstance(content, bool):
        raise ValueError(f"{str(content).lower()} is a truth in YAML; put the word meant in quotes")  # noqa: TRY004
    return str(content) if isinstance(content, int | float) else content


Text = Annotated[str, BeforeValidator(_text, json_schema_input_type=str | float)]
Table = Annotated[
    dict[Text, Text],
    BeforeValidator(
        lambda content: {_text(key): value for key, value in content.items()} if isinstance(content, dict) else content
    ),
]


def _path(path: str) -> str:
    if path.startswith(OF_THE_ROW) and path not in ROW_FACTS:
        raise ValueError(f"{path!r} is nothing of a row; there are {', '.join(ROW_FACTS)}")
    if not path:
        raise ValueError("a column or path, not empty")
    return path


Path_ = Annotated[str, AfterValidator(_path)]
Paths = Annotated[
    list[Path_],
    Field(min_length=1),
    BeforeValidator(lambda content: [content] if isinstance(content, str) else content),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]


class Value(Form):
    """Where a value comes from: one of `from`, `first` and `value`."""

    from_: Paths | None = Field(default=None, alias="from", description="A column or path; several are joined.")
    first: Paths | None = Field(default=None, description="The first of these columns or paths that is not empty.")
    value: Text | None = Field(default=None, description="The same for every row.")
    join: str = Field(default="/", pattern=_BETWEEN, description="What stands between the values of several columns.")
    table: Table | None = Field(default=None, description="What each value in the file means here.")
    otherwise: Text | None = Field(
        default=None, description="For values not in the table; without it such a row is bad."
    )
    default: Text | None = Field(default=None, description="For a row where there is no value.")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(each is not None for each in (self.from_, self.first, self.value)) != 1:
            raise ValueError("exactly one of 'from', 'first' and 'value'")
        if self.otherwise is not None and self.table is None:
            raise ValueError("'otherwise' needs a 'table'")
        if self.value is not None and (self.table or self.default is not None):
            raise ValueError("a 'value' is the same for every row: it has no 'table' and no 'default'")
        return self

    @property
    def paths(self) -> list[str]:
        return self.from_ or self.first or []

    def possible(self) -> Iterator[tuple[str, str]]:
        """Yield the results that the mapping itself names, each with its place."""
        if self.value is not None:
            yield "value", self.value
        for key, result in (self.table or {}).items():
            yield f"table.{key}", result
        if self.otherwise is not None:
            yield "otherwise", self.otherwise
        if self.default is not None:
            yield "default", self.default


class Time(Value):
    """A time. One without an offset of its own needs a `zone`."""

    format: str = Field(
        default="iso", description="iso, unix, unix_ms, or a pattern as strptime has it, such as %d.%m.%Y %H:%M."
    )
    zone: str | None = Field(
        default=None, description="IANA name, such as Europe/Ljubljana, or offset, such as +02:00."
    )

    @model_validator(mode="after")
    def _understood(self) -> Self:
        if self.format not in {"iso", "unix", "unix_ms"}:
            if "%" not in self.format:
                raise ValueError(f"format: {self.format!r} is neither iso, unix, unix_ms nor a pattern with %")
            if "%z" not in self.format and self.zone is None:
                raise ValueError("zone: is missing; the format has no %z")
        if self.zone is not None and offset(self.zone) is None:
            try:
                ZoneInfo(self.zone)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise ValueError(
                    f"zone: {self.zone!r} is no IANA time zone known on this machine (system package tzdata) "
                    "and no offset such as +02:00"
                ) from None
        return self


class Number(Value):
    """A number as the file writes it."""

    decimal: Literal[".", ","] = Field(default=".", description="What stands before the decimals.")
    thousands: Literal["", ".", ",", " ", "'"] = Field(default="", description="What groups the digits.")

    @model_validator(mode="after")
    def _different(self) -> Self:
        if self.decimal == self.thousands:
            raise ValueError("'decimal' and 'thousands' must differ")
        return self


def _short(content: Any) -> Any:
    """A column or path alone, or several, stand for `{from: …}`."""
    return {"from": content} if isinstance(content, str | list) else content


def _names_of(enum: EnumDescriptor) -> Callable[[Value], Value]:
    known = show.names(enum)

    def check(value: Value) -> Value:
        for place, result in value.possible():
            if result and result not in known:
                raise ValueError(f"{place}: {result!r} is not one of {', '.join(known)}")
        return value

    return check


_Several = Annotated[list[str], Field(min_length=1)]
AValue = Annotated[Value, BeforeValidator(_short, json_schema_input_type=str | _Several | Value)]
ATime = Annotated[Time, BeforeValidator(_short, json_schema_input_type=str | _Several | Time)]
ANumber = Annotated[Number, BeforeValidator(_short, json_schema_input_type=str | _Several | Number)]
AChannel = Annotated[AValue, AfterValidator(_names_of(Channel.DESCRIPTOR))]
AKind = Annotated[AValue, AfterValidator(_names_of(CustomerKind.DESCRIPTOR))]
AnOutcome = Annotated[AValue, AfterValidator(_names_of(Outcome.DESCRIPTOR))]
ADirection = Annotated[AValue, AfterValidator(_names_of(ReferralDirection.DESCRIPTOR))]


class Words(Form):
    """What the customer said."""

    text: AValue
    language: AValue | None = Field(default=None, description="ISO 639-1; left out, it is found later.")


Bounds = Annotated[list[float], Field(min_length=2, max_length=2, description="The lowest and the highest value.")]


class RatingOf(Form):
    """An answer on a scale; a row without a value has no rating."""

    metric: Literal["nps", "csat", "ces", "custom"]
    value: ANumber
    name: Text = Field(default="", description="For a custom scale.")
    scale: Bounds | None = Field(default=None, description="Of a custom scale: its bounds.")
    from_scale: Bounds | None = Field(
        default=None,
        description=(
            "The file's scale, where it is not the metric's own (nps 0 to 10, csat 1 to 5, ces 1 to 7): its values "
            "are converted in proportion and rounded half up. [5, 1] is a scale where 1 is best."
        ),
    )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        custom = self.metric == "custom"
        if custom and not (self.name and self.scale):
            raise ValueError("a custom rating needs its 'name' and 'scale'")
        if not custom and (self.name or self.scale):
            raise ValueError(f"'name' and 'scale' are for custom ratings; {self.metric} has its own scale")
        if custom and self.from_scale:
            raise ValueError("a custom rating has the file's own scale: it takes no 'from_scale'")
        if self.scale and self.scale[0] >= self.scale[1]:
            raise ValueError("scale: the first bound must be the lower one")
        if self.from_scale and self.from_scale[0] == self.from_scale[1]:
            raise ValueError("from_scale: the bounds must differ")
        return self

    @property
    def number(self) -> int:
        return int(RatingMetric.Value(f"RATING_METRIC_{self.metric.upper()}"))


class MoneyOf(Form):
    """An amount; a row without a value has none."""

    value: ANumber
    currency: AValue = Field(description="ISO 4217.")


class ReferralOf(Form):
    """Word of mouth; a row without a direction has none."""

    direction: ADirection
    other_customer_id: AValue | None = None


class AttributesOf(Form):
    """The entries of an object as attributes, those of objects within it as `outer.inner`."""

    from_: Path_ = Field(alias="from", description="The path of an object; * is the whole row.")
    prefix: str = ""
    except_: list[str] = Field(default=[], alias="except", description="Entries to leave out, by their names.")


class Fields(Form):
    """The fields of an interaction; a column or path alone, or a list of them, stands for `{from: …}`."""

    source: AValue | None = Field(default=None, description="The system that saw it.")
    interaction_id: AValue | None = Field(default=None, description="Its id in that system; of one or several columns.")
    customer_id: AValue | None = None
    customer_kind: AKind | None = Field(default=None, description="buyer unless said otherwise.")
    touchpoint: AValue | None = None
    channel: AChannel | None = None
    occurred_at: ATime | None = None
    episode_id: AValue | None = Field(default=None, description="Groups what belongs together, such as one order.")
    verbatim: Words | None = None
    ratings: list[RatingOf] | None = None
    amount: MoneyOf | None = None
    outcome: AnOutcome | None = None
    referral: ReferralOf | None = None
    attributes: dict[Text, AValue] | None = None
    attributes_from: (
        list[Annotated[AttributesOf, BeforeValidator(_short, json_schema_input_type=str | AttributesOf)]] | None
    ) = None

    def values(self) -> Iterator[Value]:
        for name in (
            "source",
            "interaction_id",
            "customer_id",
            "customer_kind",
            "touchpoint",
            "channel",
            "occurred_at",
            "episode_id",
            "outcome",
        ):
            value = getattr(self, name)
            if value:
                yield value
        if self.verbatim:
            yield self.verbatim.text
            if self.verbatim.language:
                yield self.verbatim.language
        for rating in self.ratings or ():
            yield rating.value
        if self.amount:
            yield from (self.amount.value, self.amount.currency)
        if self.referral:
            yield self.referral.direction
            if self.referral.other_customer_id:
                yield self.referral.other_customer_id
        yield from (self.attributes or {}).values()

    def over(self, other: "Fields") -> "Fields":
        """Return these fields, and those of `other` that are not set here; attributes of both."""
        set_here = {name: getattr(self, name) for name in self.model_fields_set}
        both = {**{name: getattr(other, name) for name in other.model_fields_set}, **set_here}
        if self.attributes and other.attributes:
            both["attributes"] = {**other.attributes, **self.attributes}
        return Fields.model_construct(set(both), **both)


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return text


def _texts(content: Any) -> Any:
    # Only here is a truth meant as one: JSON has them.
    return [
        str(each).lower() if isinstance(each, bool) else each
        for each in (content if isinstance(content, list) else [content])
    ]


_Word = str | float | bool
Texts = Annotated[list[Text], BeforeValidator(_texts, json_schema_input_type=_Word | list[_Word])]


class Condition(Form):
    """What a value must be; all that is said must hold. A row without the value has it empty."""

    is_: Texts | None = Field(default=None, alias="is", description="One of these.")
    not_: Texts | None = Field(default=None, alias="not", description="None of these.")
    empty: bool | None = None
    matches: Annotated[str, AfterValidator(_pattern)] | None = Field(
        default=None, description="A regular expression that is found in it."
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("at least one of 'is', 'not', 'empty' and 'matches'")
        return self


def _condition(content: Any) -> Any:
    return content if isinstance(content, dict) else {"is": content}


When = Annotated[
    dict[
        Path_,
        Annotated[Condition, BeforeValidator(_condition, json_schema_input_type=_Word | list[_Word] | Condition)],
    ],
    Field(
        min_length=1, description="Columns or paths, and what they must be: a value, one of several, or a condition."
    ),
]


class Rule(Form):
    """Sets fields of the rows for which all of `when` holds; of several such rules the later one wins."""

    when: When
    set_: Fields = Field(alias="set")


class Skip(Form):
    """Leaves out the rows for which all of `when` holds."""

    when: When
    reason: str = Field(default="", description="Told in the summary.")


class Link(Form):
    """Says, where all of `when` holds, that an identity is a customer's, whether the row is an interaction or not."""

    when: When
    kind: Literal["anonymous_id", "email_hash", "loyalty_card", "device", "other"]
    value: AValue = Field(description="The identity; for email_hash the address, which is hashed here, or its hash.")
    customer_id: AValue


class CsvOptions(Form):
    """How the file is written, where that is not to be found by looking at it."""

    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        default=None, description="Found by the columns of the mapping when left out."
    )
    encoding: str | None = Field(
        default=None, description="By the byte order mark when left out, else UTF-8; such as cp1250 or latin-1."
    )
    quote: Annotated[str, Field(max_length=1)] = Field(default='"', description="Empty where nothing is quoted.")
    columns: list[str] | None = Field(
        default=None, min_length=1, description="Their names, where no header line tells."
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.encoding is not None:
            try:
                "".encode(self.encoding)
            except LookupError:
                raise ValueError(f"encoding: {self.encoding!r} is not known") from None
        if self.columns and len(set(self.columns)) < len(self.columns):
            raise ValueError("columns: a name stands twice")
        return self


Format = Literal["csv", "tsv", "jsonl", "segment", "cloudevents", "xes"]

#: What a format's own specification says, for what a mapping leaves open.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    # https://segment.com/docs/connections/spec/common/
    "segment": {
        "source": {"value": "segment"},
        "interaction_id": "messageId",
        "customer_id": "customerId",
        "touchpoint": {"first": ["event", "name", "type"]},
        "occurred_at": "timestamp",
        "attributes_from": ["properties"],
    },
    # https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md: source and id name an event.
    "cloudevents": {
        "source": "source",
        "interaction_id": "id",
        "touchpoint": "type",
        "customer_id": "subject",
        "occurred_at": "time",
    },
    # IEEE 1849: extensions Concept, Time and Lifecycle. An event has no id of its own but its place in its trace.
    "xes": {
        "interaction_id": ["trace.concept:name", "$position"],
        "episode_id": "trace.concept:name",
        "touchpoint": "event.concept:name",
        "occurred_at": "event.time:timestamp",
    },
}
#: `identify` is how Segment tells who an anonymous visitor is.
SEGMENT_LINKS = [
    {
        "when": {"type": "identify", "userId": {"empty": False}, "anonymousId": {"empty": False}},
        "kind": "anonymous_id",
        "value": "anonymousId",
        "customer_id": "userId",
    }
]
REQUIRED = ("source", "interaction_id", "customer_id", "touchpoint", "channel", "occurred_at")


class ImportMapping(Form):
    """How the rows of a file become interactions."""

    version: Literal[1] = 1
    format: Format
    csv: CsvOptions | None = Field(default=None, description="For csv and tsv.")
    interaction: Fields
    rules: list[Rule] = []
    skip: list[Skip] = []
    links: list[Link] | None = Field(default=None, description="Who is behind a device, a card or an anonymous id.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.csv and self.format not in {"csv", "tsv"}:
            raise ValueError(f"csv: is for the formats csv and tsv, not {self.format}")
        set_somewhere = {*self.fields.model_fields_set, *(n for rule in self.rules for n in rule.set_.model_fields_set)}
        lacking = [name for name in REQUIRED if name not in set_somewhere]
        if lacking:
            raise ValueError("; ".join(f"interaction.{name}: is missing" for name in lacking))
        return self

    @property
    def fields(self) -> Fields:
        """The fields, with what the format says by itself."""
        return self.interaction.over(Fields.model_validate(DEFAULTS.get(self.format, {})))

    @property
    def all_links(self) -> list[Link]:
        """The links, with those that the format says by itself where the mapping says none."""
        if self.links is None and self.format == "segment":
            return [Link.model_validate(each) for each in SEGMENT_LINKS]
        return self.links or []

    def paths(self) -> set[str]:
        """Return every column or path that is looked at, but those of the row itself."""
        values = [value for fields in (self.fields, *(rule.set_ for rule in self.rules)) for value in fields.values()]
        values += [value for link in self.all_links for value in (link.value, link.customer_id)]
        conditions: list[dict[str, Condition]] = [each.when for each in self.rules]
        conditions += [each.when for each in self.skip]
        conditions += [each.when for each in self.all_links]
        named = {path for value in values for path in value.paths}.union(*conditions)
        return {path for path in named if not path.startswith(OF_THE_ROW)}


def load(path: Path) -> ImportMapping:
    """Read a mapping.

    Raises:
        CommandError: the file cannot be read, is not YAML or breaks the form; every problem is told with its place.
    """
    content = yamlfiles.read(path)
    try:
        return ImportMapping.model_validate(content)
    except ValidationError as error:
        problems = [yamlfiles.problem(each, _KEYS, _PATTERNS) for each in error.errors(include_url=False)]
    raise yamlfiles.refusal(path, "mapping", problems)


#: What they mean, in words.
_PATTERNS = {_BETWEEN: "signs, none of them a letter, a digit or %"}

_FORMS: tuple[type[Form], ...] = (
    *(ImportMapping, Fields, Value, Time, Number, Words, RatingOf, MoneyOf, ReferralOf),
    *(AttributesOf, Condition, Rule, Skip, Link, CsvOptions),
)
_KEYS = {field.alias or name for each in _FORMS for name, field in each.model_fields.items()}


def schema() -> str:
    """Return the form as JSON Schema."""
    content = ImportMapping.model_json_schema(mode="validation")
    heading = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID}
    return json.dumps({**heading, **content}, indent=2) + "\n"
