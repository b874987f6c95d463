"""Data loaders and the data set wrappers they are made of."""

import itertools
import operator
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MapDataset,
    MetadataCatalog,
    ToIterableDataset,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    trivial_batch_collator,
    worker_init_reset_seed,
)
from detectron2.data.common import AspectRatioGroupedDataset, set_default_dataset_from_list_serialize_method
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from torch.utils.data import DataLoader, IterableDataset


def identity(x):
    return x


def double_but_drop_two(x):
    return None if x == 2 else x * 2


class Counting(IterableDataset):
    def __iter__(self):
        yield from itertools.count()


# ---------------------------------------------------------------- wrappers


@pytest.mark.parametrize("serialize", [True, False])
def test_list_elements_are_copies(serialize):
    elements = [{"a": [1]}, {"a": [2, 3]}, "text"]
    dataset = DatasetFromList(elements, serialize=serialize)
    assert len(dataset) == 3
    assert [dataset[i] for i in range(3)] == elements
    dataset[0]["a"].append(9)
    assert dataset[0] == {"a": [1]}


def test_list_without_copies():
    elements = [{"a": 1}]
    assert DatasetFromList(elements, copy=False, serialize=False)[0] is elements[0]


def test_list_is_serialized_by_a_chosen_method():
    serialized = []

    def method(elements):
        serialized.append(elements)
        return tuple(elements)

    with set_default_dataset_from_list_serialize_method(method):
        assert DatasetFromList([1, 2])[1] == 2
    assert serialized == [[1, 2]]
    assert DatasetFromList([3], serialize=method)[0] == 3
    assert DatasetFromList([4])[0] == 4
    assert serialized == [[1, 2], [3]]


def test_map_style():
    dataset = MapDataset(DatasetFromList([1, 2, 3]), double_but_drop_two)
    assert len(dataset) == 3
    assert dataset[0] == 2 and dataset[2] == 6
    assert dataset[1] in (2, 6)  # another element in place of the one that failed


def test_map_iterable():
    class OneTwoThree(IterableDataset):
        def __iter__(self):
            yield from [1, 2, 3]

    dataset = MapDataset(OneTwoThree(), double_but_drop_two)
    assert isinstance(dataset, IterableDataset)
    assert list(dataset) == [2, 6]


def test_map_can_be_pickled_with_a_lambda():
    dataset = pickle.loads(pickle.dumps(MapDataset(DatasetFromList([1, 2, 3]), lambda x: x * 2)))
    assert [dataset[i] for i in range(3)] == [2, 4, 6]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("chunk", [1, 3])
def test_to_iterable_follows_the_sampler(num_workers, chunk):
    sampler = TrainingSampler(20, seed=10)
    expected = list(itertools.islice(sampler, 24))
    loader = DataLoader(
        ToIterableDataset(list(range(20)), sampler, shard_chunk_size=chunk),
        batch_size=chunk,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator,
        worker_init_fn=worker_init_reset_seed,
    )
    batches = itertools.islice(loader, 24 // chunk)
    assert [x for batch in batches for x in batch] == expected


def test_to_iterable_without_sharding_repeats_in_every_worker():
    dataset = ToIterableDataset(list(range(4)), InferenceSampler(4), shard_sampler=False)
    loader = DataLoader(dataset, num_workers=2, collate_fn=operator.itemgetter(0))
    assert sorted(loader) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_aspect_ratio_groups():
    shapes = [(2, 1), (1, 2), (1, 1), (3, 1), (4, 1), (1, 5)]
    images = [{"width": w, "height": h, "id": i} for i, (w, h) in enumerate(shapes)]
    batches = [[image["id"] for image in batch] for batch in AspectRatioGroupedDataset(images, 2)]
    assert batches == [[1, 2], [0, 3]]  # a square counts as high; what fills no batch is dropped


def test_aspect_ratio_groups_do_not_leak_when_stopped():
    images = [{"width": a, "height": 1 - a} for a in (1, 0, 1, 0)]
    dataset = AspectRatioGroupedDataset(images, 2)
    for _ in range(5):
        for i, batch in enumerate(dataset):
            assert len(batch) == 2
            if i == 1:
                break


# ---------------------------------------------------------------- data set dicts


@pytest.fixture
def name():
    name = "build_test"

    def annotated(*category_ids, iscrowd=0):
        return [{"category_id": c, "iscrowd": iscrowd} for c in category_ids]

    records = [
        {"image_id": 0, "width": 2, "height": 1, "annotations": annotated(0, 1, 1)},
        {"image_id": 1, "width": 1, "height": 2, "annotations": []},
        {"image_id": 2, "width": 2, "height": 1, "annotations": annotated(0, iscrowd=1)},
        {"image_id": 3, "width": 1, "height": 2, "annotations": annotated(1)},
    ]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).thing_classes = ["cat", "a very long class name"]
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_images_without_objects_are_filtered(name, detectron2_log):
    kept = filter_images_with_only_crowd_annotations(DatasetCatalog.get(name))
    assert [record["image_id"] for record in kept] == [0, 3]
    assert "Removed 2 images with no usable annotations. 2 images left." in detectron2_log.text


def test_get_dicts(name):
    assert [r["image_id"] for r in get_detection_dataset_dicts(name)] == [0, 3]
    assert [r["image_id"] for r in get_detection_dataset_dicts([name, name], filter_empty=False)] == [0, 1, 2, 3] * 2
    with pytest.raises(AssertionError):
        get_detection_dataset_dicts([])


def test_empty_data_set_is_named():
    DatasetCatalog.register("empty_test", list)
    try:
        with pytest.raises(AssertionError, match="'empty_test' is empty"):
            get_detection_dataset_dicts("empty_test")
    finally:
        DatasetCatalog.remove("empty_test")


def test_different_classes_are_refused(name):
    DatasetCatalog.register("other_test", lambda: DatasetCatalog.get(name))
    MetadataCatalog.get("other_test").thing_classes = ["dog", "cat"]
    try:
        with pytest.raises(ValueError, match="different metadata 'thing_classes'"):
            get_detection_dataset_dicts([name, "other_test"])
        assert len(get_detection_dataset_dicts([name, "other_test"], check_consistency=False)) == 4
    finally:
        DatasetCatalog.remove("other_test")
        MetadataCatalog.remove("other_test")


def test_histogram_rejects_unknown_classes(name):
    records = DatasetCatalog.get(name)
    with pytest.raises(AssertionError, match="category_id=1 for a dataset of 1 classes"):
        print_instances_class_histogram(records, ["cat"])
    print_instances_class_histogram(records, ["cat", "dog"])


# ---------------------------------------------------------------- loaders


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batch_loader_can_go_through_a_data_set_once(num_workers):
    dataset = DatasetFromList(list(range(24)))
    loader = build_batch_data_loader(dataset, InferenceSampler(24), 4, num_workers=num_workers)
    batches = list(iter(loader))
    assert batches == [list(range(i, i + 4)) for i in range(0, 24, 4)]


def test_batch_loader_collates():
    loader = build_batch_data_loader(DatasetFromList([1, 2, 3, 4]), InferenceSampler(4), 2, collate_fn=sum)
    assert list(iter(loader)) == [3, 7]


@pytest.mark.parametrize("num_workers, batch_size", [(2, 1), (0, 4)])
def test_test_loader_goes_through_once(num_workers, batch_size):
    dataset = list(range(10))
    loader = build_detection_test_loader(
        dataset=dataset, mapper=identity, num_workers=num_workers, batch_size=batch_size
    )
    batches = list(iter(loader))
    assert list(itertools.chain(*batches)) == dataset
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)


def test_train_loader_is_endless_and_grouped():
    images = [{"width": 1 + i % 2, "height": 1, "id": i} for i in range(6)]
    loader = build_detection_train_loader(
        images, mapper=identity, sampler=TrainingSampler(6, seed=0), total_batch_size=2
    )
    batches = list(itertools.islice(loader, 30))
    assert all(len(batch) == 2 and batch[0]["width"] == batch[1]["width"] for batch in batches)
    assert {image["id"] for batch in batches for image in batch} == set(range(6))


def test_train_loader_from_config(name):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (name,)
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    batches = itertools.islice(build_detection_train_loader(cfg, mapper=identity), 10)
    assert {image["image_id"] for batch in batches for image in batch} == {0, 3}

    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    batches = itertools.islice(build_detection_train_loader(cfg, mapper=identity), 10)
    assert {image["image_id"] for batch in batches for image in batch} == {0, 1, 2, 3}

    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    assert len(next(iter(build_detection_train_loader(cfg, mapper=identity)))) == 2
    cfg.DATALOADER.SAMPLER_TRAIN = "NoSuchSampler"
    with pytest.raises(ValueError, match="Unknown training sampler: NoSuchSampler"):
        build_detection_train_loader(cfg, mapper=identity)


def test_test_loader_from_config_keeps_images_without_objects(name):
    cfg = get_cfg()
    cfg.DATALOADER.NUM_WORKERS = 0
    loader = build_detection_test_loader(cfg, name, mapper=identity)
    assert [[image["image_id"] for image in batch] for batch in loader] == [[0], [1], [2], [3]]


def test_iterable_data_sets():
    DatasetCatalog.register("iterable_test", Counting)
    try:
        cfg = get_cfg()
        cfg.DATASETS.TRAIN = ("iterable_test",)
        cfg.SOLVER.IMS_PER_BATCH = 3
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
        assert next(iter(build_detection_train_loader(cfg, mapper=identity))) == [0, 1, 2]
        assert next(iter(build_detection_test_loader(cfg, "iterable_test", mapper=identity))) == [0]
    finally:
        DatasetCatalog.remove("iterable_test")
    with pytest.raises(AssertionError, match="sampler must be None"):
        build_batch_data_loader(Counting(), TrainingSampler(3), 2)


class RandomNumbers(torch.utils.data.Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return np.random.randint(2**31)


def test_workers_draw_different_random_numbers():
    loader = build_batch_data_loader(RandomNumbers(), TrainingSampler(100), 1, num_workers=2)
    numbers = [batch[0] for batch in itertools.islice(loader, 20)]
    assert len(set(numbers)) == 20
