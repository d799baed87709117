"""Run NATS in the foreground: `python -m infra.nats --data DIR --port N --monitor-port M`."""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
MAX_MEMORY_STORE_BYTES = 256 * 1024 * 1024


def configuration(data: Path, *, port: int, monitor_port: int) -> str:
    """The server's configuration file."""
    store = json.dumps(str(data))
    return f"""\
server_name: recorrido
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitor_port}"
max_payload: {MAX_PAYLOAD_BYTES}
# The supervisor says who and when.
logtime: false
jetstream {{
  store_dir: {store}
  # An ack of a stream means it is on disk: a consumer may forget what it has sent here.
  sync_interval: always
  max_memory_store: {MAX_MEMORY_STORE_BYTES}
}}
"""


def program() -> str | None:
    """Path of `nats-server`: the wheel's, beside our interpreter, else the machine's."""
    beside = Path(sys.executable).parent / "nats-server"
    return str(beside) if beside.exists() else shutil.which("nats-server")


def main() -> NoReturn:
    """Become the server; the process ends with a line that says why where that fails."""
    parser = argparse.ArgumentParser(prog="infra.nats", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="data directory; made on the first start")
    parser.add_argument("--port", type=int, required=True, help="client port on 127.0.0.1")
    parser.add_argument("--monitor-port", type=int, required=True, help="monitoring port (HTTP) on 127.0.0.1")
    options = parser.parse_args()
    server = program()
    if server is None:
        sys.exit("cannot find nats-server; run `make setup`")
    data = options.data.absolute()
    data.mkdir(parents=True, exist_ok=True)
    file = data / "nats.conf"
    file.write_text(configuration(data, port=options.port, monitor_port=options.monitor_port))
    os.execv(server, [server, "--config", str(file)])  # noqa: S606 - the server takes our place


if __name__ == "__main__":
    main()
