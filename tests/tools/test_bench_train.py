"""The benchmark's report; the sides themselves need torch, which the tests do without."""

import pytest

from tools import bench_train


def comparison(torch_first_loss=9.0):
    def turns(speeds, gibibytes):
        return [{"tokens_per_second": speed, "loss": 5.0, "peak_bytes": gibibytes * 2**30} for speed in speeds]

    return bench_train.Comparison(
        turns={"lmx": turns([200.0, 400.0, 300.0], 1), "torch": turns([100.0, 100.0, 200.0], 4)},
        first_loss={"lmx": 9.0, "torch": torch_first_loss},
        flops_per_token=1e6,
        matmul_rate=1e9,
    )


def test_the_table_shows_medians_ranges_ratios_and_the_share_of_the_matmul_rate():
    lines = comparison().table("Tiny").splitlines()
    assert "float32 matmul 1 GFLOP/s" in lines[0]
    assert lines[2].split() == ["lmx", "300", "(200-400)", "30%", "1.00", "GiB", "9.0000", "5.0000"]
    assert lines[3].split() == ["torch", "100", "(100-200)", "10%", "4.00", "GiB", "9.0000", "5.0000"]
    assert lines[4].strip() == "lmx / torch: tokens/s 2.00 (turn by turn 1.50-4.00), memory 0.25"


def test_a_run_whose_sides_train_different_models_fails(monkeypatch, capsys):
    monkeypatch.setattr(bench_train, "compare", lambda *_: comparison(torch_first_loss=9.5))
    monkeypatch.setattr("sys.argv", ["bench_train.py", "--shapes", "llama"])
    with pytest.raises(SystemExit, match="first losses differ by 0.5000 nats"):
        bench_train.main()
    assert "lmx / torch" in capsys.readouterr().out


def test_rounds_must_be_positive(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench_train.py", "--rounds", "0"])
    with pytest.raises(SystemExit):
        bench_train.main()
    assert "0 is not at least 1" in capsys.readouterr().err
