"""The life of an engine: one that nobody holds, one that broke down, one in a forked process; odd tenants."""

import gc
import os
import signal
import weakref

import pytest

from octavo.config import EngineOptions, SamplingParams
from octavo.data.tokenizer import Tokenizer
from octavo.engine.core import Closed
from octavo.engine.engine import Engine
from octavo.errors import UsageError, UserError
from octavo.models import Decoder
from tests.engine.engines import engine_threads, wait_until
from tests.tiny import tiny_config, tiny_tokenizer_files

FEW = SamplingParams(max_new_tokens=5, ignore_eos=True)


def make_engine() -> Engine:
    tokenizer = Tokenizer.from_files(tiny_tokenizer_files(), "tiny")
    return Engine.for_decoder(Decoder(tiny_config("mixtral")).initialise(4), tokenizer, EngineOptions(context=256))


def test_an_engine_that_nobody_holds_gives_back_its_thread_and_memory() -> None:
    engine = make_engine()
    engine.complete("abc", FEW)
    runner = weakref.ref(engine.runner)
    assert len(engine_threads()) == 1
    del engine
    gc.collect()
    wait_until(lambda: not engine_threads())
    gc.collect()
    assert runner() is None


def test_a_stream_keeps_its_engine() -> None:
    stream = make_engine().stream("abc", FEW)
    gc.collect()
    assert len(list(stream)) == 5
    del stream
    gc.collect()
    wait_until(lambda: not engine_threads())


def test_who_comes_after_a_breakdown_is_told_of_it(monkeypatch, caplog) -> None:
    with make_engine() as engine:
        assert not engine.closed
        monkeypatch.setattr(engine.core.scheduler, "plan", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.complete("abc", FEW)
        assert engine.closed
        for _ in range(2):
            with pytest.raises(Closed, match=r"broke down \(ZeroDivisionError, see the log\): make another"):
                engine.complete("abc", FEW)
            engine.close()
    assert "the engine broke down" in caplog.text


def test_a_forked_process_is_told_rather_than_kept_waiting() -> None:
    with make_engine() as engine:
        engine.complete("abc", FEW)
        child = os.fork()
        if not child:
            signal.alarm(5)
            try:
                engine.complete("abc", FEW)
            except UserError as error:
                os._exit(7 if "forked" in str(error) else 8)
            os._exit(9)
        wait_until(lambda: os.waitpid(child, os.WNOHANG) == (child, 7 << 8))
        assert len(engine.complete("abc", FEW).token_ids) == 5


@pytest.mark.parametrize("tenant", [None, 5, ["a"], b"a"])
def test_a_tenant_that_is_no_string_ends_nobody_else(tenant) -> None:
    with make_engine() as engine:
        for ask in (
            lambda: engine.complete("abc", FEW, tenant=tenant),
            lambda: engine.log_likelihoods([([1], [2])], tenant=tenant),
            lambda: engine.hidden_states([[1]], tenant=tenant),
        ):
            with pytest.raises(UsageError, match="tenant is"):
                ask()
        assert len(engine.complete("abc", FEW).token_ids) == 5


def test_a_single_text_is_no_list_of_prompts() -> None:
    with make_engine() as engine:
        for ask in (engine.generate, engine.hidden_states):
            with pytest.raises(TypeError, match="give \\[text\\]"):
                ask("abc")
