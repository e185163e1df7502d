"""FCMAE: fully convolutional masked autoencoder (paper, section 3.1).

The encoder sees the visible patches only, on a sparse backend. Masked sites get a learned token, a
light ConvNeXt V2 decoder predicts the pixels, and the loss is the mean squared error on masked
patches, normalised patch by patch.
"""

from collections.abc import Collection
from typing import Literal, NamedTuple, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae.decoders import Canvas, build_decoder
from convnextv2.fcmae.masking import (
    check_finite,
    check_geometry,
    check_images,
    check_mask,
    check_something_hidden_and_seen,
    normalize_patches,
    patches_at,
    patchify,
    random_mask,
    send,
)
from convnextv2.fcmae.sparse import Backend, GRNScope, SparseSites, backend_of
from convnextv2.fcmae.sparse.gather import VisiblePatches
from convnextv2.kernels.plain import gather_sites, site_positions
from convnextv2.layers import PointwiseConv, init_weights

Prediction = Literal["all", "masked"]


class FCMAEOutput(NamedTuple):
    """loss: scalar; prediction: (B, L, p*p*C) in the target's scale; mask: (B, L), 1 = masked.

    For `prediction="masked"` the prediction is (B, M, p*p*C), the M masked patches of each image.

    A tuple, because ZeRO-3 finds the tensors of an output in tuples and dicts only.
    """

    loss: Tensor
    prediction: Tensor
    mask: Tensor


class FCMAE(nn.Module):
    """Masked autoencoder around a headless `encoder`.

    Args:
        encoder: A `ConvNeXtV2` with `num_classes=0`.
        image_size: Side in pixels, or (height, width); multiples of `patch_size`.
        patch_size: Side of a masked patch in pixels; a multiple of the encoder's total stride.
        mask_ratio: Fraction of the patches that is hidden when no mask is given.
        decoder: "convnext", "unet", "unet-noskip" or "transformer" (`convnextv2.fcmae.decoders`);
            `convnextv2.sizes.TABLE_1` has the paper's choices of the three.
        decoder_dim: Channels of the decoder (a UNet's at its coarsest scale).
        decoder_depth: Blocks of the decoder (of each scale of a UNet).
        norm_pix_loss: Normalise each target patch by its mean and (unbiased) variance.
        backend: "gather", "spconv", "masked-dense" or "auto"; see `convnextv2.fcmae.sparse`.
        grn_scope: "image" (paper), or "batch" as the released PyTorch code pooled.

    Raises:
        ValueError: For a geometry that does not fit, or an unknown decoder or backend.
    """

    def __init__(
        self,
        encoder: ConvNeXtV2,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 32,
        mask_ratio: float = 0.6,
        decoder: str = "convnext",
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        norm_pix_loss: bool = True,
        backend: Backend = "gather",
        grn_scope: GRNScope = "image",
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        check_geometry(height, width, patch_size, encoder.stride)
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio {mask_ratio} is not between 0 and 1")
        self.image_size, self.patch_size, self.mask_ratio = (height, width), patch_size, mask_ratio
        self.grid = (height // patch_size, width // patch_size)
        self.norm_pix_loss, self.grn_scope = norm_pix_loss, grn_scope
        self.sites = backend_of(backend)
        self.encoder = encoder
        self.proj = PointwiseConv(encoder.dims[-1], decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, decoder_dim, 1, 1))
        self.decoder = build_decoder(
            decoder, dim=decoder_dim, depth=decoder_depth, encoder_dims=encoder.dims
        )
        site = encoder.stride // self.decoder.upsampling
        self.pred = PointwiseConv(self.decoder.width, site**2 * encoder.in_channels)
        init_weights(self)
        for name, parameter in self.named_parameters():
            if name.endswith("mask_token"):
                nn.init.trunc_normal_(parameter, std=0.02)

    @classmethod
    def from_size(
        cls,
        size: str,
        *,
        in_channels: int = 3,
        stem_stride: int = 4,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 32,
        mask_ratio: float = 0.6,
        decoder: str = "convnext",
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        norm_pix_loss: bool = True,
        backend: Backend = "gather",
        grn_scope: GRNScope = "image",
        checkpoint_stages: Collection[int] = (),
    ) -> Self:
        """Build around one of `convnextv2.sizes.SIZES` by name."""
        encoder = ConvNeXtV2.from_size(
            size,
            num_classes=0,
            in_channels=in_channels,
            stem_stride=stem_stride,
            checkpoint_stages=checkpoint_stages,
        )
        return cls(
            encoder,
            image_size=image_size,
            patch_size=patch_size,
            mask_ratio=mask_ratio,
            decoder=decoder,
            decoder_dim=decoder_dim,
            decoder_depth=decoder_depth,
            norm_pix_loss=norm_pix_loss,
            backend=backend,
            grn_scope=grn_scope,
        )

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        prediction: Prediction = "all",
    ) -> FCMAEOutput:
        """Reconstruct (B, C, H, W) from its visible patches.

        The mask (B, L), 1 = masked, is either given (`masking.sample_masks` makes masks that depend
        on the samples' numbers only) or drawn from `generator`, by default PyTorch's global one.

        `prediction` is what is returned: "all" patches (B, L, p*p*C), or only the "masked" ones of
        each image in order (B, M, p*p*C), which is cheaper. The loss and its backward pass use the
        masked patches in either case.

        Raises:
            ValueError: For images or masks that do not fit, and on the CPU for images that hold
                NaN or infinity; see `convnextv2.fcmae.masking.check_finite`.
        """
        check_images(images, (self.encoder.in_channels, *self.image_size))
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction {prediction!r} is neither 'all' nor 'masked'")
        if mask is None:
            mask = random_mask(
                len(images),
                self.grid[0] * self.grid[1],
                self.mask_ratio,
                generator=generator,
                device=images.device if generator is None else generator.device,
            )
        # Checked on its own device: a mask on the CPU is checked without waiting for the GPU.
        mask = check_mask(mask, len(images), self.grid)
        check_something_hidden_and_seen(mask, alike=prediction == "masked")
        masked = send(mask.flatten().nonzero().flatten(), images.device)
        sites = self.sites(mask, self.grid, self.patch_size, self.grn_scope, images.device)
        decoded = self._decode(images, sites, mask)
        reconstructed = self._predict(decoded, masked)
        loss = self._error(reconstructed, patches_at(images, masked, self.patch_size))
        check_finite(loss, images)
        if prediction == "masked":
            shown = reconstructed.unflatten(0, (len(images), -1))
        else:
            visible = send((~mask).flatten().nonzero().flatten(), images.device)
            shown = reconstructed.new_empty(mask.numel(), reconstructed.shape[1])
            shown.index_copy_(0, masked, reconstructed)
            shown.index_copy_(0, visible, self._predict(decoded, visible))
            shown = shown.unflatten(0, mask.shape)
        return FCMAEOutput(loss, shown, send(mask, images.device).to(images.dtype))

    def encode(self, images: Tensor, mask: Tensor) -> Tensor:
        """Encode the visible patches: (B, C4, H/stride, W/stride), zeros at masked sites."""
        mask = check_mask(mask, len(images), self.grid)
        sites = self.sites(mask, self.grid, self.patch_size, self.grn_scope, images.device)
        return sites.to_dense(self.encoder.features(images, sites)).permute(0, 3, 1, 2)

    def target(self, images: Tensor) -> Tensor:
        """What the prediction is compared with: (B, L, p*p*C), in fp32 at least."""
        return self._normalized(patchify(images, self.patch_size))

    def loss(self, images: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error over the pixels of masked patches; `prediction` is that of "all"."""
        masked = check_mask(mask, len(images), self.grid).flatten().nonzero().flatten()
        patches = patches_at(images, send(masked, images.device), self.patch_size)
        return self._error(prediction.flatten(0, 1)[masked], patches)

    def loss_at(self, images: Tensor, mask: Tensor, masked: Tensor, visible: Tensor) -> Tensor:
        """The loss of `forward` by backend "gather"; looks at no value: for CUDA graphs.

        On the images' device: `mask` (B, L) bool, equally many of each row; `masked` (N,), their
        numbers in all B*L; `visible` (B, V), numbers of the other patches of each image.
        """
        sites = VisiblePatches(mask, self.grid, self.patch_size, self.grn_scope, patches=visible)
        reconstructed = self._predict(self._decode(images, sites, mask), masked)
        return self._error(reconstructed, patches_at(images, masked, self.patch_size))

    def _decode(self, images: Tensor, sites: SparseSites, mask: Tensor) -> Tensor:
        """The decoder's hidden map (B, h, w, D) of the whole image."""
        canvas = Canvas(sites, send(mask, images.device).unflatten(1, self.grid))
        skips: list[Tensor] = []
        if self.decoder.wants_skips:
            *skips, x = self.encoder.stage_features(images, sites)
        else:
            x = self.encoder.features(images, sites)
        decoded: Tensor = self.decoder(canvas.fill(self.proj(x), self.mask_token), skips, canvas)
        return decoded

    def _predict(self, decoded: Tensor, patches: Tensor) -> Tensor:
        """Pixels (N, p*p*C) predicted for the patches with numbers `patches` (N) among all B*L."""
        side = decoded.shape[1] // self.grid[0]
        # Stacked one above the other, the maps of the batch are one tall grid of patches.
        tall = (len(decoded) * self.grid[0], self.grid[1])
        x = self.pred(gather_sites(decoded, site_positions(patches[None], tall, side)[0]))
        # (row, column) of the site in its patch, then of the pixel in its site.
        pixels = x.unflatten(-1, (self.patch_size // side, self.patch_size // side, -1))
        return pixels.transpose(2, 3).flatten(1)

    def _normalized(self, patches: Tensor) -> Tensor:
        patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
        return normalize_patches(patches) if self.norm_pix_loss else patches

    def _error(self, prediction: Tensor, patches: Tensor) -> Tensor:
        """Mean squared error of (N, p*p*C) against the patches' targets; a scalar."""
        target = self._normalized(patches)
        return F.mse_loss(prediction.to(target.dtype), target)
