"""Forgetting with a real daemon and a real model: after it, no file below the data directory holds a word of it.

What was learned is not part of this test (see test_forgetter.py), but everything else is: exchanges, a correction, a
comment, a fact, the search index, the WAL, a backup and the saved cells of the conversation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.running import Daemon, Json, question, running, short_directory, text_of, wait_for

MODEL = "smollm2-135m-instruct-q4_1"
SETTINGS = ("serve.adapt_threads=false", "serve.slots=2", "serve.context_tokens=1024", f"serve.model={MODEL}")
OWN = "/edgepd/v1"
CANARY = "Quillfeather keeps nineteen \u201cgingerbread\u201d ocelots in Zwyndrecht \u2014 caf\u00e9 included"
CORRECTION = "They are called Brambletwist, Ploverwick and Snorrigast, and sleep in the greenhouse."
COMMENT = "Never mention the greenhouse of Vandermeulenstraat again, please."
FACT = "My neighbour Quillfeather feeds his ocelots marzipan at dawn."
LATER = "And how many of those spotted ocelots were it again, did I say?"
KEPT = "What should I cook tonight with lentils and spinach?"
# What nobody would write by chance, as it stands in UTF-8 and in JSON: each is in one of the texts above.
WORDS = (
    "Quillfeather",
    "gingerbread",
    "Zwyndrecht",
    "Brambletwist",
    "Snorrigast",
    "Vandermeulen",
    "marzipan",
    "ocelots",
)


@pytest.fixture
def home() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


def holding(directory: Path, *texts: str) -> dict[str, list[str]]:
    """Return for each file below a directory which of the texts it holds, whatever their case and spelling."""
    found: dict[str, list[str]] = {}
    for file in sorted(f for f in directory.rglob("*") if f.is_file()):
        content = file.read_bytes().lower()
        for text in texts:
            spelled = {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
            if any(spelling.lower().encode() in content for spelling in spelled):
                found.setdefault(file.name, []).append(text)
    return found


def ask(daemon: Daemon, *texts: str, **fields: object) -> Json:
    """Ask the last of several questions, the answer to each earlier one before it; `texts` alternate."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return daemon.post("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 24} | fields)


def unloaded(daemon: Daemon) -> None:
    """Unload the model, which writes its conversations to disk."""
    daemon.post("/api/chat", {"model": "default", "messages": [], "keep_alive": 0})
    wait_for(lambda: daemon.get(f"{OWN}/status")["engine"]["state"] == "unloaded", 30)


@pytest.mark.real_model
def test_no_file_holds_a_word_of_what_was_forgotten(home: Path, model_path: Path) -> None:
    with running(home, model_path.parent, *SETTINGS) as daemon:
        data = daemon.paths.data_dir
        kept = ask(daemon, KEPT, conversation="kitchen")
        told = ask(daemon, f"Please remember: {CANARY}", conversation="zoo")
        daemon.post(f"{OWN}/feedback", {"interaction_id": told["interaction_id"], "edit": CORRECTION})
        daemon.post(f"{OWN}/feedback", {"interaction_id": told["interaction_id"], "comment": COMMENT})
        fact = daemon.post(f"{OWN}/facts", {"text": FACT})["fact"]["id"]
        later = ask(daemon, f"Please remember: {CANARY}", text_of(told), LATER, conversation="zoo")
        assert later["personal"]["facts"] == [fact]
        unloaded(daemon)
        states = list(daemon.paths.states_dir.glob("*.kv"))
        assert states != []
        old = Path(daemon.post(f"{OWN}/backup", {})["path"])
        before = holding(data, *WORDS)
        assert set(WORDS) == {word for words in before.values() for word in words}  # the search finds what is there
        assert old.name in before

        would = daemon.post(f"{OWN}/forget", {"search": "quillFEATHER", "dry_run": True})
        assert (would["dry_run"], holding(data, *WORDS)) == (True, before)
        done = daemon.post(f"{OWN}/forget", {"search": "quillFEATHER"})

        receipt = done["receipt"]
        assert {name: would["receipt"]["counts"][name] for name in ("interactions", "carried_along", "facts")} == {
            name: receipt["counts"][name] for name in ("interactions", "carried_along", "facts")
        }
        assert receipt["counts"]["interactions"] + receipt["counts"]["carried_along"] == 2
        assert (receipt["counts"]["facts"], receipt["counts"]["backups"]) == (1, 1)
        assert receipt["counts"]["saved_conversations"] == len(states)
        assert (receipt["state"], receipt["verified"]["found"], receipt["active"]) == ("done", 0, 1)
        assert holding(data, *WORDS) == {}
        assert holding(data, CORRECTION, COMMENT, FACT, LATER) == {}
        assert list(daemon.paths.states_dir.glob("*.kv")) == []
        assert holding(data, "lentils") != {}  # what nobody wanted to forget is there
        assert len(daemon.get(f"{OWN}/backups")["backups"]) == 1

        assert [row["id"] for row in daemon.get(f"{OWN}/interactions")["interactions"]] == [kept["interaction_id"]]
        assert daemon.get(f"{OWN}/facts")["facts"] == []
        again = daemon.post("/v1/chat/completions", question(LATER, max_tokens=24))
        assert (text_of(again) != "", again["personal"]) == (True, {})
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert not any(word in daemon.log for word in WORDS)
        assert daemon.stop() == 0
    # "ocelots" was asked about once more since; of the rest nothing has come back with the end of the daemon.
    assert holding(data, *WORDS[:-1]) == {}
    with running(home, model_path.parent, *SETTINGS) as daemon:
        (listed,) = daemon.get(f"{OWN}/receipts")["receipts"]
        assert (listed["id"], listed["state"], listed["verified"]) == (receipt["id"], "done", receipt["verified"])
        assert text_of(ask(daemon, KEPT)) == text_of(kept)
        assert daemon.stop() == 0
