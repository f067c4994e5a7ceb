import json

import pytest

from edge_perception.errors import ConfigError, RenderError
from edge_perception.world import dataset
from edge_perception.world.dataset import DatasetPlan, write_dataset
from edge_perception.world.spec import Split
from edge_perception.world.stats import dataset_stats


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("moderngl")
    folder = tmp_path_factory.mktemp("world")
    plan = DatasetPlan(Split.HELD_OUT, frames=3, seed=4, views_per_scene=2)
    try:
        assert sum(write_dataset(plan, folder)) == 3
    except RenderError as error:
        pytest.skip(str(error))
    return plan, folder


def test_instances_hold_what_the_plan_says(written):
    plan, folder = written
    document = json.loads((folder / "instances.json").read_text())
    assert document["info"]["seed"] == plan.seed
    assert document["info"]["split"] == "held-out"
    assert [image["scene_id"] for image in document["images"]] == [4_000_000, 4_000_000, 4_000_001]
    for image in document["images"]:
        assert (folder / "images" / image["file_name"]).stat().st_size > 5000
    for annotation in document["annotations"]:
        assert 0 <= annotation["occlusion"] <= 1
        assert annotation["area"] > 0


def test_texts_and_masks_lie_beside_the_pictures(written):
    _, folder = written
    names = [image["file_name"] for image in document_of(folder)["images"]]
    captions = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert [record["image"] for record in captions] == names
    asked = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert all(record.keys() == {"image", "type", "question", "answer"} for record in asked)
    assert {record["image"] for record in asked} <= set(names)
    cv2 = pytest.importorskip("cv2")
    mask = cv2.imread(
        str(folder / "masks" / names[0]).replace(".jpg", ".png"), cv2.IMREAD_UNCHANGED
    )
    assert mask.shape == (120, 160)
    first = [a for a in document_of(folder)["annotations"] if a["image_id"] == 1]
    large = {a["instance_id"] for a in first if a["area"] > 400}
    assert large <= set(mask.flat)


def document_of(folder):
    return json.loads((folder / "instances.json").read_text())


def test_an_interrupted_data_set_is_completed_to_the_same_bytes(written):
    plan, folder = written
    before = (folder / "instances.json").read_bytes()
    questions = (folder / "questions.jsonl").read_bytes()
    (folder / "scenes" / "004000001.json").unlink()
    (folder / "instances.json").unlink()
    assert list(write_dataset(plan, folder)) == [2, 1]
    assert (folder / "instances.json").read_bytes() == before
    assert (folder / "questions.jsonl").read_bytes() == questions


def test_a_complete_data_set_is_not_rendered_again(written, monkeypatch):
    plan, folder = written
    monkeypatch.setattr(dataset, "_write_scene", None)
    assert sum(write_dataset(plan, folder)) == plan.frames


def test_a_folder_of_another_plan_is_refused(written):
    _, folder = written
    with pytest.raises(ConfigError, match="holds another data set"):
        list(write_dataset(DatasetPlan(Split.TRAIN, frames=3, seed=4), folder))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"frames": 0, "seed": 1}, "frames too small"),
        ({"frames": 1, "seed": -1}, "negative seed"),
        ({"frames": 1, "seed": 1, "views_per_scene": 0}, "views_per_scene too small"),
    ],
)
def test_a_senseless_plan_is_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        DatasetPlan(Split.TRAIN, **options)


def test_stats_count_what_is_not_ignored():
    def annotation(side, occlusion, ignored):
        return {
            "category_id": 1,
            "bbox": [0, 0, side, side],
            "occlusion": occlusion,
            "iscrowd": ignored,
        }

    stats = dataset_stats(
        {
            "images": [{"width": 100, "height": 100}],
            "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "can"}],
            "annotations": [annotation(10, 0.3, 0), annotation(20, 0.0, 0), annotation(90, 0.9, 1)],
        }
    )
    assert (stats.boxes, stats.ignored, stats.occluded_share) == (2, 1, 0.5)
    assert stats.median_box_share == pytest.approx(0.025)
    assert stats.class_counts == {"cup": 2, "can": 0}
    assert "occluded by >= 1/4   50.0%" in stats.table()
