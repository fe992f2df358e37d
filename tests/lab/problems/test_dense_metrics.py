"""The metrics of dense tasks on examples that are computed by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from equipoise.lab.problems import dense
from equipoise.lab.problems import dense_metrics as metrics

CLASSES = torch.tensor([[[0, 0, 1, -1], [2, 1, 1, -1]]])
PREDICTED = torch.tensor([[[0, 1, 1, 2], [2, 1, 0, 0]]])
SCORES = torch.nn.functional.one_hot(PREDICTED, 4).permute(0, 3, 1, 2).float()

DEPTH = torch.tensor([[[[2.0, 4.0, 0.0, 1.0]]]])
FOUND = torch.tensor([[[[1.0, 4.5, 9.0, 1.0]]]])


def normals(*degrees):
    """Normals ``(1, 3, 1, W)`` in a plane, at angles to the z axis."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.sin(), 0 * angle, angle.cos()])[None, :, None, :]


TARGET_NORMALS = torch.cat([normals(0.0, 0, 0, 0, 0), torch.zeros(1, 3, 1, 2)], dim=3)
FOUND_NORMALS = 7 * normals(0.0, 10, 20, 25, 90, 45, 45)


def value(metric, outputs, targets):
    """The metric of a whole split, which must not depend on the batches."""
    whole, parts = metric, metric.clone()
    whole.update(outputs, targets)
    for half in torch.arange(outputs.shape[-1]).split(2):
        parts.update(outputs[..., half], targets[..., half])
    assert_close(whole.compute(), parts.compute(), rtol=0, atol=0)
    return whole.compute().item()


def test_pixel_accuracy_leaves_void_out():
    assert value(metrics.PixelAccuracy(), SCORES, CLASSES) == pytest.approx(4 / 6)


def test_mean_iou_is_over_the_classes_that_occur():
    # class 0: 1 of {0 0, predicted at one 1 too} = 1/3; class 1: 2/4; class 2: 1/1; class 3 occurs nowhere
    assert value(metrics.MeanIoU(4), SCORES, CLASSES) == pytest.approx((1 / 3 + 2 / 4 + 1) / 3)


def test_a_class_that_is_predicted_for_void_pixels_alone_does_not_count():
    scores = torch.nn.functional.one_hot(torch.tensor([[[0, 3]]]), 4).permute(0, 3, 1, 2).float()
    assert value(metrics.MeanIoU(4), scores, torch.tensor([[[0, -1]]])) == 1


def test_depth_errors_leave_pixels_without_depth_out():
    assert value(metrics.DepthAbsoluteError(), FOUND, DEPTH) == pytest.approx((1 + 0.5 + 0) / 3)
    assert value(metrics.DepthRelativeError(), FOUND, DEPTH) == pytest.approx((0.5 + 0.125 + 0) / 3)
    assert value(metrics.DepthRMSError(), FOUND, DEPTH) == pytest.approx(math.sqrt((1 + 0.25) / 3))


def test_angles_leave_pixels_without_a_normal_out_and_do_not_depend_on_length():
    assert value(metrics.MeanAngle(), FOUND_NORMALS, TARGET_NORMALS) == pytest.approx(
        (0 + 10 + 20 + 25 + 90) / 5, abs=1e-4
    )
    assert value(metrics.MedianAngle(), FOUND_NORMALS, TARGET_NORMALS) == pytest.approx(20, abs=0.011)
    shares = {11.25: 2 / 5, 22.5: 3 / 5, 30.0: 4 / 5}
    for degrees, share in shares.items():
        assert value(metrics.AngleWithin(degrees), FOUND_NORMALS, TARGET_NORMALS) == pytest.approx(share)


def test_the_median_is_the_lower_one_of_an_even_number():
    assert value(metrics.MedianAngle(), FOUND_NORMALS[..., :4], TARGET_NORMALS[..., :4]) == pytest.approx(10, abs=0.011)


def test_keypoint_error_is_a_share_of_the_diagonal_and_leaves_absent_ones_out():
    target, maps = torch.zeros(1, 3, 30, 40), torch.full((1, 3, 30, 40), -1.0)
    target[0, 0, 10, 10] = target[0, 1, 5, 5] = 1
    maps[0, 0, 14, 13] = 0.2  # 5 pixels away
    maps[0, 1, 5, 5] = 0.1
    maps[0, 2, 29, 39] = 5
    metric = metrics.KeypointError()
    metric.update(maps, target)
    assert metric.compute().item() == pytest.approx(100 * (5 / 50 + 0) / 2)


@pytest.mark.parametrize(
    ("metric", "outputs", "targets"),
    [
        (metrics.PixelAccuracy(), SCORES, -torch.ones_like(CLASSES)),
        (metrics.MeanIoU(4), SCORES, -torch.ones_like(CLASSES)),
        (metrics.DepthAbsoluteError(), FOUND, torch.zeros_like(DEPTH)),
        (metrics.MedianAngle(), FOUND_NORMALS, torch.zeros_like(TARGET_NORMALS)),
    ],
)
def test_without_a_valid_pixel_there_is_no_number(metric, outputs, targets):
    metric.update(outputs, targets)
    assert metric.compute().isnan()


def test_losses_leave_invalid_pixels_out():
    log_softmax = SCORES.log_softmax(1)
    picked = [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 2)]
    wanted = -sum(log_softmax[b, CLASSES[b, h, w], h, w] for b, h, w in picked) / 6
    assert_close(dense.segmentation().loss(SCORES, CLASSES), wanted)
    assert dense.depth("absolute").loss(FOUND, DEPTH).item() == pytest.approx(1.5 / 3)
    assert dense.depth("squared").loss(FOUND, DEPTH).item() == pytest.approx(1.25 / 3)
    cosines = [math.cos(math.radians(degrees)) for degrees in (0, 10, 20, 25, 90)]
    assert dense.normals().loss(FOUND_NORMALS, TARGET_NORMALS).item() == pytest.approx(1 - sum(cosines) / 5, abs=1e-6)


def test_a_batch_without_a_valid_pixel_has_the_loss_0():
    assert dense.segmentation().loss(SCORES, -torch.ones_like(CLASSES)) == 0
    assert dense.depth("absolute").loss(FOUND, torch.zeros_like(DEPTH)) == 0
    assert dense.normals().loss(FOUND_NORMALS, torch.zeros_like(TARGET_NORMALS)) == 0
