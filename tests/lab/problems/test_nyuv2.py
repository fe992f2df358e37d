"""NYUv2 in both of its forms, on small files that are made here."""

import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat
from torch.testing import assert_close

from equipoise.lab import Method, run, specify
from equipoise.lab.problems.nyuv2 import NYUv2
from equipoise.lab.problems.nyuv2_files import normals_of

SIZE = {"height": 32, "width": 64}


def arrays(folder, counts=(("train", 6), ("val", 3)), shape=(32, 64)):
    """The form of MTAN's preprocessed arrays."""
    rng = np.random.default_rng(0)
    for part, count in counts:
        for name in ("image", "label", "depth", "normal"):
            (folder / part / name).mkdir(parents=True)
        for i in range(count):
            normal = rng.normal(size=(*shape, 3))
            normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
            normal[:2] = 0
            depth = rng.uniform(1, 5, (*shape, 1))
            depth[:, :3] = 0
            np.save(folder / part / "image" / f"{i}.npy", rng.uniform(size=(*shape, 3)))
            np.save(folder / part / "label" / f"{i}.npy", rng.integers(-1, 13, shape).astype(float))
            np.save(folder / part / "depth" / f"{i}.npy", depth)
            np.save(folder / part / "normal" / f"{i}.npy", normal)
    return folder


def official(folder, count=5, shape=(480, 640)):
    """The form of the official file: MATLAB's order, 894 classes, numbers from 1; a wall that leans back by 30 degrees."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 895, (count, *shape), dtype=np.uint16)
    labels[:, 0, :5] = [0, 1, 2, 3, 894]
    rows = np.arange(shape[0])[:, None] + np.zeros(shape)
    slope = np.tan(np.radians(30))
    depth = 3 / (1 + slope * (rows - 253.736166) / 519.469611)
    depths = np.stack([depth * (i + 1) / 2 for i in range(count)]).astype(np.float32)
    images = np.stack([np.full((3, *shape), 20 * i + 10, np.uint8) for i in range(count)])
    images[:, 0, :240] = 200  # the upper half is red
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = images.transpose(0, 1, 3, 2)
        file["depths"] = depths.transpose(0, 2, 1)
        file["labels"] = labels.transpose(0, 2, 1)
    map_40 = np.arange(894) % 40 + 1
    map_13 = np.arange(40) % 13 + 1
    savemat(folder / "splits.mat", {"trainNdxs": np.array([[2], [5], [1]]), "testNdxs": np.array([[4], [3]])})
    savemat(folder / "classMapping40.mat", {"mapClass": map_40[None]})
    savemat(folder / "class13Mapping.mat", {"classMapping13": {"labels13": map_13[None], "className": ["bed"]}})
    return labels, depths


def test_the_arrays_come_as_they_are(tmp_path):
    folder = arrays(tmp_path)
    splits = NYUv2(path=str(folder), validation_samples=2, **SIZE).splits()
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [4, 2, 3]
    for i in range(3):
        stored = {name: np.load(folder / "val" / name / f"{i}.npy") for name in ("image", "label", "depth", "normal")}
        targets = {name: values[i] for name, values in splits.test.targets.items()}
        assert_close(splits.test.inputs[i], torch.from_numpy(stored["image"]).float().permute(2, 0, 1))
        assert torch.equal(targets["segmentation"], torch.from_numpy(stored["label"]).long())
        assert_close(targets["depth"], torch.from_numpy(stored["depth"]).float().permute(2, 0, 1))
        assert_close(targets["normals"], torch.from_numpy(stored["normal"]).float().permute(2, 0, 1))


def test_validation_is_carved_from_the_training_images_by_a_fixed_permutation(tmp_path):
    folder = arrays(tmp_path)
    stored = {np.load(path).astype(np.float32).tobytes() for path in (folder / "train" / "image").glob("*.npy")}

    def images(split):
        return [image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in split.inputs]

    splits = NYUv2(path=str(folder), validation_samples=2, **SIZE).splits()
    assert {*images(splits.train), *images(splits.validation)} == stored
    assert not {*images(splits.train)} & {*images(splits.validation)}
    again = NYUv2(path=str(folder), validation_samples=2, **SIZE).splits()
    assert images(again.validation) == images(splits.validation)
    others = [NYUv2(path=str(folder), validation_samples=2, split_seed=seed, **SIZE).splits() for seed in (1, 2, 3)]
    assert any({*images(other.validation)} != {*images(splits.validation)} for other in others)
    for count in (0, 6):
        with pytest.raises(ValueError, match=f"validation_samples: wanted from 1 to 5, found {count}"):
            NYUv2(path=str(folder), validation_samples=count, **SIZE).splits()


def test_another_size_takes_the_nearest_labels_and_every_fourth_pixel(tmp_path):
    folder = arrays(tmp_path, shape=(64, 64))
    problem = NYUv2(path=str(folder), validation_samples=2, height=32, width=32, output_reduction=4)
    test = problem.splits().test
    label = np.load(folder / "val" / "label" / "1.npy")[::2, ::2][2::4, 2::4]
    assert test.inputs.shape == (3, 3, 32, 32)
    assert test.targets["depth"].shape == (3, 1, 8, 8)
    assert torch.equal(test.targets["segmentation"][1], torch.from_numpy(label).long())


def test_the_official_file_is_turned_mapped_and_split(tmp_path):
    labels, depths = official(tmp_path)
    problem = NYUv2(path=str(tmp_path), validation_samples=1, height=480, width=640)
    splits = problem.splits()
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2, 1, 2)
    for place, number in enumerate((3, 2)):  # the fourth and the third image
        assert_close(splits.test.inputs[place, 2].unique(), torch.tensor([(20 * number + 10) / 255]))
        assert_close(splits.test.inputs[place, 0, :240].unique(), torch.tensor([200 / 255]))
        assert_close(splits.test.targets["depth"][place, 0], torch.from_numpy(depths[number]))
        wanted = np.where(labels[number] == 0, -1, (labels[number].astype(int) - 1) % 40 % 13)
        assert torch.equal(splits.test.targets["segmentation"][place], torch.from_numpy(wanted))
        normals = splits.test.targets["normals"][place]
        inside = normals[:, 10:-10, 10:-10]
        leaning = torch.tensor([0.0, 0.5, 0.75**0.5])  # towards the camera and up, as the wall leans back
        assert (inside - leaning[:, None, None]).abs().max() < 0.01
        assert not normals[:, 0].any()


def test_normals_face_the_camera_and_are_missing_where_depth_is():
    rows = np.arange(480)[:, None] + np.zeros((480, 640))
    depth = np.full((480, 640), 2.0, np.float32)
    flat = normals_of(depth)
    assert np.abs(flat[3:-3, 3:-3] - [0, 0, 1]).max() < 1e-3
    down = (253.736166 - rows) / 519.469611  # the y of the ray through every pixel
    floor = np.where(down < -0.1, -1.2 / np.minimum(down, -0.1), 0).astype(np.float32)
    found = normals_of(floor)
    lowest = found[400:470, 10:-10]
    assert np.abs(lowest - [0, 1, 0]).max() < 1e-2
    assert not found[:200].any()
    depth[100, 100] = 0
    assert not normals_of(depth)[97, 100].any()


@pytest.mark.parametrize("capacity", ["small", "large"])
@pytest.mark.parametrize("method", ["equal", "gradnorm", "uncertainty"])
def test_it_trains(method, capacity, tmp_path):
    problem = NYUv2(path=str(arrays(tmp_path)), validation_samples=2, capacity=capacity, backbone="resnet_fcn", **SIZE)
    record = run(problem, specify(problem, Method(method), 0, steps=2))
    metrics = {name: {"", *more} for name, more in record.test.more_metrics.items()}
    assert metrics["segmentation"] == {"", "pixel accuracy"}
    assert metrics["depth"] >= {"", "relative error"}
    assert metrics["normals"] == {"", "median", "within 11.25", "within 22.5", "within 30"}
    assert all(np.isfinite(values).all() for values in record.test.metrics.values())


def test_the_settings_of_the_paper_fit_its_networks(tmp_path):
    problem = NYUv2(
        height=320, width=320, output_reduction=4, depth_loss="squared", backbone="resnet_fcn", capacity="small"
    )
    outputs = problem.network().eval()(torch.zeros(1, 3, 320, 320))
    assert {name: tuple(output.shape[1:]) for name, output in outputs.items()} == {
        "segmentation": (13, 80, 80),
        "depth": (1, 80, 80),
        "normals": (3, 80, 80),
    }


def test_absent_data_are_named_with_what_to_get_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as raised:
        NYUv2().splits()
    message = str(raised.value)
    for wanted in (
        str(tmp_path / "nyuv2"),
        "train/image/0.npy",
        "nyu_depth_v2_labeled.mat",
        "894 classes",
        "setting path",
    ):
        assert wanted in message
    official(tmp_path)
    (tmp_path / "class13Mapping.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"Missing for that: class13Mapping.mat\. The setting"):
        NYUv2(path=str(tmp_path)).splits()


def test_files_of_another_form_are_named(tmp_path):
    folder = arrays(tmp_path)
    (folder / "val" / "depth" / "1.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*val/depth/1.npy, but an image of its number"):
        NYUv2(path=str(folder), validation_samples=2, **SIZE).splits()
    np.save(folder / "val" / "depth" / "1.npy", np.zeros((32, 64)))
    with pytest.raises(ValueError, match=r"depth/1.npy: wanted the shape \(H, W, 1\), found \(32, 64\)"):
        NYUv2(path=str(folder), validation_samples=2, **SIZE).splits()
    with pytest.raises(ValueError, match="height: wanted a multiple of 32, found 300"):
        NYUv2(height=300)
