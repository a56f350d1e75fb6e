"""A chat server on loopback that misbehaves as told.

  with server.Server() as s:
      s.script(429, 429, "good")      what the next calls get; afterwards `s.default`
      ... Server's address: s.url
      s.calls                          bodies of the requests, as they came in

A behaviour is a status code, a word (see `_Handler.act`), a function from the request's body to the
text of the answer, or any other text: that is the answer.
"""

import contextlib
import http.server
import json
import socket
import struct
import threading


def criteria_of(body):
    """Criterion ids in the order in which the prompt asks for them."""
    text = body["messages"][-1]["content"][-1]["text"]
    return [line.removeprefix("id: ") for line in text.splitlines() if line.startswith("id: ")]


def good(body):
    """The best score on every criterion, in the form that is asked for."""
    schema = body["response_format"]["json_schema"]["schema"]["properties"]
    best = {"number": 1, "boolean": True, "integer": 5}
    return json.dumps(
        {
            ident: {"reason": "seen", "score": best[entry["properties"]["score"]["type"]]}
            for ident, entry in schema.items()
        }
    )


def poor(body):
    """The worst score on every criterion."""
    schema = body["response_format"]["json_schema"]["schema"]["properties"]
    worst = {"number": 0, "boolean": False, "integer": 1}
    return json.dumps(
        {
            ident: {"reason": "seen", "score": worst[entry["properties"]["score"]["type"]]}
            for ident, entry in schema.items()
        }
    )


class Server:
    def __init__(self, default=good):
        self.default, self.calls, self._script = default, [], []
        self.headers, self.most, self._now = [], 0, 0
        self._lock = threading.Lock()
        self.release = threading.Event()  # ends "slow" answers when the test is over

    def script(self, *behaviours):
        self._script = list(behaviours)

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = _Quiet(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.release.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def next(self, body, headers):
        with self._lock:
            self.calls.append(body)
            self.headers.append(headers)
            return self._script.pop(0) if self._script else self.default

    @contextlib.contextmanager
    def busy(self):
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        yield
        with self._lock:
            self._now -= 1


class _Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        pass  # clients that went away


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Server

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.owner.busy():
            self.act(self.owner.next(body, dict(self.headers)), body)

    def act(self, behaviour, body):
        if isinstance(behaviour, tuple):  # (status, headers)
            status, headers = behaviour
            self.reply(json.dumps({"error": {"message": "as told"}}), status, headers)
        elif isinstance(behaviour, int):
            self.reply(json.dumps({"error": {"message": "as told"}}), behaviour)
        elif behaviour == "slow":
            self.owner.release.wait(30)
        elif behaviour == "cut":  # before a word
            self.hang_up()
        elif behaviour == "cut inside":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"mess')
            self.hang_up()
        elif behaviour == "html":
            self.reply("<html>Bad gateway</html>", kind="text/html")
        elif behaviour == "half json":
            self.reply('{"choices": [')
        elif behaviour == "wrong shape":
            self.reply(json.dumps({"choices": [], "object": "chat.completion"}))
        elif behaviour == "no content":
            self.completion(None)
        elif behaviour == "refusal field":
            self.completion(None, refusal="I will not grade this.")
        elif behaviour == "content filter":
            self.completion("", finish="content_filter")
        elif behaviour == "cut at length":
            self.completion('{"answer": {"reason": "I see that', finish="length")
        else:
            self.completion(behaviour(body) if callable(behaviour) else behaviour)

    def completion(self, text, finish="stop", **more):
        message = {"role": "assistant", "content": text, **more}
        self.reply(
            json.dumps(
                {
                    "id": "x",
                    "object": "chat.completion",
                    "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
                }
            )
        )

    def reply(self, text, status=200, headers=(), kind="application/json"):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def hang_up(self):
        # A reset instead of a tidy end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_):
        pass
