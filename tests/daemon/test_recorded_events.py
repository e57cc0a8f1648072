"""A chat that is recorded becomes an event, unless prediction is switched off."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgepd_daemon.recorder import Recorder
from edgepd_profiles import apps, events
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.store import Store


@pytest.mark.parametrize(
    ("kind", "on", "stored", "found"),
    [
        ("chat", True, True, [("chat:zeppelin", "mail", "i_1")]),
        ("chat", False, True, []),
        ("chat", True, False, []),
        ("tools", True, True, []),
    ],
)
def test_a_recorded_chat_is_an_event(
    tmp_path: Path, kind: str, on: bool, stored: bool, found: list[tuple[str, str, str]]
) -> None:
    async def go(store: Store) -> None:
        recorder = Recorder(store, enabled=True)
        recorder.events = on
        messages = [{"role": "user", "content": "Zeppelin repairs?"}]
        assert await recorder.begin(Interaction("i_1", "c", 9.0, "mail", "tiny", 1, messages, kind=kind)) is None

    with Store.open(tmp_path / "profile.db") as store:
        store.write(lambda c: apps.change(c, "mail", stored=stored)).result()
        asyncio.run(go(store))
        store.write(lambda c: None).result()  # what was queued before is done
        with store.read() as conn:
            assert [(each.event, each.intent, each.interaction) for each in events.history(conn)] == found
