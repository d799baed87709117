"""What holds for all tests."""

import signal

from hypothesis import settings

# The same examples each time: what chance finds today is gone tomorrow. `--hypothesis-profile=default` looks further.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# What a script runs in the background begins with SIGINT ignored, and hands that on to what it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
