"""What one key may have under way."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from octavo.serve.keys import Keys
from tests.engine.engines import wait_until
from tests.serve.serving import MODEL, Puppet, body, says, serving

CHAT = "/v1/chat/completions"


def test_a_key_waits_for_its_own_requests_only() -> None:
    puppet = Puppet(*says("x"))
    with serving(puppet, keys=Keys(["one", "two"]), requests_per_key=2) as url, ThreadPoolExecutor(4) as pool:

        def ask(key: str) -> httpx.Response:
            return httpx.post(url + CHAT, json=body(), headers={"Authorization": f"Bearer {key}"}, timeout=30)

        first = [pool.submit(ask, "one") for _ in range(2)]
        wait_until(lambda: len(puppet.under_way) == 2)
        refused = ask("one")
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        embedding = httpx.post(
            url + "/v1/embeddings", json={"model": MODEL, "input": "x"}, headers={"Authorization": "Bearer one"}
        )
        assert embedding.status_code == 429
        other = pool.submit(ask, "two")
        wait_until(lambda: len(puppet.under_way) == 3)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="one", max_retries=0) as client:
            with pytest.raises(openai.RateLimitError, match="2 requests under way"):
                client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
        puppet.step(100)
        assert [answer.result().status_code for answer in (*first, other)] == [200] * 3
        puppet.step(100)
        assert ask("one").status_code == 200  # its places are free again


def test_who_leaves_gives_the_place_back() -> None:
    puppet = Puppet(*says("x"))
    with serving(puppet, keys=Keys(["one"]), requests_per_key=1) as url:
        headers = {"Authorization": "Bearer one"}
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url + CHAT, json=body(), headers=headers, timeout=0.5)
            wait_until(lambda: not puppet.under_way)
        puppet.step(100)
        assert httpx.post(url + CHAT, json=body(), headers=headers, timeout=10).status_code == 200
