"""The claims of the paper, in our own words: K-C1 to K-C11.

K-C1 to K-C9 are what its sections III and IV show or prove. K-C10 and K-C11 are what these stand
for: that the operators describe the network, and that credit says how much a component contributes.
"""

from experiments.claim_table import Claim

LENET, POOLED = "lenet5", "pooled_mlp"

CLAIMS = (
    Claim(
        "K-C1",
        "Layers of LeNet-5: convolutions have more credit than dense layers, and poolings have the "
        "least.",
        "a figure without numbers",
        "section IV.A, fig. 4a",
        (LENET,),
        ("credits",),
    ),
    Claim(
        "K-C2",
        "Credits of convolution kernels differ, and feature maps do not show them.",
        "a figure without numbers",
        "section IV.A, fig. 4a",
        (LENET,),
        ("credits",),
    ),
    Claim(
        "K-C3",
        "Feature weights of the predicted class highlight the strokes of the digit.",
        "a figure",
        "section IV.B, fig. 4b",
        (POOLED,),
        ("feature_weights",),
    ),
    Claim(
        "K-C4",
        "If rank B = min(m, n) and A is the pseudo-inverse of B, ||BA - I_n|| has its least value "
        "sqrt(max(n - m, 0)).",
        "theory",
        "theorem 4",
        (),
        ("theorems",),
    ),
    Claim(
        "K-C5",
        "Vec(AXB) = (A kron B^T) Vec(X); |det dK/dK_i| is the product of |det K_s|^n over other "
        "blocks, so that the place of a block does not matter; a larger sensitivity is a smaller "
        "credit.",
        "theory",
        "theorems 1, 5 and 6",
        (),
        ("theorems",),
    ),
    Claim(
        "K-C6",
        "The determinant of a non-square matrix is the change of volume, the product of its "
        "singular values; where it is zero, the non-zero eigenvalues have it.",
        "theory",
        "section III.D",
        (),
        ("theorems",),
    ),
    Claim(
        "K-C7",
        "The pseudo-inverse meets Penrose's four conditions and solves least-squares problems.",
        "theory",
        "theorems 2 and 3",
        (),
        ("theorems",),
    ),
    Claim(
        "K-C8",
        "Alignment is without loss from large to small, and loses sqrt(q - p) from small to large; "
        "the operator of the block is recovered.",
        "theory",
        "sections III.B and III.C, eq. 1",
        (),
        ("theorems",),
    ),
    Claim(
        "K-C9",
        "The mean over 10 random alignments is more exact than one (a tenth of the variance).",
        "no number",
        "section IV.A",
        (LENET, POOLED),
        ("averaging",),
    ),
    Claim(
        "K-C10",
        "The product of the operators is a valid linear approximation of the network.",
        "no number",
        "section IV.B",
        (POOLED,),
        ("feature_weights",),
    ),
    Claim(
        "K-C11",
        "Credit says how much a component contributes to what the network can do.",
        "no number",
        "abstract, sections I and III.D",
        (),
        ("meaning",),
    ),
)
