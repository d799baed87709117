"""Store an example of every event type that has none as it is today.

`PYTHONPATH=.:proto/gen .venv/bin/python tests/golden/write.py`

What is stored stays: it stands for events that some store holds. A type that gained a field gets another file beside
the old one; a file is never written anew.
"""

from services.foundation.events import encode
from tests.support.event_types import GOLDEN, event_types, filled, golden_files


def main() -> None:
    for event_type in event_types():
        example = encode(filled(event_type))
        stored = golden_files(event_type)
        if example in [path.read_bytes() for path in stored]:
            continue
        path = GOLDEN / f"{event_type.type_name}.{len(stored) + 1}.json"
        path.write_bytes(example)
        print(path)  # noqa: T201 - it talks to a person


if __name__ == "__main__":
    main()
