import pytest

from sdcompress.errors import UserError
from sdcompress.searching.target import parse_size, parse_target


@pytest.mark.parametrize(
    ("text", "amount"), [("700MB", 700e6), ("1.5 GiB", 1.5 * 2**30), ("12345B", 12345.0), (".5kb", 500.0)]
)
def test_amounts_of_bytes(text: str, amount: float) -> None:
    assert parse_size(text).of(1e12) == amount


def test_a_ratio_is_of_the_original() -> None:
    assert parse_size("0.25x").of(400) == 100


@pytest.mark.parametrize("text", ["", "0x", "0MB", "-1MB", "700", "0.3", "700 parsecs", "nanx", "1e3MB", "x"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_size(text)
    assert error.value.exit_code == 2 and "--size" in str(error.value)


def test_the_objective() -> None:
    assert parse_target(size="0.3x").objective == "quality"
    assert parse_target(quality="psnr_db>=40").objective == "size"
    assert parse_target(size="0.3x", quality="psnr_db>=40").objective == "quality"
    with pytest.raises(UserError):
        parse_target()
