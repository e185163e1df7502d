"""Backend `spconv`: the visible sites of every stage are an spconv SparseConvTensor.

Features travel through the encoder as the tensor's rows, image after image: (B, N, C), where N is
the number of sites per image at the stage. Pixels become sites after the stem, which is an ordinary
convolution in the original, too.
"""

import torch
from spconv.cppconstants import CPU_ONLY_BUILD
from spconv.pytorch import SparseConvTensor
from torch import Tensor

from convnextv2.fcmae.sparse.gather import VisiblePatches
from convnextv2.fcmae.sparse.spconv_ops import bare_tensor, strided_conv, submanifold_depthwise
from convnextv2.kernels.plain import site_positions
from convnextv2.layers import patch_linear


class SparseTensors(VisiblePatches):
    """Sites as SparseConvTensors; every image must show the same number of patches."""

    def __init__(
        self,
        mask: Tensor,
        grid: tuple[int, int],
        patch_size: int,
        grn_scope: str,
        device: torch.device | None = None,
    ) -> None:
        check_build(device or mask.device, cpu_only=CPU_ONLY_BUILD)
        super().__init__(mask, grid, patch_size, grn_scope, device)
        if self.patches.numel() == 0:
            raise ValueError("backend 'spconv' has no tensor without sites: no patch is visible")
        self.stages: dict[int, SparseConvTensor] = {}
        """Where the rows of a stage lie, by their number."""

    def downsample(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if x.ndim == 5:  # Patches of pixels: the stem.
            x = patch_linear(x, weight, bias)
            first = self._sites_of_patches(x.shape[2])
            self.stages[len(first.indices)] = first
            return x.flatten(1, 3)
        out = strided_conv(self._tensor(x), weight, bias)
        self.stages[len(out.indices)] = out.replace_feature(out.features[:, :0].detach())
        return self._per_image(out)

    def depthwise(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return self._per_image(submanifold_depthwise(self._tensor(x), weight, bias)), x

    def to_dense(self, x: Tensor) -> Tensor:
        # Not `SparseConvTensor.dense`: spconv 2.3.8 indexes there as PyTorch is about to forbid.
        tensor = self._tensor(x)
        canvas = x.new_zeros(tensor.batch_size, *tensor.spatial_shape, x.shape[-1])
        return canvas.index_put(tuple(tensor.indices.long().t()), tensor.features)

    def _sites_of_patches(self, side: int) -> SparseConvTensor:
        """The sites of the visible patches at `side` per patch, in the order of (B, V, s, s)."""
        height, width = self.grid[0] * side, self.grid[1] * side
        positions = site_positions(self.patches, self.grid, side).flatten()
        image, cell = positions // (height * width), positions % (height * width)
        indices = torch.stack([image, cell // width, cell % width], dim=1).int()
        return bare_tensor(indices, [height, width], len(self.patches))

    def _tensor(self, x: Tensor) -> SparseConvTensor:
        rows = x.flatten(0, 1)
        return self.stages[len(rows)].replace_feature(rows)

    def _per_image(self, x: SparseConvTensor) -> Tensor:
        features: Tensor = x.features
        return features.unflatten(0, (len(self.patches), -1))


def check_build(device: torch.device, *, cpu_only: bool) -> None:
    """Refuse tensors on a GPU when spconv was built for CPUs only."""
    if device.type == "cuda" and cpu_only:
        raise ValueError(
            "backend 'spconv' on a GPU needs a CUDA build, and the installed spconv has none: "
            "pip uninstall spconv && pip install spconv-cu126"
        )
