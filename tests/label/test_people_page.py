"""The labelling page over real HTTP: what it serves, refuses and writes."""

import json
import re
import socket
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from diffpref.files import atomic
from diffpref.people import Pair, labelling, read_labels, unanswered
from diffpref.people.labelling import display_order
from diffpref.people.pairs import label_files, write_answers
from tests.label.people_world import Client, labels, open_page, status


def raw(client: Client, text: str) -> str:
    """The status line of a request that urllib would not send."""
    name, port = client.host.split(":")
    with socket.create_connection((name, int(port)), timeout=10) as connection:
        connection.sendall(text.encode())
        with connection.makefile("rb") as reply:
            return reply.read().split(b"\r\n")[0].decode()


def test_the_page_is_self_contained_and_asks_for_nothing_elsewhere(folder: Path) -> None:
    with open_page(folder) as client:
        page, headers = client.get("/")
    text = page.decode()
    assert (
        headers["Content-Type"] == "text/html; charset=utf-8"
        and "default-src 'none'" in headers["Content-Security-Policy"]
    )
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"// .*", "", text))
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == ["data:,"]


def test_each_side_shows_the_image_it_stands_for(folder: Path) -> None:
    with open_page(folder) as client:
        pairs = client.state()["pairs"]
        for i, pair in enumerate(pairs):
            assert pair["prompt"] == f"prompt {i} <b>&" and sorted(pair["shown"]) == ["first", "second"]
            for source, name in zip(pair["sources"], pair["shown"], strict=True):
                image, headers = client.get(source)
                assert headers["Content-Type"] == "image/png"
                assert image == (folder / f"p{i:05}/{['first', 'second'].index(name)}.png").read_bytes()


def test_sides_are_drawn_by_the_id_and_balanced() -> None:
    orders = [display_order(Pair(f"7-{i}", "", ("a", "b"))) for i in range(1000)]
    assert orders == [display_order(Pair(f"7-{i}", "other", ("c", "d"))) for i in range(1000)]
    swapped = orders.count(["second", "first"])
    assert 420 < swapped < 580  # five standard deviations of a fair coin: 500 +- 79


@pytest.mark.parametrize(
    "path",
    ["/pairs.json", "/labels.json", "/../secret.png", "/image/../../secret.png", "/image/0/first", "/p00000/0.png"],
)
def test_only_listed_images_are_served(folder: Path, path: str) -> None:
    Image.new("L", (1, 1)).save(folder.parent / "secret.png")
    with open_page(folder) as client:
        assert status(client.get, path) == 404
        token = client.state()["token"]
        for escape in ("../../../secret.png", "%2e%2e/secret.png", "0/first/../../../secret.png", "4/first", "0/third"):
            assert (
                raw(client, f"GET /image/{token}/{escape} HTTP/1.1\r\nHost: {client.host}\r\n\r\n").split()[1] == "404"
            )


def test_an_image_that_vanished_is_not_found(folder: Path) -> None:
    with open_page(folder) as client:
        source = client.state()["pairs"][0]["sources"][0]
        for image in folder.glob("p00000/*.png"):
            image.unlink()
        assert status(client.get, source) == 404


def test_the_names_of_other_sites_are_refused(folder: Path) -> None:
    with open_page(folder) as client:
        port = client.host.split(":")[1]
        assert client.get("/", Host=f"localhost:{port}")[0]
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1",
            "localhost:1",
            f"127.0.0.1.evil.example:{port}",
        ):
            assert status(client.get, "/state", Host=host) == 403
            assert status(client.post, "/finish", {"token": client.state()["token"]}, Host=host) == 403
        assert raw(client, "GET /state HTTP/1.0\r\n\r\n").split()[1] == "403"
        assert client.state()


def test_answers_come_from_the_page_only(folder: Path) -> None:
    with open_page(folder) as client:
        body = {"token": client.state()["token"], "id": "0-0", "answer": "first"}
        for origin in ("http://evil.example", "null", "", f"https://{client.host}"):
            assert status(client.post, "/answer", body, Origin=origin) == 403
        assert status(client.post, "/answer", body, Content_Type="text/plain") == 415
        assert status(client.post, "/answer", body, Content_Length="5000") == 413
        assert status(client.post, "/answer", body | {"token": "of an earlier start"}) == 409
        assert status(client.post, "/answer", body | {"id": "0-9"}) == 400
        assert status(client.post, "/answer", body | {"id": ["0-0"]}) == 400
        assert status(client.post, "/answer", body | {"answer": "left"}) == 400
        assert status(client.post, "/answer", body | {"answer": None}) == 400
        assert status(client.post, "/answer", ["no object"]) == 400
        assert status(client.post, "/elsewhere", body) == 404
        assert not label_files(folder)
        assert client.post("/answer", body)["summary"].startswith("1 of 4")
    assert labels(folder) == {"0-0": "first"}


def test_every_answer_is_in_the_file_at_once_and_speaks_of_first_and_second(folder: Path) -> None:
    given = {"0-2": "second", "0-0": "first", "0-1": "first", "0-3": "tie"}
    with open_page(folder) as client:
        # Both orders occur: the file must not depend on them.
        assert len({tuple(pair["shown"]) for pair in client.state()["pairs"]}) == 2
        for i, (name, answer) in enumerate(given.items(), 1):
            client.answer(name, answer)
            assert labels(folder) == dict(list(given.items())[:i])
        client.answer("0-0", "second")
        assert [pair["answer"] for pair in client.state()["pairs"]] == ["second", "first", "second", "tie"]
    assert json.loads((folder / "labels.json").read_text()) == {
        "format": "diffpref-labels-1",
        "annotator": "",
        "labels": given | {"0-0": "second"},
    }
    assert read_labels(folder) == {"0-0": -1.0, "0-1": 1.0, "0-2": -1.0, "0-3": 0.0} and not unanswered(folder)
    assert sorted(file.name for file in folder.iterdir() if file.is_file()) == ["labels.json", "pairs.json"]


def test_a_failing_write_is_told_and_keeps_the_old_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_page(folder) as client:
        client.answer("0-0", "first")
        with monkeypatch.context() as patch:

            def full(*arguments: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(atomic.os, "replace", full)
            assert status(client.answer, "0-1", "first") == 500
        assert [pair["answer"] for pair in client.state()["pairs"]] == ["first", None, None, None]
        assert labels(folder) == {"0-0": "first"}


def test_two_windows_of_one_annotator_keep_each_others_answers(folder: Path) -> None:
    with open_page(folder) as one, open_page(folder) as two:
        one.answer("0-0", "first")
        two.answer("0-1", "tie")
        one.answer("0-2", "second")
    assert labels(folder) == {"0-0": "first", "0-1": "tie", "0-2": "second"}


def test_answers_in_parallel_are_all_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Path, answers: dict[str, str], *, annotator: str) -> None:
        time.sleep(0.03)
        write_answers(path, answers, annotator=annotator)

    monkeypatch.setattr(labelling, "write_answers", slow)
    with open_page(folder) as client:
        threads = [threading.Thread(target=client.answer, args=(f"0-{i}", "first")) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(labels(folder)) == 4
