"""DatasetCatalog, MetadataCatalog and Metadata."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def name():
    name = "catalog_test"
    yield name
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)


def test_registered_data_is_loaded_on_every_get(name):
    calls = []
    DatasetCatalog.register(name, lambda: calls.append(1) or [{"image_id": 1}])
    assert calls == []
    assert DatasetCatalog.get(name) == [{"image_id": 1}]
    DatasetCatalog.get(name)
    assert len(calls) == 2
    assert name in DatasetCatalog.list()


def test_registering_twice_or_something_not_callable_fails(name):
    DatasetCatalog.register(name, list)
    with pytest.raises(AssertionError, match="already registered"):
        DatasetCatalog.register(name, list)
    with pytest.raises(AssertionError, match="must register a function"):
        DatasetCatalog.register(name + "2", [])


def test_unknown_name_lists_the_known_ones(name):
    DatasetCatalog.register(name, list)
    with pytest.raises(KeyError, match="'nonexistent' is not registered! Available datasets are.*catalog_test"):
        DatasetCatalog.get("nonexistent")


def test_removed_name_is_gone(name):
    DatasetCatalog.register(name, list)
    DatasetCatalog.remove(name)
    assert name not in DatasetCatalog.list()
    DatasetCatalog.register(name, list)
    DatasetCatalog.pop(name)
    assert name not in DatasetCatalog


def test_metadata_is_one_object_per_name(name):
    meta = MetadataCatalog.get(name)
    meta.thing_classes = ["cat", "dog"]
    assert MetadataCatalog.get(name) is meta
    assert meta.name == name
    assert name in MetadataCatalog.list()


def test_metadata_set_returns_self_and_as_dict_is_a_copy(name):
    meta = MetadataCatalog.get(name).set(a=1, b=[2])
    as_dict = meta.as_dict()
    assert as_dict == {"name": name, "a": 1, "b": [2]}
    as_dict["a"] = 3
    assert meta.a == 1


def test_metadata_get_with_default(name):
    meta = MetadataCatalog.get(name).set(a=1)
    assert meta.get("a", 5) == 1
    assert meta.get("b") is None
    assert meta.get("b", 5) == 5


def test_metadata_cannot_be_changed_but_may_be_set_again_to_the_same(name):
    meta = MetadataCatalog.get(name).set(a=[1])
    meta.a = [1]
    with pytest.raises(
        AssertionError, match="'a' in the metadata of 'catalog_test' cannot be set to a different value"
    ):
        meta.a = [2]
    assert meta.a == [1]


def test_missing_metadata_names_what_there_is(name):
    meta = MetadataCatalog.get(name)
    with pytest.raises(AttributeError, match="metadata is empty"):
        _ = meta.a
    meta.thing_classes = ["cat"]
    with pytest.raises(AttributeError, match="'a' does not exist.*thing_classes"):
        _ = meta.a


def test_old_names_lead_to_the_new_ones(name):
    meta = MetadataCatalog.get(name)
    meta.class_names = ["cat"]
    assert meta.thing_classes == ["cat"]
    assert meta.class_names == ["cat"]
    meta.thing_dataset_id_to_contiguous_id = {7: 0}
    assert meta.dataset_id_to_contiguous_id == {7: 0}


def test_builtin_coco_metadata():
    meta = MetadataCatalog.get("coco_2017_val")
    assert len(meta.thing_classes) == len(meta.thing_colors) == 80
    assert meta.thing_classes[0] == "person" and meta.thing_classes[79] == "toothbrush"
    assert meta.thing_colors[0] == [220, 20, 60]
    assert meta.thing_dataset_id_to_contiguous_id[90] == 79
    assert meta.evaluator_type == "coco"
    assert meta.json_file.endswith("coco/annotations/instances_val2017.json")
    assert meta.image_root.endswith("coco/val2017")


@pytest.mark.parametrize(
    "builtin",
    ["coco_2014_train", "coco_2014_minival", "coco_2017_train", "coco_2017_val_100", "voc_2007_test", "voc_2012_val"],
)
def test_builtin_data_sets_are_registered(builtin):
    assert builtin in DatasetCatalog.list()


def test_builtin_voc_metadata():
    meta = MetadataCatalog.get("voc_2007_trainval")
    assert meta.year == 2007 and meta.split == "trainval" and meta.evaluator_type == "pascal_voc"
    assert len(meta.thing_classes) == 20 and meta.thing_classes[14] == "person"
