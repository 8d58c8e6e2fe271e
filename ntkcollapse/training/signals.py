"""SIGINT, SIGTERM and what a scheduler listens to, as a flag that training looks at between steps."""

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

    So are SIGUSR1 and SIGUSR2 where somebody handles them: by these, schedulers say that time is up. The handlers of
    before are put back on leaving. Outside the main thread, where Python allows none, nothing is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handled = [s for s in (signal.SIGUSR1, signal.SIGUSR2) if callable(signal.getsignal(s))]
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, *handled)}

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
