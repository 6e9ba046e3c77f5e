from __future__ import annotations

from gft_edge.benchmarks.torture import repeat
from gft_edge.benchmarks.torture.repeat import SURROUNDINGS, Surroundings

OTHER = {"OMP_NUM_THREADS": "4", "PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "Pacific/Kiritimati"}


def test_calibrate_writes_the_same_bytes_in_other_surroundings(made, tmp_path):
    others = (SURROUNDINGS[0], Surroundings("all at once", OTHER, elsewhere=True))
    (result,) = repeat.measure(made, tmp_path, others, names=["calibrate"])
    assert result.files >= 3
    assert result.differing == ()


def test_files_are_compared_by_content_and_name(tmp_path):
    for name, content in (("a/x", "1"), ("a/y/z", "2"), ("b/x", "1")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    first, second = repeat.hashes_of(tmp_path / "a"), repeat.hashes_of(tmp_path / "b")
    assert first["x"] == second["x"] and set(first) == {"x", "y/z"}
