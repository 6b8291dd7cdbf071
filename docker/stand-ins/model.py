"""A model for scripts/docker_check.py: says twenty words by OpenAI's protocol, one every quarter of
a second."""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Model(BaseHTTPRequestHandler):
    """Answers each question alike."""

    def do_POST(self) -> None:
        """Streams the words."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for number in range(20):
            self._send({"delta": {"content": f"word{number} "}, "finish_reason": None})
            time.sleep(0.25)
        self._send({"delta": {}, "finish_reason": "stop"})
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, choice: dict[str, object]) -> None:
        self.wfile.write(
            b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"
        )
        self.wfile.flush()


# within a network of containers
ThreadingHTTPServer(("0.0.0.0", 9000), Model).serve_forever()  # noqa: S104
