"""ConvNeXt V2 and FCMAE: the method, single-process maths and data (arXiv 2301.00808)."""
