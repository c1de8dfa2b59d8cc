"""Hostile chat templates: each is refused in time, in one line, and the next rendering works."""

import gc
import os
import subprocess
import sys
import time
import tracemalloc

import pytest

from octavo.data import chat_template
from octavo.data.chat_template import ChatTemplate, Limits
from octavo.errors import UserError

USER = [{"role": "user", "content": "Hi"}]
QUICK = Limits(seconds=1.0, memory_mib=256)

# Each must render with a small N, so that a refusal of a large one means the size and not a typo.
BOMBS = {
    "repeat": "{{ 'x' * N }}",
    "repeat-list": "{{ ([1] * N) | length }}",
    "compile-time": "{% autoescape 'x' * N %}y{% endautoescape %}",
    "percent": "{{ '%Nd' % 1 }}",
    "percent-star": "{{ '%*d' % (N, 1) }}",
    "percent-precision": "{{ '%.Nf' % 1.5 }}",
    "percent-filter": "{{ '%Nd' | format(1) }}",
    "format": "{{ '{:>N}'.format(1) }}",
    "format-map": "{{ '{a:>N}'.format_map({'a': 1}) }}",
    "ljust": "{{ 'x'.ljust(N) }}",
    "zfill": "{{ 'x'.zfill(N) }}",
    "center-filter": "{{ 'x' | center(width=N) }}",
    "indent": "{{ 'x' | indent(N, true) }}",
    "batch": "{{ [1] | batch(N, 0) | list }}",
    "json-indent": "{{ [1] | tojson(indent=N) }}",
    "power": "{{ (10 ** N) | string | length }}",
    "lists": "{% set l = [1] * (N // 9999) %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}{{ 1 }}",
    "ranges": "{% for i in range(N // 10000) %}{% for j in range(N // 10000) %}{% endfor %}{% endfor %}{{ 1 }}",
    "doubling": "{% set ns = namespace(x='a') %}{% for i in range(N % 970) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}1",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(N % 970) }}1",
    "deep-print": "{% set ns = namespace(x=(1,)) %}{% for i in range(N % 970) %}{% set ns.x = (ns.x, ns.x) %}"
    "{% endfor %}{{ ns.x }}",
    "deep-hash": "{% set ns = namespace(x=(1,)) %}{% for i in range(N % 970) %}{% set ns.x = (ns.x, ns.x) %}"
    "{% endfor %}{{ {ns.x: 1} | length }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_and_the_next_rendering_works(name):
    source = BOMBS[name]
    assert ChatTemplate(source.replace("N", "2"), limits=QUICK).render(USER)
    bomb = ChatTemplate(source.replace("N", str(10**9)), limits=QUICK)
    began = time.monotonic()
    with pytest.raises(UserError, match="memory|longer than its limit|more than its limit|failed|deeply") as caught:
        bomb.render(USER)
    assert time.monotonic() - began < 20
    assert "\n" not in str(caught.value)
    bomb.source = "{{ 1 }}"
    assert bomb.render(USER) == "1"


def test_a_late_template_says_so():
    endless = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    with pytest.raises(UserError, match="^chat template took longer than its limit of 0.5 seconds$"):
        ChatTemplate(endless, limits=Limits(seconds=0.5)).render(USER)


def test_output_and_source_limits():
    limits = Limits(output_chars=1000, source_chars=100)
    assert len(ChatTemplate("{{ 'x' * 1000 }}", limits=limits).render(USER)) == 1000
    with pytest.raises(UserError, match="wrote more than its limit of 1000 characters"):
        ChatTemplate("{{ 'x' * 1001 }}", limits=limits).render(USER)
    with pytest.raises(UserError, match="has 101 characters, more than the limit of 100"):
        ChatTemplate("x" * 101, limits=limits)


def test_a_long_refusal_costs_the_parent_nothing():
    tracemalloc.start()
    with pytest.raises(UserError, match="refused the messages: xxx") as caught:
        ChatTemplate("{{ raise_exception('x' * 60000000) }}").render(USER)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 and len(str(caught.value)) < 600


def test_long_chats_pass():
    content = "好😀ab " * 500_000
    source = "{% for m in messages %}{{ '<' + m.role + '>' + m.content | trim + '</>' + '\\n' }}{% endfor %}"
    assert len(ChatTemplate(source).render([{"role": "user", "content": content}])) > 2_499_999


FORBIDDEN = [
    "''.__class__.__mro__",
    "messages.__class__.x",
    "messages['__class__'].x",
    "(''|attr('__class__')).x",
    "'{0.__class__.x}'.format(1)",
    "raise_exception.__globals__.x",
    "messages.append(1)",
    "messages[0].update(a=1)",
    "self._TemplateReference__context.x",
    "cycler.__init__.__globals__.os",
]


@pytest.mark.parametrize("expression", FORBIDDEN)
def test_the_sandbox_holds(expression):
    with pytest.raises(UserError, match="not allowed|has no attribute|is undefined"):
        ChatTemplate("{{ " + expression + " }}").render(USER)


def test_a_worker_that_is_killed_is_replaced():
    template = ChatTemplate("{{ messages[0].content }}")
    assert template.render(USER) == "Hi"
    template._worker._process.kill()
    template._worker._process.wait()
    with pytest.raises(UserError, match="crashed"):
        template.render(USER)
    assert template.render(USER) == "Hi"


def test_an_interrupted_rendering_does_not_answer_the_next_one(monkeypatch):
    template = ChatTemplate("{{ messages[0].content }}")
    template.render(USER)
    pipe = template._worker._process.stdout

    class Interrupted:
        def readline(self):
            raise KeyboardInterrupt

    template._worker._process.stdout = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        template.render([{"role": "user", "content": "first"}])
    template._worker._process.stdout = pipe
    for text in ("second", "third"):
        assert template.render([{"role": "user", "content": text}]) == text


def test_ctrl_c_does_not_reach_the_worker():
    template = ChatTemplate("x")
    template.render(USER)
    assert os.getsid(template._worker._process.pid) != os.getsid(0)


def test_workers_end_with_their_template_and_with_the_program():
    template = ChatTemplate("x")
    template.render(USER)
    process = template._worker._process
    del template
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:  # the timer's thread lets go a moment later
        gc.collect()
        time.sleep(0.01)
    assert process.poll() is not None
    code = (
        "from octavo.data.chat_template import ChatTemplate\n"
        "t = ChatTemplate('x'); t.render([]); print(t._worker._process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_a_module_of_the_same_name_in_the_current_folder_is_not_imported(tmp_path):
    (tmp_path / "jinja2.py").write_text("raise SystemExit('imported from the current folder')")
    code = "from octavo.data.chat_template import ChatTemplate; print(ChatTemplate('x').render([]))"
    folder = os.path.dirname(os.path.dirname(os.path.dirname(chat_template.__file__)))
    environment = {**os.environ, "PYTHONPATH": folder}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "x\n", done.stderr
