"""Keys that a run on one machine makes for itself, the first time, and keeps."""

import base64
import os
import secrets
from pathlib import Path

#: What `RECORRIDO_WEBHOOK_KEYS` takes at least.
KEY_BYTES = 32


def webhook_keys(data: Path) -> str:
    """Return the keys that the secrets of webhooks are derived from; nobody else may read the file.

    It stands apart from the event store's directory, so that a copy of that one alone tells no secret.
    """
    place = data / "webhook.keys"
    if not place.exists():
        with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode() + "\n")
    return place.read_text().strip()
