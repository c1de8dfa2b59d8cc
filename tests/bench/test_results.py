"""Medians, ratios, bytes and shares, and how they are shown."""

import json
from dataclasses import replace

import pytest

from octavo.bench import plot
from octavo.bench.bounds import Widths, bound, step_bytes
from octavo.bench.dense import dense_shapes
from octavo.bench.machine import Machine
from octavo.bench.metrics import parse_metric, parse_metrics
from octavo.bench.report import check_report, markdown, table, write_report
from octavo.bench.results import Subject, figures
from octavo.bench.schedule import Measured, Plan, run
from octavo.checkpoint.figures import model_figures
from octavo.errors import UsageError, UserError
from tests.tiny import tiny_config

CONFIG = tiny_config()
PLAN = Plan(parse_metrics("prefill_40,decode_2,decode_2@64"), rounds=3, steps=5, timeout=20)
MACHINE = Machine(read_gb_s=20.0, sgemm_gflops=100.0, cores=2)
SUBJECT = Subject("tiny", CONFIG, "fp32", 2)


def measured(rates: dict[str, list[float]], about: dict | None = None, reads: float | None = 8.0) -> Measured:
    about = about or {"version": "it 1", "weight_bytes": 4.0, "key_value_bytes": 4.0, "load_seconds": 1.0,
                      "resident_bytes": 2**20}  # fmt: skip
    extra = {} if reads is None else {"expert_reads": reads}
    samples = {name: [{"seconds": 10 / rate, "tokens": 10, **extra} for rate in many] for name, many in rates.items()}
    return Measured(about, samples)


OURS = {"prefill_40": [300.0, 100.0, 200.0], "decode_2": [50.0, 10.0, 40.0], "decode_2@64": [8.0, 8.0, 8.0]}
THEIRS = {"prefill_40": [400.0, 400.0, 1.0], "decode_2": [10.0, 30.0, 20.0]}


@pytest.fixture
def found() -> dict:
    peer = measured(THEIRS, {"version": "p 2", "weight_bytes": 0.5, "key_value_bytes": 2.0, "load_seconds": 2.0}, None)
    peer.errors["decode_2@64"] = "peer: decode_2@64: the process ended"
    return figures(SUBJECT, PLAN, MACHINE, {"octavo": measured(OURS), "peer": peer})


def test_medians_ratios_and_the_promised_keys(found) -> None:
    assert json.loads(json.dumps(found)) == found
    assert found["machine"] == {"read_gb_s": 20.0, "sgemm_gflops": 100.0, "cores": 2} and found["quant"] == "fp32"
    ours, peer = found["ours"], found["peers"]["peer"]
    assert [ours[name] for name in OURS] == pytest.approx([200, 40, 8])
    assert [peer[name] for name in THEIRS] == pytest.approx([400, 20]) and "decode_2@64" not in peer
    assert found["ratio"] == {"peer": pytest.approx({"prefill_40": 0.5, "decode_2": 2.0})}
    assert ours["samples"]["decode_2"] == pytest.approx([50, 10, 40])
    assert list(ours["bytes"]) == list(ours["share"]) == list(OURS) and list(peer["share"]) == list(THEIRS)
    assert list(found["errors"]["peer"]) == ["decode_2@64"]


def test_each_party_has_bytes_and_shares_of_its_own_widths(found) -> None:
    """The peer's experts are those that ours counted: everyone gets the same tokens."""
    metric = parse_metric("decode_2")
    for party, widths in ((found["ours"], Widths(4.0, 4.0, 4.0)), (found["peers"]["peer"], Widths(0.5, 0.5, 2.0))):
        size = step_bytes(CONFIG, metric, 5, 8.0, widths)
        assert party["bytes"]["decode_2"] == round(size)
        most = bound(CONFIG, metric, round(size), 20.0, 100.0)
        assert party["share"]["decode_2"] == pytest.approx(party["decode_2"] / most)


def test_figures_of_parties_that_ran(fake, monkeypatch) -> None:
    monkeypatch.setattr("octavo.bench.schedule.SETTLE_SECONDS", 0.0)
    parties = [fake("octavo", "100,300,200"), fake("llama.cpp", "10,50,40")]
    found = figures(SUBJECT, PLAN, MACHINE, run(parties, PLAN, lambda _: None))
    assert found["ours"]["decode_2"] == pytest.approx(200) and found["peers"]["llama.cpp"]["decode_2"] == pytest.approx(
        40
    )
    assert found["ratio"]["llama.cpp"] == pytest.approx({metric.name: 5 for metric in PLAN.metrics})
    assert found["ours"]["bytes"]["decode_2"] > 0  # no expert counts: as if tokens chose at random


@pytest.fixture
def beside_dense() -> dict:
    """Octavo, a peer, and dense models of both sizes; the larger one was too slow for the last metric."""
    shapes = dense_shapes(CONFIG, "tiny")
    total = measured({"prefill_40": [50.0], "decode_2": [4.0]}, reads=0.0)
    total.errors["decode_2@64"] = "dense_total: decode_2@64: no answer"
    parties = {"octavo": measured(OURS), "llama.cpp": measured(THEIRS), "dense_active": measured(OURS, reads=0.0),
               "dense_total": total}  # fmt: skip
    return figures(replace(SUBJECT, dense=shapes), PLAN, MACHINE, parties)


def test_dense_models_have_figures_of_their_own_shape(beside_dense) -> None:
    assert json.loads(json.dumps(beside_dense)) == beside_dense
    assert list(beside_dense["peers"]) == ["llama.cpp"] and list(beside_dense["dense"]) == ["active", "total"]
    assert beside_dense["ratio"]["dense_active"] == pytest.approx(dict.fromkeys(OURS, 1.0))
    assert beside_dense["ratio"]["dense_total"] == pytest.approx({"prefill_40": 4.0, "decode_2": 10.0})
    assert list(beside_dense["errors"]) == ["dense_total"]
    metric = parse_metric("decode_2")
    for size, shape in dense_shapes(CONFIG, "tiny").items():
        party = beside_dense["dense"][size]
        most = bound(shape, metric, step_bytes(shape, metric, 5, 0, Widths(4.0, 4.0, 4.0)), 20.0, 100.0)
        assert party["share"]["decode_2"] == pytest.approx(party["decode_2"] / most)
        assert party["parameters"] == model_figures(shape).total_parameters
    read = [party["bytes"]["decode_2"] for party in beside_dense["dense"].values()]
    assert read[1] - read[0] == 2 * 2 * 3 * 48 * 40 * 4 and beside_dense["ours"]["bytes"]["decode_2"] not in read


def test_without_dense_models_nothing_is_said_of_them(found) -> None:
    assert found["dense"] == {} and "dense" not in table(found) + markdown(found)


def test_dense_models_are_shown(beside_dense, tmp_path, monkeypatch) -> None:
    shown = table(beside_dense)
    assert max(map(len, shown.splitlines()[1:])) <= 80
    rows = [line.split() for line in shown.splitlines() if line.startswith(("prefill", "decode_"))]
    assert [row[0] for row in rows] == [*OURS, *OURS]
    active, total = rows[4][1:5], rows[4][5:]
    assert (active[0], active[3]) == ("40.0", "1.00") and (total[0], total[3]) == ("4.0", "10.00")
    assert rows[5][5:] == ["-"] * 4
    page = markdown(beside_dense)
    assert "- dense, total size: it 1, loaded" in page and "| 4.0 (4.0 to 4.0) |" in page
    assert "not measured: dense_total: decode_2@64" in page
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(plot, "write_png", lambda figure, out: drawn.append(figure))
    plot.draw(beside_dense, tmp_path / "bars.png")
    prefill, _ = drawn[0].axes
    assert [bar.get_height() for bar in prefill.patches] == pytest.approx([200, 400, 200, 50])
    assert len({bar.get_facecolor() for bar in prefill.patches}) == 4
    lines = [part.get_segments()[0][0][1] for part in prefill.collections]
    assert lines[2:] == pytest.approx([party["bound"]["prefill_40"] for party in beside_dense["dense"].values()])
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["bound", "octavo", "llama.cpp", "dense, active size", "dense, total size"]


def test_table_and_page(found, tmp_path) -> None:
    shown = table(found)
    assert max(map(len, shown.splitlines()[1:])) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.startswith(("prefill", "decode_"))}
    assert rows["prefill_40"][0] == "200.0" and rows["prefill_40"][3:] == ["400.0", "0.50"]
    assert rows["decode_2@64"][3:] == ["-", "-"]
    write_report(found, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert page == markdown(found) and [path.name for path in tmp_path.iterdir()] == ["page.md"]
    assert "| decode_2 | 40.0 (10.0 to 50.0) |" in page and "20.0 (10.0 to 30.0) | 2.00 |" in page
    assert "not measured: peer: decode_2@64" in page and "p 2, loaded in 2.0 s" in page
    assert "commit" in page and "20.0 GB/s" in page


def test_where_a_page_cannot_be_written(tmp_path) -> None:
    for name in ("page.txt", "."):
        with pytest.raises(UsageError, match="--report"):
            check_report(tmp_path / name)
    with pytest.raises(UserError, match="no such folder"):
        check_report(tmp_path / "nowhere/page.md")


def test_bars_and_bounds(found, tmp_path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    drawn = []
    write = plot.write_png
    monkeypatch.setattr(plot, "write_png", lambda figure, out: (drawn.append(figure), write(figure, out)))
    plot.draw(found, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    prefill, decode = drawn[0].axes
    assert [bar.get_height() for bar in prefill.patches] == pytest.approx([200, 400])
    assert [bar.get_height() for bar in decode.patches] == pytest.approx([40, 8, 20])  # the peer lacks the last
    lines = [segment[0][1] for part in decode.collections for segment in part.get_segments()]
    bounds = [found["ours"]["bound"][name] for name in ("decode_2", "decode_2@64")]
    assert lines == pytest.approx([*bounds, found["peers"]["peer"]["bound"]["decode_2"]])
