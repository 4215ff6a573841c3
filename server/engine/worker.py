"""The device-owning thread."""

from __future__ import annotations

import logging
import threading

from pipelines.errors import Error
from server.engine.engine import INTERNAL, Engine

logger = logging.getLogger(__name__)

#: Seconds between turns of an idle engine, so that deadlines act and the heartbeat shows that the thread lives.
IDLE_TURN_S = 0.5
#: Seconds that the step, load or decode at hand gets to end when the server closes.
CLOSE_S = 30.0


class Worker:
    """Turns an engine on a thread of its own: CUDA graphs and tokenizers want exactly one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """The thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Lets the current step end, cancels what is open, and joins the thread.

        A thread that hangs in a call to the device cannot be ended; it is left behind, a daemon, after some patience.
        """
        self._closing = True
        self._engine.wake.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                logger.error("the device thread does not end; leaving it behind")

    def _run(self) -> None:
        engine = self._engine
        try:
            while not self._closing:
                # Cleared before the turn, so that what arrives during it is not slept over.
                engine.wake.clear()
                if not engine.turn():
                    engine.wake.wait(IDLE_TURN_S)
        except Exception:
            # Nothing in the loop may raise; if it does, health must see a dead thread, not a silent one.
            logger.exception("the device thread died")
            engine.close(Error(INTERNAL))
        else:
            engine.close()
