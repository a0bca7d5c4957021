"""The tool that measures a conversion's memory, and with it that memory does not grow with the number of layers."""

from configs.models import llama3
from tools import measure_convert

MIB = 1 << 20


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path, capsys):
    peaks = {}
    for layers in (5, 20):  # of 14 MiB a kernel: 70 and 280 MiB a stacked parameter
        folder = tmp_path / str(layers)
        folder.mkdir()
        config = llama3.decoder(num_layers=layers, model_dim=1_024, q_heads=8, ffn_dim=7_168, vocab_size=1_024)
        largest = measure_convert.build(folder / "hf", config, random_layers=1)
        assert largest == 14 * MIB
        peaks[layers] = measure_convert.measure("hf -> lmx", folder / "hf", folder / "lmx", largest)
        assert peaks[layers] <= measure_convert.bound(largest)
    assert peaks[20] - peaks[5] < 100 * MIB, peaks
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("hf -> lmx: 0.13B parameters, peak ") and second.endswith("inside")
