"""Run PostgreSQL in the foreground: `python -m infra.postgres --data DIR --port N`.

`--scrub` in place of a port: take what was deleted off the disk. The server must be stopped.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from infra.postgres import account, cluster, programs


def main() -> NoReturn:
    """Become the server; the process ends with a line that says why where that fails."""
    parser = argparse.ArgumentParser(prog="infra.postgres", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="data directory; made on the first start")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--port", type=int, help="port on 127.0.0.1")
    task.add_argument("--scrub", action="store_true", help="take what was deleted off the disk, and end")
    options = parser.parse_args()
    data = options.data.absolute()
    data.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = programs.find(data)
        runner = account.able_to_reach(account.choose(data), enter=[data.parent], read=[found.postgres, found.initdb])
        cluster.initialise(data, found, runner)
        cluster.settle(data)
        if options.scrub:
            cluster.scrub(data, found, runner)
            sys.exit(0)
    except (account.AccountError, cluster.ClusterError, programs.ProgramsNotFoundError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    command = cluster.server(data, options.port, found, runner)
    os.execvp(command[0], command)  # noqa: S606 - the server takes our place, so signals and pid are its own


if __name__ == "__main__":
    main()
