"""What part of a history a question looks at."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np

from recorrido.ingest.v1.events import Channel
from services.foundation.errors import InvalidError, Violation
from services.journey.domain.history import Flags, microseconds
from services.journey.domain.naming import unknown
from services.journey.domain.reading import Reading


@dataclass(frozen=True, slots=True)
class Selection:
    """Every condition given holds; None and empty ones are not given."""

    since: datetime | None = None
    until: datetime | None = None
    stage_id: str = ""
    touchpoint_id: str = ""
    channel: Channel = Channel.UNSPECIFIED
    persona_id: str = ""
    source: str = ""
    need_path: str = ""

    def interactions(self, reading: Reading) -> Flags:
        """Return which interactions of the history are meant.

        Raises:
            InvalidError: the map has no such stage, touchpoint or persona.
        """
        self._check(reading)
        history = reading.history
        table = history.interactions
        chosen: Flags = np.ones(len(table), bool)
        if self.since is not None:
            chosen &= table.occurred >= microseconds(self.since)
        if self.until is not None:
            chosen &= table.occurred < microseconds(self.until)
        if self.stage_id:
            chosen &= reading.stage == [s.stage_id for s in reading.map_.stages].index(self.stage_id)
        if self.touchpoint_id:
            ids = [t.touchpoint_id for _, t in reading.touchpoints]
            chosen &= reading.place == ids.index(self.touchpoint_id)
        if self.persona_id:
            number = [p.persona_id for p in reading.map_.personas].index(self.persona_id)
            chosen &= reading.personas[history.customer] == number
        raws = history.vocabulary.touchpoints
        if self.channel is not Channel.UNSPECIFIED:
            chosen &= np.array([raw.channel is self.channel for raw in raws], bool)[table.touchpoint]
        if self.source:
            chosen &= np.array([raw.source == self.source for raw in raws], bool)[table.touchpoint]
        if self.need_path:
            needs = history.vocabulary.needs
            within = [need == self.need_path or need.startswith(f"{self.need_path}/") for need in needs]
            chosen &= np.array(within, bool)[history.need]
        return chosen

    def _check(self, reading: Reading) -> None:
        map_ = reading.map_
        asked = (
            ("stage", self.stage_id, [(s.stage_id, s.name) for s in map_.stages]),
            ("touchpoint", self.touchpoint_id, [(t.touchpoint_id, t.name) for _, t in reading.touchpoints]),
            ("persona", self.persona_id, [(p.persona_id, p.name) for p in map_.personas]),
        )
        wrong = [
            Violation(f"selection.{kind}_id", unknown(map_, kind, given, labels))
            for kind, given, labels in asked
            if given and given not in dict(labels)
        ]
        if wrong:
            raise InvalidError(wrong)
