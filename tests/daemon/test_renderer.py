"""Templates in the guarded child: the same text as in this process, and bombs that harm nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from edgepd.errors import TemplateError
from edgepd.template import ChatTemplate
from edgepd_daemon import renderer as module
from edgepd_daemon.renderer import Renderer

TALK = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    made = Renderer()
    yield made
    made.close()


def children() -> list[psutil.Process]:
    found = psutil.Process().children()
    return [child for child in found if "edgepd_daemon.render_child" in child.cmdline()]


def test_the_text_is_that_of_the_template_itself(renderer: Renderer) -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ tools | tojson }}{{ x }}"
    )
    messages = [{"role": "user", "content": "é\U0001f600 <b>\ud83d"}, {"role": "assistant", "content": None}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    for given in (source, None):
        if given is None:
            messages, tools = TALK, []
        here = ChatTemplate(given, bos="<s>", eos="</s>")
        there = renderer.template(given, bos="<s>", eos="</s>")
        assert there.supports_tools == here.supports_tools == (given is not None)
        expected = here.render(messages, add_generation_prompt=True, tools=tools, extra={"x": 1})
        assert there.render(messages, add_generation_prompt=True, tools=tools, extra={"x": 1}) == expected


def test_the_child_starts_with_the_first_template_and_ends_with_close(renderer: Renderer) -> None:
    assert children() == []
    template = renderer.template(None)
    (child,) = children()
    assert child.memory_info().rss < 60e6
    renderer.close()
    assert children() == []
    assert template.render(TALK, add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"
    assert len(children()) == 1


def test_a_megabyte_passes(renderer: Renderer) -> None:
    text = "ü" * 1_000_000
    found = renderer.template(None).render([{"role": "user", "content": text}], add_generation_prompt=False)
    assert found == f"<|im_start|>user\n{text}<|im_end|>\n"


BOMBS = {
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}": "takes longer than 2 s",
    "{% macro a() %}x{% endmacro %}" * 50_000: "takes longer than 2 s|needs too much",
    "{{ lipsum(n=1000000) }}": "takes longer than 2 s|needs too much",
    "{{ 'x' * 10 ** 10 }}": "it needs too much memory",
    "{{ [1] * 10 ** 10 }}": "it needs too much memory",
    "{{ '%999999999d' % 1 }}": "it needs too much memory",
    "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}": "too much|longer",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}": "recursion",
    "{{ messages | string * 100000 }}": "renders to more than",
    "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}": "does not compile",
    "{{ cycler.__init__.__globals__ }}": "unsafe",
    "{% if %}": "does not compile",
}


@pytest.mark.parametrize("source", BOMBS, ids=lambda source: source[:40])
def test_a_bomb_is_an_error_and_the_next_template_renders(renderer: Renderer, source: str) -> None:
    good = renderer.template(None)
    before = psutil.Process().memory_info().rss
    with pytest.raises(TemplateError, match=BOMBS[source]):
        renderer.template(source).render(TALK, add_generation_prompt=True)
    assert psutil.Process().memory_info().rss - before < 100e6
    assert good.render(TALK, add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"


def test_constant_expressions_are_not_evaluated_while_compiling(renderer: Renderer) -> None:
    template = renderer.template("{% if false %}{{ 'x' * 10 ** 10 }}{% endif %}ok")
    assert template.render(TALK, add_generation_prompt=False) == "ok"


def test_a_child_that_died_is_replaced_unnoticed(renderer: Renderer) -> None:
    template = renderer.template(None)
    (child,) = children()
    os.kill(child.pid, signal.SIGKILL)
    assert template.render(TALK, add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"
    assert [c.pid for c in children()] != [child.pid]


def test_a_child_that_always_dies_is_an_error(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    template = renderer.template(None)
    renderer.close()
    program = "import os, struct; os.write(1, struct.pack('>I', 2) + b'{}'); os.read(0, 1)"
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: real([sys.executable, "-c", program], **rest))
    with pytest.raises(TemplateError, match="the process that renders the model's chat template ended"):
        template.render(TALK, add_generation_prompt=False)


def test_a_child_that_does_not_start_is_an_error(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TemplateError, match="does not start"):
        renderer.template(None)
    monkeypatch.setattr(sys, "executable", "/nowhere")
    with pytest.raises(TemplateError, match="cannot be started"):
        renderer.template(None)


def test_renders_of_many_threads_do_not_mix(renderer: Renderer) -> None:
    template = renderer.template("{{ messages[0].content }}")
    wrong: list[str] = []

    def work(number: int) -> None:
        for i in range(30):
            text = f"{number}-{i}-" * 50
            if template.render([{"role": "user", "content": text}], add_generation_prompt=False) != text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(children()) == 1


def test_many_renders_do_not_use_up_the_processor_time(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    template = renderer.template("{% for i in range(100000) %}{% for j in range(3) %}{% endfor %}{% endfor %}x")
    (child,) = children()
    monkeypatch.setattr(module, "RENDER_SECONDS", 30.0)
    while sum(child.cpu_times()[:2]) < 7:
        assert template.render(TALK, add_generation_prompt=False) == "x"
    assert [c.pid for c in children()] == [child.pid]


def test_the_child_ends_with_its_daemon(tmp_path: Path) -> None:
    program = """
        import os
        from edgepd_daemon.renderer import Renderer
        renderer = Renderer()
        renderer.template(None)
        print(renderer._child._process.pid, flush=True)
        os._exit(0)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, env=environment
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
