"""Tests with a Hub that refuses, does not respond, fails or disconnects, on the loopback interface."""

import contextlib
import hashlib
import http.server
import socket
import struct
import threading
import time

import pytest
from safetensors.numpy import save

import keras_residual as kr
from keras_residual.cli import main
from keras_residual.weights import sources

from .test_weights import state_of, tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def endpoint(tmp_path, monkeypatch):
    """Return a function that makes huggingface_hub use a URL as the Hub, with an empty cache."""
    import huggingface_hub
    from huggingface_hub import constants

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sources, "PATIENCE", 0.5)
    huggingface_hub.close_session()

    def use(url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")

    yield use
    huggingface_hub.close_session()


@pytest.fixture
def refusing():
    """Return the URL of a port without a listener."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent():
    """Start a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class Hub(http.server.ThreadingHTTPServer):
    """A repository `someone/net` of files; `breaks` says how often the next answers with a body break off."""

    daemon_threads = True

    def __init__(self, files, status=200):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.status, self.breaks, self.reset, self.asked = files, status, 0, False, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        name = self.path.rpartition("/")[2]
        if "/resolve/" in self.path:  # huggingface_hub asks for something of its own, too
            self.server.asked.append((self.command, name, self.headers.get("Range")))
        content, part = self.server.files.get(name, b""), self.headers.get("Range")
        first = int((part or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if self.server.status != 200:
            self.send_response(self.server.status)
        elif name not in self.server.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_response(206 if part else 200)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        return content[first:]

    def do_GET(self):
        content = self.do_HEAD()
        if not self.server.breaks or not content:
            self.wfile.write(content)
            return
        self.server.breaks -= 1
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        if self.server.reset:
            time.sleep(0.2)  # or the part that was sent would be lost, too
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True


@contextlib.contextmanager
def serving(files, **options):
    with Hub(files, **options) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        yield hub
        hub.shutdown()


def fails(source="someone/net"):
    """Return the error message of a load and the seconds until it was raised."""
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as caught:
        sources.weights_file(source)
    said = str(caught.value)
    assert "\n" not in said
    return said, time.monotonic() - start


def test_refused(endpoint, refusing):
    endpoint(refusing)
    said, seconds = fails()
    assert "cannot be reached" in said
    assert seconds < 5


def test_silent(endpoint, silent):
    endpoint(silent)
    said, seconds = fails()
    assert "cannot be reached" in said
    assert seconds < 5


def test_a_proxy_that_is_not_there(endpoint, refusing, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", refusing)
    monkeypatch.setenv("http_proxy", refusing)
    monkeypatch.setenv("NO_PROXY", "")
    endpoint("http://hub.invalid")
    said, seconds = fails()
    assert "cannot be reached" in said
    assert seconds < 5


def test_a_hub_that_is_down(endpoint):
    with serving({}, status=503) as hub:
        endpoint(hub.url)
        said, seconds = fails()
        assert "cannot be reached" in said
        assert "503" in said
        assert seconds < 5
        assert len(hub.asked) == 1


def test_the_time_one_chose_is_waited(endpoint, silent, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "2")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 2)
    endpoint(silent)
    assert fails()[1] > 1.9


@pytest.fixture
def files():
    model = tiny("ResNet20", seed=1)
    return model, {"model.safetensors": save(state_of(model))}


def load(model):
    return kr.load_weights(model, "someone/net")


def test_without_a_network_the_cache_serves(endpoint, refusing, files):
    model, content = files
    with serving(content) as hub:
        endpoint(hub.url)
        load(model)
    endpoint(refusing)
    assert not load(model).missing


def test_a_download_that_breaks_off_goes_on(endpoint, files, monkeypatch):
    """huggingface_hub resumes the download where it was interrupted."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    model, content = files
    with serving(content) as hub:
        hub.breaks = 1
        endpoint(hub.url)
        assert not load(model).missing
        ranges = [part for command, _, part in hub.asked if command == "GET"]
        assert len(ranges) == 2
        assert ranges[1].startswith("bytes=")


def test_a_download_that_is_cut_is_told_and_begun_again(endpoint, files, tmp_path, capsys):
    model, content = files
    command = ["convert", "someone/net", str(tmp_path / "a.safetensors"), "--model", "ResNet20"]
    with serving(content) as hub:
        hub.breaks, hub.reset = 9, True
        endpoint(hub.url)
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert "run it again" in said
        hub.breaks = 0
        load(model)


def test_a_repository_without_weights(endpoint):
    with serving({"README.md": b"x"}) as hub:
        endpoint(hub.url)
        assert "must contain one of" in fails()[0]


# ------------------------------------------------------------------------------------------ a path or a repository


@pytest.mark.parametrize(
    "source", ["runs/typo", "mine/typo", "./typo/x", "~/typo", "$HOME/typo", "a/b/c", "typo", "a b/c"]
)
def test_a_path_that_is_not_there_is_told_at_once(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(sources, "_fetched", lambda *arguments: pytest.fail("the Hub was asked"))
    assert main(["export", source, "models/x"]) == 2
    said = capsys.readouterr().err
    assert f"no run, directory or file {source!r}" in said
    assert "OWNER/NAME" in said


@pytest.mark.parametrize("source", ["someone/net", "timm/net", "hf-hub:mine/net", "hf_hub:runs/net@main"])
def test_what_may_be_a_repository_is_asked_for(source, tmp_path, endpoint, refusing, monkeypatch):
    """Also in a directory that has a clone of timm; the error tells both meanings."""
    monkeypatch.chdir(tmp_path)
    for name in ("timm", "mine"):
        (tmp_path / name).mkdir()
    endpoint(refusing)
    said, _ = fails(source)
    assert f"{source!r} is not a local path" in said
    assert "cannot be reached" in said


@pytest.mark.parametrize("place", ["~/net.safetensors", "$SHELF/net.safetensors", "${SHELF}/net.safetensors"])
def test_paths_are_expanded(place, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELF", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = tiny("ResNet20", seed=1)
    kr.save_weights(model, place)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    kr.load_weights(model, place)
    entry = kr.models.find("ResNet20")
    entry.build(entry.config.tiny(), classes=10, weights=place)
    target = place.replace("net.", "other.")
    whole = kr.ResNet20(classes=3)
    kr.save_weights(whole, place)
    assert main(["convert", place, target, "--model", "resnet20", "--classes", "3"]) == 0
    assert (tmp_path / "other.safetensors").is_file()


def test_commands_expand_paths(tmp_path, monkeypatch, capsys):
    """`verify`, `serve` and `export` expand `~` in paths."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for command in (["verify", "~/empty"], ["serve", "~/empty"], ["export", "~/empty", "~/x"]):
        assert main(command) == 2, command
        said = capsys.readouterr().err
        assert str(tmp_path) in said or "which has none" in said, said
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
