"""Flask + pickle + requests: the HTTP server that many labs start with, one thread, one connection per request."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

from .peer import Infer, Ready, ServedPeer
from .policy import Policy

MAX_RETRIES = 3
RETRY_DELAY_S = 1.0
TIMEOUT_S = 10.0


class FlaskPickle(ServedPeer):
    """POST /infer with a pickled observation; the development server that `app.run(threaded=False)` starts."""

    name = "flask-pickle"
    packages = ("flask", "requests")

    @staticmethod
    def serve(directory: Path, ready: Ready) -> None:
        import logging

        import flask
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # A log line per request would count against it.
        app = flask.Flask(__name__)
        policy = Policy()

        def infer() -> flask.Response:
            observation = pickle.loads(flask.request.get_data())
            reply = {"status": "ok", "output": policy.infer(observation)}
            return flask.Response(pickle.dumps(reply), mimetype="application/octet-stream")

        app.add_url_rule("/infer", view_func=infer, methods=["POST"])
        server = make_server("127.0.0.1", 0, app, threaded=False)
        ready(f"http://127.0.0.1:{server.server_port}/infer")
        server.serve_forever()

    def connect(self) -> Infer:
        import requests

        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            for attempt in range(MAX_RETRIES):
                try:
                    response = requests.post(self.address, data=pickle.dumps(observation), timeout=TIMEOUT_S)
                    response.raise_for_status()
                    output: dict[str, Any] = pickle.loads(response.content)["output"]
                    return output
                except requests.RequestException:
                    if attempt == MAX_RETRIES - 1:
                        raise
                    time.sleep(RETRY_DELAY_S)
            raise AssertionError("unreachable")

        return infer
