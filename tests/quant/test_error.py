import math

import pytest
import torch

from sdcompress.quant.error import sqnr_db


def test_known_ratio():
    weight = torch.full((10, 10), 2.0)
    assert sqnr_db(weight, weight + 0.2) == pytest.approx(20.0, abs=1e-4)  # float32's 0.2


def test_equal_is_infinite():
    assert sqnr_db(torch.ones(3), torch.ones(3)) == math.inf
