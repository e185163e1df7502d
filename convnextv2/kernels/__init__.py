"""The four operations where time goes, each by the fastest implementation at hand."""

from convnextv2.kernels.plain import depthwise, gelu_grn, layer_norm, patch_depthwise

__all__ = ["depthwise", "gelu_grn", "layer_norm", "patch_depthwise"]
