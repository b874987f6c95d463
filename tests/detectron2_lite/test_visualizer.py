"""Drawing boxes on images and videos."""

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.colormap import colormap, random_color, random_colors
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer, _create_text_labels

GRAY = np.full((80, 120, 3), 128, dtype=np.uint8)
METADATA = Metadata(thing_classes=["cat", "dog"], thing_colors=[(255, 0, 0), (0, 0, 255)])


def predictions(boxes, classes=None, scores=None):
    fields = {"pred_boxes": Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))}
    if classes is not None:
        fields["pred_classes"] = torch.tensor(classes, dtype=torch.int64)
    if scores is not None:
        fields["scores"] = torch.tensor(scores)
    return Instances((80, 120), **fields)


def changed(image, original=GRAY):
    """(H, W) bool: where the drawing differs from the image beneath."""
    return np.abs(image.astype(int) - original).max(axis=2) > 8


@pytest.mark.parametrize(("height", "width"), [(80, 120), (33, 47), (928, 928)])
def test_output_has_the_size_of_the_image(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    output = Visualizer(image).get_output().get_image()
    assert output.dtype == np.uint8
    np.testing.assert_array_equal(output, image)


@pytest.mark.parametrize("scale", [0.5, 2, 2.5])
def test_scale(scale):
    assert Visualizer(GRAY, scale=scale).get_output().get_image().shape == (80 * scale, 120 * scale, 3)


def test_values_out_of_range_are_clipped():
    image = np.array([[[-20.0, 300.0, 7.0]]]).repeat(9, 0).repeat(9, 1)
    assert (Visualizer(image).get_output().get_image() == [0, 255, 7]).all()


def test_a_box_is_drawn_as_its_outline():
    output = Visualizer(GRAY, METADATA).overlay_instances(boxes=[[30, 20, 90, 60]], assigned_colors=["red"])
    where = changed(output.get_image())
    for y, x in [(20, 60), (60, 60), (40, 30), (40, 90)]:
        assert where[y - 1 : y + 2, x - 1 : x + 2].any()
    assert not where[30:50, 40:80].any()
    assert not where[:10].any() and not where[:, 100:].any()
    r, g, b = output.get_image()[40, 30].tolist()
    assert r > g and r > b


@pytest.mark.parametrize("kind", [Boxes, np.asarray, list])
def test_boxes_come_as_boxes_arrays_or_lists(kind):
    corners = [[10.0, 10.0, 50.0, 40.0], [60.0, 20.0, 110.0, 70.0]]
    boxes = Boxes(torch.tensor(corners)) if kind is Boxes else kind(corners)
    output = Visualizer(GRAY, METADATA).overlay_instances(boxes=boxes, labels=["a", "b"], assigned_colors=["g", "b"])
    where = changed(output.get_image())
    assert where[25, 8:13].any() and where[45, 58:63].any()


def test_number_of_labels_must_fit():
    with pytest.raises(AssertionError):
        Visualizer(GRAY, METADATA).overlay_instances(boxes=[[0, 0, 9, 9]], labels=["a", "b"])


def test_labels_are_written_at_the_box():
    plain = Visualizer(GRAY, METADATA).overlay_instances(boxes=[[10, 10, 110, 70]], assigned_colors=["g"])
    named = Visualizer(GRAY, METADATA).overlay_instances(
        boxes=[[10, 10, 110, 70]], labels=["dog"], assigned_colors=["g"]
    )
    where = changed(named.get_image(), plain.get_image())
    assert where[10:25, 10:40].any()
    assert not where[40:].any()


def test_predictions():
    visualizer = Visualizer(GRAY, METADATA)
    output = visualizer.draw_instance_predictions(predictions([[10, 10, 70, 70]], [1], [0.9]))
    assert output is visualizer.get_output()
    assert changed(output.get_image()).any()


@pytest.mark.parametrize("fields", [{}, {"classes": [0]}, {"scores": [0.5]}])
def test_predictions_with_fewer_fields(fields):
    output = Visualizer(GRAY).draw_instance_predictions(predictions([[10, 10, 70, 70]], **fields))
    assert changed(output.get_image()).any()


def test_no_predictions_leave_the_image_alone():
    output = Visualizer(GRAY, METADATA).draw_instance_predictions(predictions([], [], []))
    np.testing.assert_array_equal(output.get_image(), GRAY)


def test_category_colors():
    visualizer = Visualizer(GRAY, METADATA, instance_mode=ColorMode.SEGMENTATION)
    output = visualizer.draw_instance_predictions(
        predictions([[5, 5, 50, 75], [65, 5, 115, 75]], [0, 1], [0.9, 0.8]), jittering=False
    )
    image = output.get_image().astype(int)
    assert image[60, 5, 0] > image[60, 5, 2]  # red
    assert image[60, 65, 2] > image[60, 65, 0]  # blue


def test_gray_mode():
    image = np.zeros((80, 120, 3), dtype=np.uint8)
    image[..., 0] = 90
    visualizer = Visualizer(image, METADATA, instance_mode=ColorMode.IMAGE_BW)
    output = visualizer.draw_instance_predictions(predictions([[5, 5, 50, 75]], [0], [0.9])).get_image()
    assert (output[40, 100] == 30).all()


def test_ground_truth():
    dic = {
        "annotations": [
            {"bbox": [20, 10, 60, 50], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1},
            {"bbox": [5, 5, 15, 15], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 1},
        ]
    }
    where = changed(Visualizer(GRAY, METADATA).draw_dataset_dict(dic).get_image())
    assert where[35, 78:83].any()  # the right edge, x = 20 + 60
    np.testing.assert_array_equal(Visualizer(GRAY).draw_dataset_dict({}).get_image(), GRAY)


def test_single_shapes():
    for draw, point in [
        (lambda v: v.draw_box((20, 20, 60, 60), edge_color="r"), (40, 20)),
        (lambda v: v.draw_line([10, 100], [40, 40], color="r"), (40, 50)),
        (lambda v: v.draw_circle((60, 40), color="r", radius=5), (40, 60)),
        (lambda v: v.draw_polygon(np.array([[20, 20], [100, 20], [60, 70]]), color="r"), (35, 60)),
        (lambda v: v.draw_text("HHHHHH", (60, 30), font_size=20), (36, 60)),
    ]:
        visualizer = Visualizer(GRAY)
        output = draw(visualizer)
        assert output is visualizer.get_output()
        assert changed(output.get_image())[point]


def test_text_labels():
    assert _create_text_labels([0, 1], [0.501, 1.0], ["cat", "dog"]) == ["cat 50%", "dog 100%"]
    assert _create_text_labels([0, 1], None, None) == ["0", "1"]
    assert _create_text_labels(None, [0.3], ["cat"]) == ["30%"]
    assert _create_text_labels([0, 1], None, ["cat", "dog"], [0, 1]) == ["cat", "dog|crowd"]
    assert _create_text_labels(None, None, ["cat"]) is None


def test_jitter_stays_close_and_valid():
    visualizer = Visualizer(GRAY)
    for _ in range(10):
        color = visualizer._jitter((0.2, 0.9, 1.0))
        assert all(0 <= c <= 1 for c in color)
        assert np.linalg.norm(np.subtract(color, (0.2, 0.9, 1.0))) <= 0.5 + 1e-6


def test_save(tmp_path):
    from PIL import Image

    output = VisImage(GRAY)
    output.save(str(tmp_path / "picture.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "picture.png").convert("RGB")), GRAY)


class TestVideo:
    def colors(self, visualizer, *frames):
        """The colors that `overlay_instances` is given for each frame."""
        seen = []
        original = Visualizer.overlay_instances

        def spy(self, **kwargs):
            seen.append([tuple(map(float, color)) for color in kwargs["assigned_colors"]])
            return original(self, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Visualizer, "overlay_instances", spy)
            for boxes, classes in frames:
                visualizer.draw_instance_predictions(GRAY, predictions(boxes, classes, [0.9] * len(classes)))
        return seen

    def setup_method(self):
        np.random.seed(0)

    def test_an_object_keeps_its_color(self):
        first, second = self.colors(
            VideoVisualizer(METADATA),
            ([[10, 10, 50, 50], [60, 20, 110, 70]], [0, 1]),
            ([[62, 21, 111, 70], [11, 11, 51, 50]], [1, 0]),
        )
        assert second == [first[1], first[0]]

    def test_another_class_or_place_is_another_object(self):
        (first,), (other_class,), (other_place,) = self.colors(
            VideoVisualizer(METADATA), ([[10, 10, 50, 50]], [0]), ([[10, 10, 50, 50]], [1]), ([[60, 10, 110, 50]], [0])
        )
        assert len({first, other_class, other_place}) == 3

    def test_an_object_missed_for_a_frame_is_found_again(self):
        first, _, third = self.colors(
            VideoVisualizer(METADATA),
            ([[10, 10, 50, 50], [60, 20, 110, 70]], [0, 1]),
            ([[60, 20, 110, 70]], [1]),
            ([[10, 10, 50, 50], [60, 20, 110, 70]], [0, 1]),
        )
        assert third == first

    def test_frames_are_drawn(self):
        output = VideoVisualizer(METADATA).draw_instance_predictions(GRAY, predictions([[9, 9, 50, 50]], [0], [0.5]))
        assert changed(output.get_image()).any()
        output = VideoVisualizer(METADATA).draw_instance_predictions(GRAY, predictions([], [], []))
        np.testing.assert_array_equal(output.get_image(), GRAY)

    def test_category_colors_are_not_for_videos(self):
        with pytest.raises(AssertionError):
            VideoVisualizer(METADATA, ColorMode.SEGMENTATION)


def test_colormap():
    colors = colormap(rgb=True, maximum=1)
    assert colors.shape == (74, 3)
    assert colors.min() == 0 and colors.max() == 1
    np.testing.assert_allclose(colors[0], [0.000, 0.447, 0.741], atol=1e-6)
    np.testing.assert_allclose(colormap(), colors[:, ::-1] * 255, atol=1e-3)
    with pytest.raises(AssertionError):
        colormap(maximum=100)


def test_random_colors_are_of_the_palette_and_differ():
    palette = {tuple(color) for color in colormap(rgb=True, maximum=255).tolist()}
    assert tuple(random_color(rgb=True, maximum=255).tolist()) in palette
    chosen = {tuple(color.tolist()) for color in random_colors(30, rgb=True)}
    assert chosen <= palette
    assert len(chosen) > 25  # a few entries of the palette repeat
    with pytest.raises(ValueError):
        random_colors(75)
