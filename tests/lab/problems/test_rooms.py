"""Rendered rooms."""

import numpy as np
import pytest
import torch

from equipoise.lab import Method, run, specify
from equipoise.lab.problems.indoor import cache
from equipoise.lab.problems.indoor.cache import views
from equipoise.lab.problems.indoor.parts import CLASSES
from equipoise.lab.problems.indoor.render import render
from equipoise.lab.problems.indoor.scene import furnished
from equipoise.lab.problems.rooms import PEAK, Rooms, heat_maps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rooms")


def tiny(folder, **settings):
    sizes = {"height": 32, "width": 64, "train_samples": 8, "validation_samples": 4, "test_samples": 4}
    return Rooms(folder=str(folder), batch_size=4, **sizes | settings)


def seen(number, height=48, width=64):
    rng = np.random.default_rng([5, number])
    scene = furnished(rng)
    return scene, render(scene, height, width, rng)


def test_labels_belong_to_one_geometry():
    """The points behind the pixels, from depth alone, lie where class and normal say."""
    for number in range(4):
        scene, view = seen(number)
        camera = scene.camera
        rows, columns = np.mgrid[0:48, 0:64]
        x = ((columns + 0.5) / 64 - 0.5) * camera.width
        y = (0.5 - (rows + 0.5) / 48) * camera.width * 48 / 64
        local = np.stack([x, y, -np.ones_like(x)], -1) * view.depth[..., None]
        points = camera.position + local @ camera.axes
        floor, ceiling = (view.classes == CLASSES.index(name) for name in ("floor", "ceiling"))
        assert floor.any()
        assert np.abs(points[floor][:, 2]).max() < 0.02
        assert np.abs(points[ceiling][:, 2] - scene.corners[4, 2]).max(initial=0) < 1e-3
        np.testing.assert_allclose(view.normals[floor] - camera.axes[:, 2], 0, atol=1e-6)
        assert (points >= scene.corners.min(0) - 1e-3).all()
        assert (points <= scene.corners.max(0) + 1e-3).all()
        np.testing.assert_allclose(np.linalg.norm(view.normals, axis=-1), 1)
        toward = -(local * view.normals).sum(-1)
        assert (toward > 0).all(), "a visible surface faces the camera"


def test_corners_are_where_walls_meet_the_floor():
    """The ray through the pixel of a visible corner of the floor is as long as the way to it, unless something is before it."""
    reached = 0
    for number in range(8):
        scene, view = seen(number)
        for corner, (column, row) in zip(scene.corners, view.corners, strict=True):
            if np.isfinite(column):
                depth = -(corner - scene.camera.position) @ scene.camera.axes[2]
                seen_depth = view.depth[round(float(row)), round(float(column))]
                assert seen_depth < depth + 0.15
                reached += abs(seen_depth - depth) < 0.15
    assert reached > 5


def test_images_are_lit_and_differ():
    images = np.stack([seen(number)[1].image for number in range(4)]).astype(float)
    assert ((images.mean((1, 2, 3)) > 30) & (images.mean((1, 2, 3)) < 225)).all()
    assert (images.std((1, 2, 3)) > 15).all()
    assert np.abs(images[0] - images[1]).mean() > 10


def test_rooms_are_those_of_their_seed(folder, tmp_path):
    one = tiny(folder).splits()
    other = tiny(tmp_path).splits()
    assert torch.equal(one.train.inputs, other.train.inputs)
    assert all(torch.equal(one.train.targets[name], other.train.targets[name]) for name in one.train.targets)
    fewer = tiny(folder, train_samples=5).splits()
    assert torch.equal(fewer.train.inputs, one.train.inputs[:5])
    assert torch.equal(fewer.test.inputs, one.test.inputs)
    rooms = torch.cat([split.inputs for split in (one.train, one.validation, one.test)]).flatten(1)
    assert len(rooms.unique(dim=0)) == len(rooms)
    assert not torch.equal(tiny(tmp_path, data_seed=1).splits().test.inputs, one.test.inputs)


def test_rooms_are_rendered_once_and_a_damaged_file_again(tmp_path, monkeypatch):
    first = views(tmp_path, 0, 0, 10, 32, 32)
    (path,) = tmp_path.glob("*/0-0.npz")
    rendered = []
    original = cache._rendered
    monkeypatch.setattr(cache, "_rendered", lambda *a: rendered.append(a) or original(*a))
    assert np.array_equal(views(tmp_path, 0, 0, 10, 32, 32)["image"], first["image"])
    assert not rendered
    whole = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    arrays["image"] = arrays["image"][::-1]
    np.savez(path, **arrays)
    for content in (path.read_bytes(), whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        rendered.clear()
        assert np.array_equal(views(tmp_path, 0, 0, 10, 32, 32)["image"], first["image"])
        assert rendered
    assert [p.name for p in path.parent.iterdir()] == ["0-0.npz"]


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", broken)
    with pytest.raises(OSError, match="disk full"):
        views(tmp_path, 0, 0, 1, 32, 32)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_folder_is_that_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    Rooms(height=32, width=32, train_samples=1, validation_samples=1, test_samples=1).splits()
    assert len(list(tmp_path.rglob("*.npz"))) == 3


def test_heat_maps_take_the_corner_nearest_to_the_middle_of_each_half():
    corners = torch.full((2, 8, 2), torch.nan)
    corners[0, 0] = torch.tensor([3.0, 20.0])
    corners[0, 2] = torch.tensor([9.6, 22.4])
    corners[0, 3] = torch.tensor([30.0, 21.0])
    corners[1, 5] = torch.tensor([25.0, 2.0])
    maps = heat_maps(corners, 32, 40)
    places = [(0, 0, 22, 10), (0, 1, 21, 30), (1, 3, 2, 25)]
    for image, kind, row, column in places:
        assert maps[image, kind, row, column] == PEAK
        assert maps[image, kind].argmax() == row * 40 + column
        assert maps[image, kind, row, column - 1] == pytest.approx(PEAK * np.exp(-1 / (2 * (32 / 24) ** 2)))
        maps[image, kind] = 0
    assert not maps.any()


@pytest.mark.parametrize("capacity", ["small", "large"])
@pytest.mark.parametrize("backbone", ["segnet", "resnet_fcn", "segformer"])
def test_every_network_fits_the_labels(backbone, capacity, folder):
    for reduction in (1, 4) if capacity == "small" else (1,):
        problem = tiny(folder, backbone=backbone, capacity=capacity, output_reduction=reduction)
        test = problem.splits().test
        outputs = problem.network()(test.inputs)
        for task in problem.tasks:
            targets = test.targets[task.name]
            assert outputs[task.name].shape[-2:] == targets.shape[-2:] == (32 // reduction, 64 // reduction)
            assert task.loss(outputs[task.name], targets).isfinite()
            for metric in (task.metric, *task.more_metrics.values()):
                built = metric()
                built.update(outputs[task.name], targets)
                assert built.compute().isfinite()


@pytest.mark.parametrize("capacity", ["small", "large"])
@pytest.mark.parametrize("method", ["equal", "gradnorm", "uncertainty"])
def test_it_trains(method, capacity, folder):
    problem = tiny(folder, backbone="resnet_fcn", capacity=capacity)
    record = run(problem, specify(problem, Method(method), 0, steps=2))
    assert set(record.test.more_metrics["normals"]) == {"median", "within 11.25", "within 22.5", "within 30"}
    assert all(torch.tensor(values).isfinite().all() for values in record.test.losses.values())


def test_sizes_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="height: wanted a multiple of 32, found 100"):
        Rooms(height=100)
    with pytest.raises(ValueError, match="width: wanted a multiple of 32, found 0"):
        Rooms(width=0)
