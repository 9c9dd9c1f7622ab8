"""What the numbers mean: a short phrase to show beside each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

READINGS = {  # by the first part of the name; the longest that fits counts
    "accuracy_of": "of the classifier on real test images",
    "active_units": "latents whose mean depends on the image (variance > 0.01)",
    "beta_vae_score": "accuracy on which factor was kept equal (chance: 1 / factors)",
    "bits_per_dim": "upper bound of -log2 p(8-bit image) per pixel and channel",
    "compression_ratio": "bytes of the image / bytes of the code",
    "confident": "share of samples that the classifier is sure of (probability > 0.9)",
    "coverage": "share of real images that have a sample among their neighbours",
    "dci_completeness": "1: every factor sits in one latent",
    "dci_disentanglement": "1: every latent stands for one factor",
    "dci_informativeness": "accuracy of the factors predicted from the code",
    "density": "samples per neighbourhood of real images; 1 for the real distribution",
    "distortion": "-log p(x | z) of the discrete image, in nats",
    "distortion_large": "L_0 = -log p(x_0 | x_1), in nats per image",
    "distortion_small": "L_0 = -log p(x_0 | x_1), in nats per image",
    "elbo": "nats per image, of what training maximises",
    "factor_vae_score": "accuracy of a vote on which factor was kept equal",
    "fid": "Fréchet distance of the samples to the training images, biased upwards for few images",
    "fid_corrected": "the same without the bias expected at this number of images; 0 is perfect",
    "fid_floor": "raw Fréchet distance of the real test split to train: "
    "what a perfect model would reach",
    "inception_score": "sure and diverse by the classifier; number of classes at most",
    "kid": "squared kernel distance, unbiased; 0 is perfect",
    "kl": "nats per image",
    "log_likelihood": "nats per image, larger is better",
    "loss": "what training minimises, no yardstick between models",
    "memorised": "samples closer to training images than 95 % of real test images are; "
    "0.05 for an honest model",
    "lpips": "distance of reconstructions in a network's features; 0 for equal images",
    "mig": "mutual information gap of the two best latents per factor",
    "mse": "squared error of the prediction, a mean over pixels",
    "nats": "upper bound of -log p(binarised image); not on the 8-bit scale",
    "precision": "share of samples that lie among real images",
    "psnr": "dB, of reconstructions of test images; 6 dB more is half the RMS error",
    "psnr_compressed": "dB, through one byte per latent",
    "rate": "KL(q(z | x) || p(z)) in nats per image",
    "rate_large": "L_T + sum of the L_t, in nats per image",
    "rate_small": "L_T + sum of the L_t, in nats per image",
    "recall": "share of real images that lie among the samples",
    "reconstruction": "nats per image, log p(x | z)",
    "sap": "gap in accuracy of the two best latents per factor",
    "ssim": "structural similarity of reconstructions to test images; 1 for equal images",
}


def reading(
    name: str, metrics: Mapping[str, float | None], context: Mapping[str, Any] | None = None
) -> str:
    """One phrase for ``test/fid_classifier_360``; a distance is given as a multiple of its floor.

    Arguments:
        name: of the number, with its stage in front.
        metrics: all numbers of the model.
        context: of the number; it may name its scale, or the estimate that is the lowest.
    """
    multiple = _of_floor(name, metrics)
    if multiple is not None:
        return f"{multiple:.2f} x the floor"
    rest = name.partition("/")[2]
    fitting = [prefix for prefix in READINGS if rest == prefix or rest.startswith(f"{prefix}_")]
    phrase = READINGS[max(fitting, key=len)] if fitting else ""
    context = context or {}
    scale = context.get("scale", "")
    estimate = context.get("estimate", "")
    if estimate and estimate not in rest:
        return f"{phrase}; the lowest bound, {estimate}"
    return f"{phrase}; {scale}" if scale else phrase


def _of_floor(name: str, metrics: Mapping[str, float | None]) -> float | None:
    """A raw Fréchet distance over that of real images; None for other numbers."""
    stage, _, rest = name.partition("/")
    if not rest.startswith("fid_") or rest.startswith(("fid_floor_", "fid_corrected_")):
        return None
    floor = metrics.get(f"{stage}/fid_floor_{rest.removeprefix('fid_')}")
    value = metrics[name]
    return value / floor if floor and value is not None else None
