"""The claims of the paper, in our own words: S1 to S25."""

from experiments.claim_table import Claim

BOTH = ("vgg16", "resnet50")
ALL = (*BOTH, "cifar_cnn")

CLAIMS = (
    Claim(
        "S1",
        "The maps of LRP alpha 1 beta 0 for a cat and a dog in one image are nearly the same: the "
        "mean absolute difference of the normalised maps is tiny.",
        "0.000371",
        "fig. 1e",
        ("vgg16",),
        ("two_classes",),
    ),
    Claim(
        "S2",
        "sigma_1 / sigma_2 of almost all pattern matrices A exceeds 6.",
        "> 6",
        "section 2.3, fig. 3a",
        ("vgg16",),
        ("pattern_spectrum",),
    ),
    Claim(
        "S3",
        "sigma_1 / sigma_2 is considerably larger for A * W than for W; between layers the ratio "
        "shrinks for W and grows for some layers for A * W.",
        "a figure",
        "section 2.3, fig. 3b and 3c",
        ("vgg16",),
        ("pattern_spectrum",),
    ),
    Claim(
        "S4",
        "Chains of positive, stochastic and non-negative matrices converge exponentially (straight "
        "lines on a log scale), half of zeros lowers the slope only a little, 7 multiplications "
        "reach floating-point precision; chains of normal matrices do not converge.",
        "7 multiplications",
        "appendix B, fig. 8a",
        ("matrices of VGG-16's shapes",),
        ("matrix_chains",),
    ),
    Claim(
        "S5",
        "Chains of alpha W+ + beta W- converge for beta < 4, and not for larger beta.",
        "beta < 4",
        "appendix B, fig. 8b",
        ("matrices of VGG-16's shapes",),
        ("matrix_chains",),
    ),
    Claim(
        "S6",
        "Maps of the true and of a random logit: SSIM very close to 1 for converging methods, "
        "between 0.4 and 0.8 for the others.",
        "about 1; 0.4 to 0.8",
        "section 4, fig. 4 and 9a",
        BOTH,
        ("random_logit",),
    ),
    Claim(
        "S7",
        "Randomised parameters: one group of methods stays near SSIM 1 even when convolutions are "
        "random, the rest drops; the groups are the same on both networks.",
        "about 1",
        "section 4, fig. 5 and 9b",
        BOTH,
        ("sanity_checks",),
    ),
    Claim(
        "S8",
        "Every modified backpropagation method except LRP-z and DeepLIFT reaches a median cosine "
        "similarity of at least 0.99; the gradient does not.",
        ">= 0.99",
        "section 4, fig. 6",
        BOTH,
        ("csc",),
    ),
    Claim(
        "S9",
        "LRP alpha 5 beta 4 converges less strongly on VGG-16 and considerably on ResNet-50.",
        "a figure",
        "section 4, fig. 6",
        BOTH,
        ("csc",),
    ),
    Claim(
        "S10",
        "LRP alpha 1 beta 0, PatternNet and the ablation of DeepLIFT converge fastest; "
        "PatternAttribution is slower, but exponential.",
        "a figure",
        "section 4, fig. 6",
        ("vgg16",),
        ("csc",),
    ),
    Claim(
        "S11",
        "The ablation of DeepLIFT shows a cosine similarity of 0 in the first layers of ResNet-50, "
        "by numerical instability.",
        "0",
        "section 4, fig. 6",
        ("resnet50",),
        ("csc",),
    ),
    Claim(
        "S12",
        "Even on the small network the median cosine similarity of LRP alpha 1 beta 0 exceeds "
        "1 - 1e-6.",
        "> 1 - 1e-6",
        "section 4, fig. 6d",
        ("cifar_cnn",),
        ("csc",),
    ),
    Claim(
        "S13",
        "The cosine similarity jumps at the input, which has 3 channels only.",
        "a figure",
        "section 3, fig. 6",
        ALL,
        ("csc",),
    ),
    Claim(
        "S14",
        "All experiments take about a day on one machine with two graphics cards.",
        "about a day",
        "section 3",
        ALL,
        reason="it concerns a machine and software of 2020",
    ),
    Claim(
        "S15",
        "Maps of guided backpropagation do not change when the last layer is randomised.",
        "identical maps",
        "section 1, fig. 1a",
        ("vgg16",),
        ("sanity_checks",),
    ),
    Claim(
        "S16",
        "Products of non-negative matrices converge to rank 1, unless the limit of the matrices "
        "has a zero column, a multiple of a unit vector as column, or two orthogonal columns; the "
        "least cosine of two columns of the product never falls.",
        "theorem 1",
        "section 2.2, appendix A",
        (),
        ("matrix_chains",),
    ),
    Claim(
        "S17",
        "LRP-z is gradient times input for networks of ReLU, max pooling and linear layers, and "
        "does not converge.",
        "equal",
        "section 2.3",
        ALL,
        ("csc",),
    ),
    Claim(
        "S18",
        "Deep Taylor decomposition converges necessarily; randomising the last layer can flip the "
        "sign of its maps and of those of LRP alpha 1 beta 0.",
        "flipped maps",
        "sections 2.3 and 3",
        ("vgg16",),
        ("csc", "sanity_checks"),
    ),
    Claim(
        "S19",
        "DeepLIFT does not converge because positive and negative relevance mix; without the "
        "mixing it does.",
        "a figure",
        "section 2.3, fig. 6",
        BOTH,
        ("csc",),
    ),
    Claim(
        "S20",
        "1x1 convolutions converge per location only; overlapping kernels converge globally, but "
        "slower than dense layers; on maps of 7x7 a few 3x3 convolutions converge considerably.",
        "no number",
        "section 2.2",
        ("resnet50",),
        ("matrix_chains", "csc"),
    ),
    Claim(
        "S21",
        "LRP-CMP on VGG-16 does not converge in dense layers and converges in convolutions, so "
        "that maps change by local rescaling; on ResNet-50 it converges globally.",
        "a figure",
        "section 5, fig. 7",
        BOTH,
        ("csc", "sanity_checks"),
    ),
    Claim(
        "S22",
        "Contrastive LRP without its maximum looks like the difference of two maps in fig. 1e; "
        "contrastive excitation backpropagation is class-sensitive through the last layer only.",
        "a figure",
        "section 5",
        ("vgg16",),
        ("two_classes",),
    ),
    Claim(
        "S23",
        "Maps of LRP alpha 5 beta 4 are noisier.",
        "no number",
        "section 1, appendix B",
        BOTH,
        ("sanity_checks",),
    ),
    Claim(
        "S24",
        "The guided backpropagation maps that Adebayo et al. show as identical for early layers "
        "come from a bug of their code.",
        "confirmed with its authors",
        "section 3, footnote 1",
        (),
        reason="the code of that paper is not part of this project",
    ),
    Claim(
        "S25",
        "LRP alpha-beta does not converge for sufficiently large alpha and beta, and is then "
        "noisy.",
        "a figure",
        "section 1",
        BOTH,
        ("csc",),
    ),
)
