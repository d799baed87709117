"""XES event logs (IEEE 1849-2016), event by event however long a trace is.

A record holds `event`, `trace` and `log`: their attributes by key, those within an attribute as `outer.inner`, the
values of a list as a list. Documents that declare types or entities are refused: nothing is expanded or fetched.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from xml.sax import SAXException, SAXParseException
from xml.sax.handler import ContentHandler
from xml.sax.xmlreader import Locator

from defusedxml import DefusedXmlException
from defusedxml.expatreader import create_parser

from services.cli.importing.records import RECORD_LIMIT, BrokenFileError, Opened, Record, unreadable

_BLOCK = 64 * 1024
#: The parser holds the whole of a text before it tells of it.
_VALUE_LIMIT = 16 * 1024 * 1024
_DEPTH_LIMIT = 64
_VALUES = frozenset({"string", "date", "int", "float", "boolean", "id"})
_NESTS = frozenset({"list", "container"})
#: What a log says of itself but its attributes: samples, classifiers, extensions.
_ASIDE = frozenset({"global", "classifier", "extension"})


def records(source: Opened) -> Iterator[Record]:
    """Yield the events in their order.

    Raises:
        BrokenFileError: it is no well-formed XES; what stood before that was given.
    """
    handler = _Handler(source.path.name)
    # As a log needs no document type, it may have none: there is nothing to be expanded, nested or fetched.
    parser = create_parser(forbid_dtd=True)
    parser.setContentHandler(handler)
    handler.setDocumentLocator(parser)
    try:
        # Without having been fed, an empty document would be taken for a good one.
        parser.feed(b"")
        while block := source.content.read1(_BLOCK):
            handler.silent_bytes += len(block)
            parser.feed(block)
            yield from handler.taken()
            if handler.silent_bytes > _VALUE_LIMIT:
                raise BrokenFileError(f"line {handler.line}: holds a text of more than {_VALUE_LIMIT:,} bytes")
        parser.close()
    except DefusedXmlException:
        raise BrokenFileError("declares a document type or entities, which no log needs: refused") from None
    except SAXParseException as error:
        yield from handler.taken()
        raise BrokenFileError(f"line {error.getLineNumber()}: is no well-formed XML: {error.getMessage()}") from None
    except SAXException as error:
        yield from handler.taken()
        raise BrokenFileError(f"line {handler.line}: is no XES: {error.getMessage()}") from None
    yield from handler.taken()


class _Handler(ContentHandler):
    """Gathers attributes by what they belong to, and a record at the end of each event."""

    def __init__(self, file: str) -> None:
        super().__init__()
        #: Fed to the parser since it last told of anything: it holds a text until that ends.
        self.silent_bytes = 0
        self._file = file
        self._locator: Locator | None = None
        self._records: list[Record] = []
        self._of: dict[str, dict[str, Any]] = {"log": {}, "trace": {}, "event": {}}
        #: What is open now, outermost first: elements, the scopes among them, and the keys of the attributes.
        self._open: list[str] = []
        self._scopes: list[str] = []
        self._keys: list[str] = []
        self._position = 0
        self._begun = 0
        self._size = 0
        self._problem = ""

    @property
    def line(self) -> int:
        return int(self._locator.getLineNumber() or 0) if self._locator else 0

    def taken(self) -> Iterator[Record]:
        """Return the records since the last call."""
        records, self._records = self._records, []
        return iter(records)

    def setDocumentLocator(self, locator: Locator) -> None:  # noqa: N802 - SAX's name
        self._locator = locator

    def characters(self, content: str) -> None:  # noqa: ARG002 - values are XML attributes; text between them is none
        self.silent_bytes = 0

    def startElement(self, name: str, attrs: Any) -> None:  # noqa: N802 - SAX's name
        self.silent_bytes = 0
        kind = name.rpartition(":")[2]
        if not self._open and kind != "log":
            raise SAXException(f"its root is {kind[:40]}, not log")
        if len(self._open) >= _DEPTH_LIMIT:
            raise SAXException(f"elements stand more than {_DEPTH_LIMIT} deep")
        self._open.append(kind)
        if _ASIDE.intersection(self._open):
            return
        if kind in self._of:
            self._begin(kind)
        elif kind in _VALUES or kind in _NESTS:
            self._attribute(kind, attrs)

    def endElement(self, _name: str) -> None:  # noqa: N802 - SAX's name
        self.silent_bytes = 0
        aside = _ASIDE.intersection(self._open)
        kind = self._open.pop()
        if aside:
            return
        if kind in self._of:
            if kind == "event":
                self._end_event()
            elif kind == "trace":
                self._of["trace"], self._position = {}, 0
            self._scopes.pop()
        elif kind in _VALUES or kind in _NESTS:
            self._keys.pop()

    def _begin(self, scope: str) -> None:
        self._scopes.append(scope)
        # What was given away is not to change.
        self._of[scope] = {}
        self._size = 0
        if scope == "trace":
            self._position = 0
        elif scope == "event":
            self._position += 1
            self._begun = self.line
            self._problem = ""

    def _attribute(self, kind: str, attrs: Any) -> None:
        key, value = attrs.get("key", ""), attrs.get("value")
        in_list = "list" in self._open[-3:-1] and self._open[-2] in {"list", "values"}
        self._keys.append("" if in_list else key)
        if not key and not in_list:
            self._problem = self._problem or f"line {self.line}: a {kind} has no key"
            return
        if value is None:
            return
        path = ".".join(filter(None, self._keys))
        self._size += len(path) + len(value)
        if self._size > RECORD_LIMIT:
            self._problem = f"is longer than {RECORD_LIMIT:,} characters"
            return
        held = self._of[self._scopes[-1]]
        if in_list:
            held.setdefault(path, []).append(value)
        else:
            held[path] = value

    def _end_event(self) -> None:
        of = self._of
        if self._problem:
            self._records.append(unreadable(self._file, self._begun, self._position, self._problem, ""))
        else:
            content: Mapping[str, Any] = {"event": of["event"], "trace": of["trace"], "log": of["log"]}
            self._records.append(Record(self._file, self._begun, content, self._position))
        of["event"] = {}
