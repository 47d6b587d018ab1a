"""A page on this machine that asks a person which of two images is better, until every pair has an answer."""

import json
import os
import sys
import threading
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from diffpref.people.labelling import TRAIN_AGAIN, Labelling
from diffpref.people.pairs import TYPES

ADDRESS = "127.0.0.1"
LONGEST = 4096  # bytes of a request's body
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class LabelServer(ThreadingHTTPServer):
    """Answers on this machine alone; port 0 takes any free port."""

    timeout = 0.1  # seconds between looks at the clock
    # On Windows this would let two servers share a port.
    allow_reuse_address = os.name == "posix"

    def __init__(self, labelling: Labelling, port: int) -> None:
        if port and not 1024 <= port <= 65535:
            raise ValueError(f"port must be in 1024..65535, or 0 for any free one, got {port}.")
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as problem:
            message = f"port {port} cannot be used ({problem.strerror}): take another with --port, 0 for any free one."
            raise ValueError(message) from None
        self.labelling = labelling
        self.page = Path(__file__).with_name("page.html").read_bytes()
        self.hosts = [f"{ADDRESS}:{self.server_port}", f"localhost:{self.server_port}"]

    def ask(self) -> None:
        """Serves the page until the labelling is over."""
        while not self.labelling.over():
            self.handle_request()

    def handle_error(self, request: object, client_address: object) -> None:
        """Our bugs only: a browser that goes away in the middle of an image is none."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    """The page, its state, the images of pairs.json and nothing else; answers from the page and nobody else."""

    server: LabelServer
    timeout = 30  # seconds without a byte, after which a connection is dropped

    def do_GET(self) -> None:
        labelling = self.server.labelling
        if self._foreign():
            return
        if self.path == "/":
            self._send(200, self.server.page, "text/html; charset=utf-8")
        elif self.path == "/state":
            self._reply(200, labelling.state())
        elif (image := labelling.images.get(self.path)) is not None and image.is_file():
            self._send(200, image.read_bytes(), TYPES[image.suffix.lower()])
        else:
            self._reply(404, {"problem": "there is no such page or image."})

    def do_POST(self) -> None:
        labelling = self.server.labelling
        if self._foreign():
            return
        if self.headers["Origin"] not in [f"http://{host}" for host in self.server.hosts]:
            self._reply(403, {"problem": "answers are taken from this page only."})
            return
        if self.headers.get_content_type() != "application/json":
            self._reply(415, {"problem": "answers must be application/json."})
            return
        length = self.headers["Content-Length"] or ""
        if not length.isdecimal() or int(length) > LONGEST:
            self._reply(413, {"problem": f"an answer must have a length of at most {LONGEST} bytes."})
            return
        try:
            body = json.loads(self.rfile.read(int(length)))
            if not isinstance(body, dict):
                raise ValueError(f"an answer must be a JSON object, got {body!r}.")
            if body.get("token") != labelling.token:
                self._reply(409, {"problem": "the labelling was started again; reload the page."})
                return
            if self.path == "/answer":
                labelling.answer(body.get("id"), body.get("answer"))
            elif self.path == "/hold":
                labelling.hold()
            elif self.path != "/finish":
                self._reply(404, {"problem": "there is no such page."})
                return
        except ValueError as problem:
            self._reply(400, {"problem": str(problem)})
            return
        except OSError as problem:
            self._reply(500, {"problem": f"the answer could not be written: {problem}."})
            return
        self._reply(200, {"summary": labelling.summary()})
        if self.path == "/finish":
            labelling.finish()

    def _foreign(self) -> bool:
        """Whether the request was refused: another site's name that leads to this machine must not read the page."""
        if self.headers["Host"] in self.server.hosts:
            return False
        where = f"open http://{self.server.hosts[0]}/ (through an ssh tunnel, with the same port on both ends)."
        self._reply(403, {"problem": where})
        return True

    def _reply(self, status: int, value: object) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": content_type, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal shows the address and the end."""


def serve(folder: Path, *, port: int, annotator: str, open_browser: bool, then: str = TRAIN_AGAIN) -> None:
    """Asks until every pair has the annotator's answer, the page says finish, or Ctrl-C; every answer is kept at once.

    Args:
        port: in 1024..65535, or 0 for any free one.
        annotator: a name for labels.NAME.json, or "" for labels.json.
        then: what to do after the last answer.
    """
    labelling = Labelling(folder, annotator, then)
    if not labelling.left():
        print(f"{labelling.summary()}\nTo answer again, delete {labelling.path}.")
        return
    with LabelServer(labelling, port) as server:
        address = f"http://{server.hosts[0]}/"
        print(f"{len(labelling.answers)} of {len(labelling.pairs)} pairs are answered. Compare the images at\n")
        print(f"  {address}\n")
        if open_browser and _has_screen():
            # In a thread: some browsers return only when they are closed.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        else:
            print(f"From another machine: ssh -L {server.server_port}:{server.hosts[0]} and this machine's name.")
        print("Ctrl-C stops; no answer is lost.", flush=True)
        try:
            server.ask()
        finally:
            print(f"\n{labelling.summary()}", flush=True)


def _has_screen() -> bool:
    """Whether a browser would have a window; without one, Python may start a text browser in this terminal."""
    return sys.platform in ("win32", "darwin") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
