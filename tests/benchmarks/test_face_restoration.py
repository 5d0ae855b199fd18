import importlib.util
import json
from pathlib import Path

import torch


FILE = Path(__file__).parents[2] / "benchmarks" / "face_restoration.py"


def test_three_photographs_from_end_to_end(tmp_path):
    spec = importlib.util.spec_from_file_location("face_restoration_benchmark", FILE)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    out, threads = tmp_path / "face_restoration.json", torch.get_num_threads()
    try:
        assert benchmark.main(["--seeds", "1", "--photos", "3", "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    (run,) = json.loads(out.read_text())["runs"]
    found = run["per_restoration"]
    assert set(found) == set(benchmark.RESTORATIONS)
    assert all(set(entry) == set(benchmark.METRICS) for entry in found.values())
    assert found["original"]["psnr"] is None  # infinite
    assert found["blur_1"]["psnr"] > found["blur_3"]["psnr"]
    assert found["sharpened"]["tenengrad"] > found["original"]["tenengrad"] > found["blur_1"]["tenengrad"]
    assert found["input"]["colour_shift"] == 0 < found["other_colours"]["colour_shift"]
