"""The supervisor of this machine: a program of its own, called by its name, as a client imports no infrastructure."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "infra.local")
STATUS = (*PROGRAM, "status", "--json")
_ANSWERS_WITHIN_S = 10.0

#: Parts as the supervisor calls them, by what services call them.
_NAMES = {"PostgreSQL": "postgres", "NATS": "nats", "event store": "eventstore"}


def environment(*, colour: bool = False) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "proto/gen"), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    if colour:
        # It writes into our pipe, and we to the terminal.
        found.setdefault("FORCE_COLOR", "1")
    return found


def advice(part: str, address: str, elsewhere: str, detail: str = "") -> str:
    """Return what to do about a part that does not answer: it may be about to be back, or nothing runs here.

    Args:
        part: as services or the supervisor call it.
        address: `host:port` of it, or of the service that needs it.
        elsewhere: how to tell where it is, if it is not on this machine; empty where a service that runs told of it.
        detail: what is told of the failure, which says nothing new of a part that is known not to run.
    """
    run = _status()
    more = f" ({detail})" if detail else ""
    if run is None:
        # On a machine that is too busy to tell, what does not answer may well be about to.
        return f"try again in some seconds{more}; 'recorrido run' starts what does not run here"
    parts = {each["name"]: each for each in run.get("parts", [])}
    here = any(address in each["addresses"].values() for each in parts.values())
    if elsewhere and not here:
        nothing = "" if parts or "data" not in run else f"nothing runs on {run['data']}: "
        return f"{nothing}start the services with 'recorrido run', or {elsewhere}{more}"
    name = _NAMES.get(part, part)
    if not here or name not in parts:
        # It runs elsewhere, as what told of it does, or is part of a service, as a read model is.
        return f"try again in some seconds{more}"
    if (state := parts[name]["state"]) == "ready":
        return f"it runs, so try again; {run['data']}/log/{name}.log tells more{more}"
    if state == "stopped":
        return "it was stopped here, and 'recorrido run' starts it again"
    missing = ", ".join(f"{each['name']} is {each['state']}" for each in parts.values() if each["state"] != "ready")
    return f"'recorrido run' is starting it again, so try again in some seconds ({missing})"


def _status() -> dict[str, Any] | None:
    """Return what runs on this machine, as the supervisor tells it; None where it does not tell, or not in time."""
    try:
        told = subprocess.run(
            STATUS, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=_ANSWERS_WITHIN_S, check=False,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(told.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return found
