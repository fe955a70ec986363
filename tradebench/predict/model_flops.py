"""FLOPs of one token of training, in closed form: what a utilisation ("MFU") is quoted by.

With N parameters that multiply, L layers, attention of width W (heads x head dimension) and
sequences of S tokens, a forward pass takes 2 N + 4 L W S per token. A backward pass takes as much
for the gradients of activations, 2 N for those of the weights that are trained, and once more the
attention. All in all 6 N + 12 L W S (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).

Publications differ in two points, and so do their figures by up to a fifth. Most count attention as
if it were not causal; some count the half that a causal kernel computes. Some count the table of
embeddings among N although a lookup multiplies nothing.
"""

from __future__ import annotations


def model_flops_per_token(
    *,
    parameters: int,
    layers: int,
    width: int,
    sequence: int,
    causal: bool = False,
    trained: float = 1.0,
    recomputed: float = 0.0,
) -> float:
    """FLOPs per token of a training step; a multiply-add counts as two.

    Args:
        parameters: Those that multiply, adapters included; an embedding that is no output head
            does not, though many publications count it.
        layers: Decoder layers.
        width: Query heads times their dimension.
        sequence: Tokens of a sequence.
        causal: Whether attention counts the half that a causal kernel computes, or the whole.
        trained: Share of the parameters whose gradients are computed: next to nothing with
            adapters, and then about 4 N is left.
        recomputed: Share of the forward pass that runs twice. What is then counted is no longer
            the model's need but the hardware's work ("HFU").
    """
    attention = 4 * layers * width * sequence / (2 if causal else 1)
    forward = 2 * parameters + attention
    backward = 2 * parameters * (1 + trained) + 2 * attention
    return forward * (1 + recomputed) + backward
