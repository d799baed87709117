"""The `recorrido` command, from its first moment on."""

import signal


def main() -> None:
    """Run a command.

    0: done; 1: it failed, and one line on stderr tells why; 2: it was called or set up wrongly; 130: Ctrl-C;
    141: whoever read the output went away.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        # Loading all commands takes a moment, in which there is nothing to stop yet: Python would tell of it at length.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from services.cli import commands  # noqa: PLC0415 - that is what takes the moment

    signal.signal(signal.SIGINT, handler)
    commands.execute()


if __name__ == "__main__":
    main()
