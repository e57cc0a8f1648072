"""Settings and paths: precedence, types, ranges, helpful errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgepd.config import declarations, load, paths
from edgepd.errors import ConfigError
from edgepd.settings import Settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_defaults_without_a_file(file: Path) -> None:
    assert load(file, env={}) == Settings()
    assert load(file, env={}).origins == {}


def test_command_line_beats_environment_beats_file_beats_default(file: Path) -> None:
    file.write_text("[serve]\nslots = 2\nthreads = 3\ncontext_tokens = 512\n")
    env = {"EDGEPD_SERVE_THREADS": "5", "EDGEPD_SERVE_CONTEXT_TOKENS": "1024"}
    settings = load(file, env, {"serve.context_tokens": "4096"})
    assert (settings.serve.slots, settings.serve.threads, settings.serve.context_tokens) == (2, 5, 4096)
    assert settings.serve.max_queue == 32
    assert settings.origins == {
        "serve.slots": str(file),
        "serve.threads": "environment",
        "serve.context_tokens": "command line",
    }


def test_other_environment_variables_are_none_of_our_business(file: Path) -> None:
    assert load(file, {"EDGEPD_HOME": "/x", "EDGEPD_MODELS_DIR": "/y", "PATH": "/bin"}) == Settings()


@pytest.mark.parametrize("text", ["true", "True", "1", "yes"])
def test_words_for_true(file: Path, text: str) -> None:
    assert load(file, {"EDGEPD_LOG_INTERACTIONS": text}).log.interactions is True


@pytest.mark.parametrize("text", ["false", "FALSE", "0", "no"])
def test_words_for_false(file: Path, text: str) -> None:
    assert load(file, {"EDGEPD_LOG_INTERACTIONS": text}).log.interactions is False


@pytest.mark.parametrize("text", ["", "maybe", "2", "on "])
def test_words_that_are_neither(file: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="'log.interactions' is .* but must be of type bool"):
        load(file, {"EDGEPD_LOG_INTERACTIONS": text})


@pytest.mark.parametrize("toml", ['"true"', "1.5", "true", "[1]", '"3.5"', '""'])
def test_values_that_are_no_whole_number(file: Path, toml: str) -> None:
    file.write_text(f"[serve]\nthreads = {toml}\n")
    with pytest.raises(ConfigError, match=r"config\.toml: setting 'serve\.threads' is .* must be of type int"):
        load(file, env={})


def test_numbers_as_toml_writes_them(file: Path) -> None:
    file.write_text('[train]\nheld_out_fraction = 0.5\naccepted_weight = 1\nepochs = 2.0\n[serve]\nmodel = "x"\n')
    settings = load(file, env={})
    assert settings.train.held_out_fraction == 0.5
    assert settings.train.accepted_weight == 1.0
    assert type(settings.train.accepted_weight) is float
    assert settings.train.epochs == 2
    assert type(settings.train.epochs) is int
    assert settings.serve.model == "x"


def test_text_is_not_made_from_a_number(file: Path) -> None:
    file.write_text("[serve]\nmodel = 3\n")
    with pytest.raises(ConfigError, match="must be of type str"):
        load(file, env={})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("serve.threads", "-1"),
        ("serve.slots", "0"),
        ("serve.slots", "65"),
        ("train.held_out_fraction", "0.6"),
        ("train.live_learning_rate", "0"),
        ("train.live_learning_rate", "nan"),
        ("gate.max_perplexity_rise", "inf"),
    ],
)
def test_values_out_of_range(file: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"command line: setting '{key}' is .* must lie in"):
        load(file, {}, {key: value})


@pytest.mark.parametrize(
    ("key", "value"), [("serve.threads", "0"), ("serve.slots", "1"), ("serve.slots", "64"), ("train.seed", "0")]
)
def test_ends_of_a_range_belong_to_it(file: Path, key: str, value: str) -> None:
    section, name = key.split(".")
    assert getattr(getattr(load(file, {}, {key: value}), section), name) == int(value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("serve.thread", "serve.threads"),
        ("train.max_tokens", "serve.max_tokens"),
        ("batch_tokens", "serve.batch_tokens"),
    ],
)
def test_unknown_setting_names_the_nearest(file: Path, written: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"command line: unknown setting '{written}'; did you mean '{meant}'"):
        load(file, {}, {written: "1"})


def test_unknown_setting_in_the_file_names_the_file(file: Path) -> None:
    file.write_text("[serve]\nthreds = 2\n")
    with pytest.raises(ConfigError, match=rf"{file}: unknown setting 'serve\.threds'; did you mean 'serve\.threads'"):
        load(file, env={})


def test_setting_like_no_other_lists_all(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'zzz'; known are serve\.model, serve\.threads"):
        load(file, {}, {"zzz": "1"})


@pytest.mark.parametrize("content", [b"[serve\n", b"\xff\xfe", b"x = 1\nx = 2\n"])
def test_broken_file_is_named(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.toml: cannot be read"):
        load(file, env={})


def test_file_that_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path, env={})


def test_every_setting_is_documented_and_its_default_is_valid(file: Path) -> None:
    for key, declared in declarations().items():
        assert declared.doc, key
        text = str(declared.default)
        section, name = key.split(".")
        assert getattr(getattr(load(file, {declared.env: text}), section), name) == declared.default


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().serve.threads = 3  # type: ignore[misc]


def test_home_moves_everything(tmp_path: Path) -> None:
    found = paths({"EDGEPD_HOME": str(tmp_path)})
    assert found.config_file == tmp_path / "config.toml"
    assert found.profile == tmp_path / "data/profile.db"
    assert found.generations_dir == tmp_path / "data/generations"
    assert found.socket == tmp_path / "run/edgepd.sock"
    assert found.models_dir == tmp_path / "data/models"


def test_models_directory_moves_alone(tmp_path: Path) -> None:
    found = paths({"EDGEPD_HOME": str(tmp_path), "EDGEPD_MODELS_DIR": "/srv/models"})
    assert found.models_dir == Path("/srv/models")
    assert found.data_dir == tmp_path / "data"


def test_socket_is_in_the_runtime_directory() -> None:
    assert paths({"XDG_RUNTIME_DIR": "/run/user/1000"}).socket == Path("/run/user/1000/edgepd/edgepd.sock")


def test_socket_path_that_is_too_long() -> None:
    fits = "/" + "x" * 90  # with /run/edgepd.sock 107 bytes
    assert len(str(paths({"EDGEPD_HOME": fits}).socket)) == 107
    with pytest.raises(ConfigError, match="longer than 107 bytes.* set EDGEPD_HOME or XDG_RUNTIME_DIR"):
        paths({"EDGEPD_HOME": fits + "x"})
    with pytest.raises(ConfigError, match="longer than 107 bytes"):
        paths({"EDGEPD_HOME": "/" + "ü" * 50})  # 100 bytes in 50 characters
