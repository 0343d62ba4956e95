"""The claims of the paper, in our own words: M1 to M12."""

from experiments.claim_table import Claim

MNIST, VGG = "a CNN for MNIST", "vgg16"
BOTH = (MNIST, VGG)
EXPERIMENTS = ("mnist", "imagenet")
ALL = (*EXPERIMENTS, "representation")

CLAIMS = (
    Claim(
        "M1",
        "LRP-gamma: a larger gamma makes explanations more stable (sigma_1 of the redistribution "
        "matrix falls) and less sensitive (its Frobenius norm falls).",
        "a figure",
        "section 4.2, fig. 3 and 4",
        BOTH,
        ALL,
    ),
    Claim(
        "M2",
        "The spectral metric SSM of LRP-gamma is largest at an intermediate gamma.",
        "a figure; values in table 1",
        "section 4.2, fig. 3 and 4",
        BOTH,
        ALL,
    ),
    Claim(
        "M3",
        "SmoothGrad: more noise raises stability and lowers sensitivity; SSM has a clear optimum "
        "on ImageNet and is flat on MNIST.",
        "a figure",
        "section 4.2, fig. 3 and 4",
        BOTH,
        EXPERIMENTS,
    ),
    Claim(
        "M4",
        "Pixel flipping and entropy prefer an intermediate gamma too.",
        "a figure; values in table 1",
        "section 4.2, fig. 3 and 4",
        BOTH,
        EXPERIMENTS,
    ),
    Claim(
        "M5",
        "Entropy fails for SmoothGrad with little noise: it is low although the explanation is "
        "unstable.",
        "a figure",
        "section 4.2, fig. 3 and 4",
        BOTH,
        EXPERIMENTS,
    ),
    Claim(
        "M6",
        "SSM, pixel flipping and entropy disagree on the best gamma.",
        "table 1",
        "section 4.2, appendix A",
        BOTH,
        EXPERIMENTS,
    ),
    Claim(
        "M7",
        "The product of the layers' L1 norms 1 + 2 c / (1 + gamma - c) bounds the L1 norm of the "
        "explanation, falls with gamma and saturates quickly; each layer's norm is that formula, "
        "and its worst output is the same for every gamma.",
        "equations",
        "section 3, eq. 9, appendix B, eq. 11",
        (),
        ("mnist",),
    ),
    Claim(
        "M8",
        "Layers in which positive contributions dominate (small c) hardly change with gamma.",
        "no number",
        "appendix B",
        (),
        ("mnist",),
    ),
    Claim(
        "M9",
        "A large gamma gives coarse maps that are alike for all classes; gamma = 0 gives noisy "
        "ones that differ.",
        "a figure",
        "section 4.2, fig. 2 and 5",
        BOTH,
        EXPERIMENTS,
    ),
    Claim(
        "M10",
        "The uniform redistribution matrix has the smallest sigma_1 and no sensitivity (SSM = 1).",
        "theory",
        "section 3",
        (),
        EXPERIMENTS,
    ),
    Claim(
        "M11",
        "Accuracies: top-1 about 98 % on MNIST, top-5 about 90 % on ImageNet.",
        "98 %, 90 %",
        "section 4.1",
        BOTH,
        EXPERIMENTS,
    ),
    Claim(
        "M12",
        "The collapse to rank 1 that Sixt et al. describe appears as SSM -> 1 for large gamma.",
        "no number",
        "sections 2.2 and 3",
        (MNIST,),
        ("mnist", "representation"),
    ),
)
