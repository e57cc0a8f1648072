"""The base model's file: hashed once, known again by its stamp, and not served when it is another."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from edgepd.errors import ModelError
from edgepd_daemon.known import Base
from edgepd_daemon.modelfile import ModelFile
from tests.daemon.hacked import hacked
from tests.daemon.running import TINY_SETTINGS, question, running, wait_for


@pytest.fixture
def base(tmp_path: Path) -> Base:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return Base("tiny", path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_file_is_hashed_once_and_known_again(base: Base, tmp_path: Path) -> None:
    model = ModelFile(base, tmp_path / "stamp.json")
    assert model.changed
    model.check(base.path)
    assert not model.changed
    assert not ModelFile(base, tmp_path / "stamp.json").changed  # the next start
    assert ModelFile(Base("tiny", base.path, "00" * 32), tmp_path / "stamp.json").changed  # another model of the name
    model.check(tmp_path / "baked.gguf")  # not its business


def test_the_same_content_under_another_inode_is_good(base: Base, tmp_path: Path) -> None:
    model = ModelFile(base, tmp_path / "stamp.json")
    model.look()
    Path(shutil.copy(base.path, tmp_path / "copy")).replace(base.path)
    assert model.changed
    model.look()
    assert (model.changed, model.problem) == (False, None)


@pytest.mark.parametrize("how", ["renamed over", "in place, with its times kept", "cut off", "gone"])
def test_another_content_is_refused_with_advice(how: str, base: Base, tmp_path: Path) -> None:
    model = ModelFile(base, tmp_path / "stamp.json")
    model.check(base.path)
    before = base.path.stat()
    if how == "renamed over":
        (tmp_path / "other").write_bytes(b"GGUF" + b"x" * 100)
        (tmp_path / "other").replace(base.path)
    elif how == "cut off":
        os.truncate(base.path, 50)
    elif how == "gone":
        base.path.unlink()
    else:
        base.path.write_bytes(b"GGUF" + b"x" * 100)
        os.utime(base.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelError, match="edgepd model remove tiny"):
        model.check(base.path)
    assert model.problem is not None
    base.path.write_bytes(b"GGUF" + bytes(100))
    model.check(base.path)
    assert model.problem is None


def test_a_model_that_is_replaced_is_not_served(edgepd_home: Path, tiny_models: Path) -> None:
    models = Path(shutil.copytree(tiny_models, edgepd_home / "models"))
    file = models / "tiny.gguf"
    body = "from edgepd_daemon import recovery; recovery.MODEL_SECONDS = 2.0"
    with hacked(edgepd_home, models, body) as daemon:
        before = daemon.answer("Hello", max_tokens=4)
        changed = bytearray(file.read_bytes())
        changed[-1] ^= 1
        other = file.with_name("other")
        other.write_bytes(changed)
        other.replace(file)
        assert daemon.answer("Hello", max_tokens=4) == before  # the file that is mapped goes on
        [problem] = wait_for(lambda: daemon.get("/edgepd/v1/status")["problems"])
        assert "is not what was installed any more" in problem
        assert "edgepd model remove tiny" in problem
        daemon.stop()
    with running(edgepd_home, models, *TINY_SETTINGS) as daemon:
        status, code, message = daemon.refused("/v1/chat/completions", question("Hello"))
        assert (status, code) == (503, "model_unavailable")
        assert "is not what was installed any more" in message
        assert file.stat().st_size == len(changed)
