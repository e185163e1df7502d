"""FCMAE: the masked autoencoder, its masks and decoders, and the encoder on visible patches."""

from convnextv2.fcmae.model import FCMAE, FCMAEOutput, Prediction

__all__ = ["FCMAE", "FCMAEOutput", "Prediction"]
