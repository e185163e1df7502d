"""Which visible patches lie around each: built once per batch, read by every depthwise layer."""

import torch
from torch import Tensor


def neighbour_table(patches: Tensor, grid: tuple[int, int], around: int) -> Tensor:
    """The number of the patch at each offset from each of `patches` (B, V), -1 if none is visible.

    Returns (B*V, around, around) int32 on the patches' device, without waiting for the device.
    Patches are numbered through the batch. A kernel of size K needs `around` >= K if a patch is a
    single site, and less if it is larger.
    """
    batch, visible = patches.shape
    reach = around // 2
    slots = patches.new_full((batch, grid[0] + 2 * reach, grid[1] + 2 * reach), -1)
    image = torch.arange(batch, device=patches.device)[:, None]
    row, column = patches // grid[1], patches % grid[1]
    numbers = torch.arange(batch * visible, device=patches.device)
    slots[image, row + reach, column + reach] = numbers.view(batch, visible)
    offset = torch.arange(around, device=patches.device)
    rows, columns = row[..., None, None] + offset[:, None], column[..., None, None] + offset
    return slots[image[..., None, None], rows, columns].flatten(0, 1).int()
