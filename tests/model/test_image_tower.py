import pytest
import torch
from torch.nn import functional as F

from pocketclip.model.image_tower import patches


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 11, 13), (1, 5, 4, 4)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_product_of_patches_is_torchs_convolution(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    pixels = torch.randn(shape, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight = torch.randn(6, shape[1], 4, 4, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(pixels, weight, stride=4).flatten(2).transpose(1, 2)
    found = patches(pixels, 4) @ weight.permute(2, 3, 1, 0).flatten(0, 2)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    for one, other in zip(
        *(torch.autograd.grad((x * weights).sum(), (pixels, weight)) for x in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other)
