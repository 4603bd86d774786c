"""The way in which a test drives these programs: one JSON object per line in, one per line out.

A step is answered when it is done, so a test knows what has happened without waiting for time to pass. A program ends
when its input does.
"""

import json
import os
import sys


class Steps:
    """The steps that come in on standard input, without ever blocking a program's own loop."""

    def __init__(self):
        os.set_blocking(0, False)
        self.pending = b""
        self.has_ended = False

    def read(self):
        """The steps that have arrived whole."""
        try:
            while True:
                piece = os.read(0, 1 << 16)
                if not piece:
                    self.has_ended = True
                    break
                self.pending += piece
        except BlockingIOError:
            pass
        *lines, self.pending = self.pending.split(b"\n")
        return [json.loads(line) for line in lines if line.strip()]


def answer(**fields):
    """Says that the step that came first of those not answered yet is done."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()
