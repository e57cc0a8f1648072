"""What follow-ups say of the answer before. The sentences are our own, in four languages."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd_profiles import correction_rules, feedback, implicit
from edgepd_profiles.implicit import Sign, detect, follow_ups
from edgepd_profiles.interactions import Interaction

Log = Callable[..., Interaction]
Messages = list[dict[str, Any]]

CORRECTIONS = (
    ("Shorter, please.", "shorter"),
    ("can you make it a bit shorter?", "shorter"),
    ("That's way too long", "shorter"),
    ("ok but in one sentence", "shorter"),
    ("Make the second paragraph more concise please", "shorter"),
    ("Keep it brief.", "shorter"),
    ("tl;dr", "shorter"),
    ("Kürzer bitte", "shorter"),
    ("Das ist zu lang. Drei Zeilen reichen.", "shorter"),
    ("Kannst du das etwas kürzer fassen?", "shorter"),
    ("plus court s'il te plaît", "shorter"),
    ("C'est beaucoup trop long.", "shorter"),
    ("Más corto, por favor.", "shorter"),
    ("demasiado largo", "shorter"),
    ("A bit longer please", "longer"),
    ("Could you explain it in more detail?", "longer"),
    ("too short", "longer"),
    ("Bitte ausführlicher!", "longer"),
    ("Avec plus de détails, merci", "longer"),
    ("¿Puedes explicarlo con más detalle?", "longer"),
    ("no, in German", "language:de"),
    ("Nein, auf Deutsch bitte", "language:de"),
    ("In German please. I do not read English well.", "language:de"),
    ("réponds en français", "language:fr"),
    ("In French, please", "language:fr"),
    ("En español por favor", "language:es"),
    ("answer in Spanish this time", "language:es"),
    ("Antworte bitte auf Englisch.", "language:en"),
    ("in English please!", "language:en"),
    ("mais en italien s'il vous plaît", "language:it"),
    ("Make it more formal", "formal"),
    ("write it more politely please", "formal"),
    ("Bitte förmlicher", "formal"),
    ("Peux-tu le faire plus formel ?", "formal"),
    ("más formal por favor", "formal"),
    ("less formal please", "casual"),
    ("That is too stiff.", "casual"),
    ("etwas lockerer bitte", "casual"),
    ("moins formel", "casual"),
    ("Explain it like I'm five", "simpler"),
    ("in simpler words please", "simpler"),
    ("I don't understand.", "simpler"),
    ("Geht es auch einfacher?", None),
    ("Einfacher bitte", "simpler"),
    ("Erklär das mit einfachen Worten", None),
    ("explique plus simplement", "simpler"),
    ("No entiendo. ¿Qué es un puntero?", "simpler"),
    ("as a list", "list"),
    ("Put it in bullet points, please", "list"),
    ("Bitte als Liste", "list"),
    ("sous forme de liste stp", "list"),
    ("en una lista por favor", "list"),
    ("put that into a table", "table"),
    ("als Tabelle bitte", "table"),
    ("No bullet points.", "plain"),
    ("without headings please", "plain"),
    ("ohne Aufzählung bitte", "plain"),
    ("just the code please", "code"),
    ("nur den Code", "code"),
    ("Without emojis please", "no-emoji"),
    ("keine Emojis", "no-emoji"),
    ("No, that's wrong.", "wrong"),
    ("That is not correct, Bern is the capital.", "wrong"),
    ("That's not what I asked for", "wrong"),
    ("Das stimmt nicht.", "wrong"),
    ("Nein, das ist falsch. Es sind acht Bundesräte weniger einer.", "wrong"),
    ("Non, c'est faux.", "wrong"),
    ("Eso no es correcto", "wrong"),
    ("try again", "again"),
    ("Rephrase it please", "again"),
    ("another version", "again"),
    ("Versuch es nochmal", "again"),
    ("encore une fois, s'il te plaît", "again"),
    ("Inténtalo de nuevo", "again"),
    ("Please cut this down to two sentences", None),
    ("Make that half as long", None),
    ("not so long please", None),
    ("give me a shorter version", "shorter"),
    ("Résume en une phrase", None),
    ("shorten it please", "shorter"),
    ("zu lang", "shorter"),
    ("hazlo más breve", "shorter"),
    ("expand on that", "longer"),
    ("mehr Details bitte", "longer"),
    ("demasiado corto", "longer"),
    ("English please", None),
    ("en allemand svp", "language:de"),
    ("ins Deutsche bitte", None),
    ("more professional", "formal"),
    ("too formal", "casual"),
    ("plus amical", "casual"),
    ("Could you rewrite it more casually?", "casual"),
    ("ELI5", "simpler"),
    ("je ne comprends pas", "simpler"),
    ("too complicated", "simpler"),
    ("in Stichpunkten", "list"),
    ("no lists please", "plain"),
    ("sans émojis", "no-emoji"),
    ("That isn't right.", "wrong"),
    ("you misunderstood me", "wrong"),
    ("Das habe ich nicht gefragt", "wrong"),
    ("te equivocas", "wrong"),
    ("can you rephrase that?", "again"),
    ("nochmal bitte", "again"),
)

OTHERS = (
    "What is a short story?",
    "Thanks!",
    "Thank you, that is perfect.",
    "Tell me more about Bern.",
    "tell me more",
    "Why?",
    "Why is that wrong?",
    "Is that wrong?",
    "And what about the second law?",
    "Write a formal letter to Ann.",
    "How do I make a list in Python?",
    "In German, how do you say cat?",
    "Translate it into German.",
    "How long is the longest river in Africa?",
    "I need a table for six at eight.",
    "What is the shortest way from Bern to Thun?",
    "It's too hot here, what can I do?",
    "My jacket is too short, can it be mended?",
    "That's wrong on so many levels, what he did to her.",
    "She said I was wrong. What should I tell her?",
    "Make a list of ten cities.",
    "Give me the code for a login form in Go.",
    "Now write the tests for it.",
    "Ok, and how do I run it?",
    "Again I forgot my keys. Any tips?",
    "Can you give me another example?",
    "Another joke please",
    "Continue.",
    "yes",
    "no",
    "no thanks",
    "Good. Next question: who painted it?",
    "formal",
    "short",
    "Make this shorter:\nDear Ann, I am writing to you because the meeting has moved to next Friday at ten.",
    'More formal please. "hey ann, cant come tomorrow, sorry"',
    "I don't understand why the loop ends at nine, since the range goes up to ten and includes zero.",
    "Is there a simpler algorithm for sorting?",
    "Explain recursion in detail, with three examples of increasing difficulty and code.",
    "Which is more formal, Sie or du?",
    "Danke schön!",
    "Was bedeutet kürzer treten?",
    "Wie lang ist die Aare?",
    "Schreib eine Liste mit zehn Städten.",
    "Auf Deutsch heisst das Katze, oder?",
    "Ist das falsch?",
    "Noch ein Beispiel bitte",
    "Übersetze das ins Französische.",
    "Und was kostet das?",
    "Mein Rock ist zu kurz, was nun?",
    "Warum ist der Himmel blau?",
    "Merci beaucoup !",
    "Qu'est-ce qu'une phrase courte ?",
    "Combien de temps dure le vol ?",
    "Fais une liste de dix villes.",
    "Pourquoi est-ce faux ?",
    "Comment dit-on chat en allemand ?",
    "Et pour les enfants ?",
    "Traduis-le en espagnol.",
    "Gracias, muy bien.",
    "¿Qué es un cuento corto?",
    "Escribe una lista de diez ciudades.",
    "¿Por qué está mal?",
    "¿Cómo se dice gato en alemán?",
    "Otro ejemplo, por favor.",
    "¿Cuánto mide el río más largo de España?",
    "No me gusta el café. ¿Qué té me recomiendas?",
    "No entiendo por qué el bucle termina en nueve si el rango llega hasta diez y empieza en cero.",
    "I was told to be more concise at work. How?",
    "My teacher wants it in French. Does she have a right to?",
    "What does ELI5 mean?",
    "How do I write in plain English?",
    "What is wrong with my code?",
    "No problem, thanks",
    "Great, now add error handling",
    "Try Python instead",
    "In Spain or in Portugal?",
    "in Rome",
    "Und in Deutschland?",
    "Ist das länger als ein Kilometer?",
    "mehr",
    "Et en Espagne ?",
    "Est-ce plus long ?",
    "Plus tard",
    "¿Es más corto?",
    "more please",
    "without sugar please",
    "no onions",
    "make it rhyme",
    "change the name to Tom",
    "the second one",
    "in two weeks",
    "a short one",
    "just the first three",
    "once more with feeling, they say, but why?",
    "Is it too late?",
)


def user(*texts: str) -> Messages:
    """Return messages that alternate, the user's first."""
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]


def exchange(name: str = "i_1", response: str = "Blue, as the sky is.", **fields: Any) -> Interaction:
    values: dict[str, Any] = {
        **{"id": name, "conversation": "c1", "created_at": 1000.0, "app": "cli", "model": "m", "generation": 1},
        **{"messages": user("Name a colour."), "response": response, "state": "done"},
    }
    return Interaction(**values | fields)


def test_precision_and_recall_on_sentences_in_four_languages() -> None:
    """Found: 96 of 104 corrections, each by its rule, and none of 96 other follow-ups.

    Of the first 50 and 50 that the rules had not been made with, they found 41, and one that was none.
    """
    found = [(text, correction_rules.match(text)) for text, _ in CORRECTIONS]
    assert found == list(CORRECTIONS), "a correction is missed, or noticed by another rule"
    false_alarms = [(text, rule) for text in OTHERS if (rule := correction_rules.match(text))]
    assert false_alarms == []
    hits = sum(rule is not None for _, rule in found)
    precision, recall = hits / (hits + len(false_alarms)), hits / len(CORRECTIONS)
    assert (precision, recall, len(CORRECTIONS), len(OTHERS)) == (1.0, 96 / 104, 104, 96)


@pytest.mark.parametrize("rule", implicit.RULES, ids=lambda rule: rule.name)
def test_every_rule_notices_its_example_and_can_be_read(rule: correction_rules.Rule) -> None:
    assert correction_rules.match(rule.example) == rule.name
    assert {"name": rule.name, "pattern": rule.pattern, "example": rule.example} in implicit.rules()
    assert len(rule.pattern) > 10
    assert [r.name for r in implicit.RULES].count(rule.name) == 1


@given(st.text(max_size=500))
def test_any_text_can_be_looked_at(text: str) -> None:
    assert correction_rules.match(text) in {None, *(rule.name for rule in implicit.RULES)}


@pytest.mark.parametrize("word", ["no, ", "please ", "make it ", "much ", "a", "even - "])
def test_a_text_made_to_backtrack_is_refused_all_the_same(word: str) -> None:
    assert correction_rules.match(word * (400 // len(word))) is None
    assert correction_rules.match(word * 11 + "x") is None


def test_a_long_message_is_no_correction() -> None:
    assert correction_rules.match("Shorter. " + "word " * 24) == "shorter"
    assert correction_rules.match("Shorter. " + "word " * 25) is None
    assert correction_rules.match("Shorter.\nThat is all, thanks.") == "shorter"
    assert correction_rules.match("Shorter.\nThe pasted text of a letter.") is None
    assert correction_rules.match("Shorter. " + "w" * 400) is None


def test_the_same_messages_again_are_a_regeneration() -> None:
    assert detect(exchange(), user("Name a colour.")) == Sign("regenerated", "same messages")
    told = [{"role": "system", "content": "It is noon."}, *user("Name a colour.")]
    assert detect(exchange(), told) == Sign("regenerated", "same messages"), "instructions may change"
    assert detect(exchange(), user("Name a colour!")) is None


def test_a_correction_comes_after_the_answer() -> None:
    assert detect(exchange(), user("Name a colour.", "Blue.", "in German please")) == Sign("corrected", "language:de")
    assert detect(exchange(), user("Name a colour.", "Blue.", "Name a tree.")) is None
    assert detect(exchange(), user("Name a colour.", "Blue.")) is None
    assert detect(exchange(), []) is None


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("in German please", None),
        ("less formal", None),
        ("no, in German", Sign("corrected", "language:de")),
        ("that's wrong", Sign("corrected", "wrong")),
        ("try again", Sign("corrected", "again")),
    ],
)
def test_what_answers_a_question_is_no_correction(text: str, sign: Sign | None) -> None:
    asked = exchange(response="Gladly. In which language, and how formal?")
    assert detect(asked, user("Write to Ann.", asked.response, text)) == sign


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "failed"},
        {"state": "interrupted"},
        {"state": "streaming"},
        {"response": " \n"},
        {"kind": "completion"},
        {"kind": "tools"},
    ],
)
def test_nothing_is_said_of_an_answer_that_nobody_saw(fields: dict[str, Any]) -> None:
    assert detect(exchange(**fields), user("Name a colour.")) is None
    assert detect(exchange(**fields), user("Name a colour.", "Blue.", "shorter")) is None


def test_a_stopped_answer_can_be_asked_again_but_not_corrected() -> None:
    stopped = exchange(state="cancelled")
    assert detect(stopped, user("Name a colour.")) == Sign("regenerated", "same messages")
    assert detect(stopped, user("Name a colour.", "Blue", "shorter")) is None


def test_a_correction_repeated_is_a_wish_for_more_of_it() -> None:
    once = exchange(messages=user("Name a colour.", "Blue.", "another version"))
    assert detect(once, [*once.messages, *user("x", "y", "another version")[1:]]) is None


def begun(log: Log, name: str, at: float, messages: Messages, **fields: Any) -> Interaction:
    return log(name, **{"created_at": at, "messages": messages, "state": "streaming", "response": ""} | fields)


def signs(conn: sqlite3.Connection, name: str) -> list[tuple[str, str | None, str, float]]:
    return [(f.kind, f.text, f.source, f.at) for f in feedback.of(conn, name)]


def test_a_follow_up_in_the_conversation_is_noted_on_the_exchange_before(conn: sqlite3.Connection, log: Log) -> None:
    log("i_0", messages=user("Hello."), created_at=900.0)
    log("i_1")
    late = 1000.0 + 9 * 86400
    new = begun(log, "i_2", late, user("Name a colour.", "Blue.", "Auf Deutsch bitte"))
    assert follow_ups(conn, new) == Sign("corrected", "language:de")
    assert follow_ups(conn, new) == Sign("corrected", "language:de")
    assert signs(conn, "i_1") == [("corrected", "language:de", "rules", late)]
    assert signs(conn, "i_0") == []
    assert feedback.remove(conn, "i_1", "corrected") == 1


def test_a_follow_up_is_found_before_its_own_row_is_written(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    new = exchange("i_2", messages=user("Name a colour."), created_at=1060.0, state="streaming")
    assert follow_ups(conn, new) == Sign("regenerated", "same messages")
    assert signs(conn, "i_1") == [("regenerated", "same messages", "rules", 1060.0)]


def test_in_a_conversation_with_branches_the_right_one_is_judged(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    log("i_2", created_at=1010.0, messages=user("Name a colour.", "Blue, as the sky is.", "And a tree?"))
    follow_ups(conn, begun(log, "i_3", 1020.0, user("Name a colour.", "Blue, as the sky is.", "shorter")))
    assert (len(signs(conn, "i_1")), signs(conn, "i_2")) == (1, [])
    trimmed = user("And a tree?", "An oak.", "longer please")  # the client dropped the beginning: the newest counts
    conn.execute("DELETE FROM interactions WHERE id = 'i_3'")
    follow_ups(conn, begun(log, "i_4", 1030.0, trimmed))
    assert [text for _, text, _, _ in signs(conn, "i_2")] == ["longer"]


def test_without_conversations_the_messages_and_half_an_hour_decide(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", conversation="i_1", app="editor")
    log("i_2", conversation="i_2", app="editor", messages=user("Name a tree."), created_at=1001.0)
    follow = user("Name a colour.", "Blue, as the sky is.", "try again")
    new = exchange("i_3", conversation="i_3", app="editor", messages=follow, created_at=1100.0, state="streaming")
    for other in (
        replace(new, app="cli"),
        replace(new, created_at=1000.0 + 1801),
        replace(new, created_at=999.0),
        replace(new, messages=user("Name a flower.", "Rose.", "try again")),
        replace(new, messages=user("try again")),
        replace(new, messages=[*follow, *user("x", "No.", "try again")[1:]]),
        replace(new, kind="completion"),
    ):
        assert follow_ups(conn, other) is None
    assert feedback.counts(conn)["corrected"] == 0
    assert follow_ups(conn, new) == Sign("corrected", "again")
    assert [text for _, text, _, _ in signs(conn, "i_1")] == ["again"]
    assert signs(conn, "i_2") == []


def test_several_answers_to_one_request_say_nothing_of_each_other(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", duration_ms=4000.0)
    assert follow_ups(conn, begun(log, "i_2", 1000.0, user("Name a colour."))) is None
    assert follow_ups(conn, begun(log, "i_3", 1001.9, user("Name a colour."))) is None
    conn.execute("DELETE FROM interactions WHERE id IN ('i_2', 'i_3')")
    assert follow_ups(conn, begun(log, "i_4", 1003.9, user("Name a colour."))) is not None


def test_another_app_does_not_judge_a_conversation_of_the_same_name(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", app="mail")
    assert follow_ups(conn, begun(log, "i_2", 1010.0, user("Name a colour."), app="notes")) is None


def test_following_costs_look_ups_by_index_only(conn: sqlite3.Connection) -> None:
    statements: list[str] = []
    conn.set_trace_callback(statements.append)
    follow_ups(conn, exchange("i_9", messages=user("Name a colour.")))
    conn.set_trace_callback(None)
    assert len(statements) == 2
    for statement in statements:
        (plan,) = conn.execute("EXPLAIN QUERY PLAN " + statement).fetchall()
        assert plan[3].startswith("SEARCH interactions USING INDEX interactions_of_"), plan
