"""The study of distillation: what each arm trains, a run that goes on where it stopped, and its page."""

import json
import shutil

from gft_edge.benchmarks.experiments import distillation as module
from gft_edge.checkpoint import read_info

STUDY = module.Study(labelled=12, steps=3, batch_size=2, images=8, seeds=(0, 1))


def test_arms_differ_in_the_teacher_alone(tmp_path, monkeypatch):
    trained = []

    def train(recipe, folder, resume):
        trained.append(recipe)
        shutil.copytree(tmp_path / "student", folder)

    monkeypatch.setattr(module, "train", train)
    found = module.run("builtin", tmp_path, STUDY)
    assert len(trained) == len(module.ARMS) * 2
    assert len({(str(r.model), str(r.data)) for r in trained}) == 1 and trained[0].data.train_images == 12
    assert {r.train.seed for r in trained} == {0, 1} and trained[0].distill is None
    assert trained[-1].distill.masked and trained[-1].distill.temperature == 4.0
    student, teacher = (read_info(tmp_path / name).model for name in ("student", "teacher"))
    assert (student.depth, teacher.depth) == (3, 6) and found["macs"][0] < found["macs"][1] / 3
    assert {text for runs in found["runs"].values() for text in runs.values()} == {found["start"]}
    page = module.page(found)
    assert "from 12 different images" in page and "3 steps of 2 images" in page
    assert all(f"| {arm} |" in page for arm in module.ARMS)

    kept = json.loads((tmp_path / "results.json").read_text())
    del kept["runs"]["DIST"]["1"]
    (tmp_path / "results.json").write_text(json.dumps(kept))
    shutil.rmtree(tmp_path / "DIST-1")
    trained.clear()
    assert module.run("builtin", tmp_path, STUDY)["runs"] == found["runs"]
    assert [(r.distill.loss, r.train.seed) for r in trained] == [("dist", 1)]
