"""The benchmark's report and counts; the other side needs torch, which the tests do without."""

import json

import numpy as np
import pytest

from tools import bench_generate
from tools.bench_generate import Machine, Turn
from tools.bench_sides import generate_lmx, generate_protocol


def turns():
    return {8: {"lmx": [Turn(0.5, 1.0), Turn(0.5, 2.0), Turn(0.5, 4.0)], "torch": [Turn(1.0, 4.0), Turn(1.0, 8.0), Turn(1.0, 8.0)]}}


def test_the_table_shows_rates_shares_of_the_limit_and_ratios():
    lines = bench_generate.table("tiny", turns(), Machine(flops=1e12, read=1e9)).splitlines()
    assert "float32 matmul 1000 GFLOP/s, memory 1 GB/s" in lines[0]
    need = bench_generate.work(generate_protocol.SHAPES["tiny"], 8)
    share = f"{need.decode_bytes / 1e9 / 1.5:.0%}"
    assert lines[2].split() == ["8", "lmx", "512", "(256-1,024)", "500", "ms", "1%", "677", share]
    assert lines[4].strip() == "8 lmx / torch: 4.00 (turn by turn 2.00-4.00); decode limited by memory"


def test_the_least_work_of_a_call_is_counted():
    shape = generate_protocol.SHAPES["135m"]
    one, eight = bench_generate.work(shape, 1), bench_generate.work(shape, 8)
    parameters = 30 * 576 * (64 * 24 + 3 * 1536) + 49152 * 576
    assert one.decode_bytes == pytest.approx(127 * 4 * parameters, rel=0.03)  # the rest is the cache
    assert eight.decode_flops == 8 * one.decode_flops and eight.prefill_flops == 8 * one.prefill_flops
    assert one.decode_flops == pytest.approx(127 * 2 * parameters, rel=0.1)


def test_agreement_counts_the_rows_that_begin_alike():
    ours, theirs = [[1] * 20, [1] * 20], [[1] * 16 + [2] * 4, [2] + [1] * 19]
    assert bench_generate.agreement(ours, theirs) == 0.5


def test_lmxs_side_generates_with_the_weights_that_it_wrote(tmp_path, monkeypatch):
    small = generate_protocol.Shape(vocabulary=32, model_dim=16, layers=2, q_heads=2, kv_heads=1, head_dim=8, ffn_dim=24, tied=True)
    monkeypatch.setitem(generate_protocol.SHAPES, "tiny", small)
    side = generate_lmx.build("tiny", tmp_path)
    tokens = side.generate(generate_protocol.prompts("tiny", 2), 3)
    assert tokens.shape == (2, 3) and tokens.min() >= 0 and tokens.max() < 32
    with np.load(tmp_path / "params.npz") as params:
        assert params["embed/table"].shape == (32, 16) and "head/table" not in params
    assert json.loads((tmp_path / "model.json").read_text())["rope_scaling"]["factor"] == 8.0


def test_a_run_whose_sides_disagree_fails(monkeypatch, capsys):
    monkeypatch.setattr(bench_generate, "compare", lambda *_: (turns(), Machine(1e12, 1e9), 0.5))
    monkeypatch.setattr("sys.argv", ["bench_generate.py", "--shapes", "tiny"])
    with pytest.raises(SystemExit, match="only 50% of rows begin with the same tokens"):
        bench_generate.main()
    assert "lmx / torch" in capsys.readouterr().out
