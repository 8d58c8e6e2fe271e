"""SIGINT and SIGTERM as a flag that training looks at between steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """`signum` is that of the signal that came, or None."""

    signum: int | None = None


@contextmanager
def stop_requested() -> Iterator[StopRequest]:
    """While inside, the first SIGINT or SIGTERM is noted; a second one does what it always does.

    Handlers before are put back on leaving. Outside the main thread, where Python allows no handlers, nothing is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def note(signum, frame):
        request.signum = signum
        restore()

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
