"""Citation keys of the methods: authors, title, where it appeared, and how to find it."""

from typing import NamedTuple


class Reference(NamedTuple):
    """A publication: authors, year, title, where it appeared and how to find it."""

    authors: str
    year: int
    title: str
    venue: str
    identifier: str

    def __str__(self) -> str:
        """One line as in a list of references."""
        return f"{self.authors} ({self.year}). {self.title}. {self.venue}. {self.identifier}"


REFERENCES = {
    "achtibat2024attnlrp": Reference(
        "Achtibat et al.",
        2024,
        "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers",
        "ICML",
        "arXiv:2402.05602",
    ),
    "adebayo2018sanity": Reference(
        "Adebayo et al.",
        2018,
        "Sanity Checks for Saliency Maps",
        "NeurIPS",
        "arXiv:1810.03292",
    ),
    "alber2019innvestigate": Reference(
        "Alber et al.",
        2019,
        "iNNvestigate Neural Networks!",
        "Journal of Machine Learning Research 20",
        "arXiv:1808.04260",
    ),
    "andeol2021learning": Reference(
        "Andeol et al.",
        2023,
        "Learning Domain Invariant Representations by Joint Wasserstein Distance Minimization",
        "Neural Networks 167",
        "arXiv:2106.04923",
    ),
    "arras2017explaining": Reference(
        "Arras et al.",
        2017,
        "Explaining Recurrent Neural Network Predictions in Sentiment Analysis",
        "WASSA",
        "arXiv:1706.07206",
    ),
    "bach2015pixel": Reference(
        "Bach et al.",
        2015,
        "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise "
        "Relevance Propagation",
        "PLoS ONE 10(7)",
        "doi:10.1371/journal.pone.0130140",
    ),
    "castro2009polynomial": Reference(
        "Castro, Gómez and Tejada",
        2009,
        "Polynomial Calculation of the Shapley Value Based on Sampling",
        "Computers & Operations Research 36(5)",
        "doi:10.1016/j.cor.2008.04.004",
    ),
    "gu2018understanding": Reference(
        "Gu, Yang and Tresp",
        2018,
        "Understanding Individual Decisions of CNNs via Contrastive Backpropagation",
        "ACCV",
        "arXiv:1812.02100",
    ),
    "kim2019saliency": Reference(
        "Kim et al.",
        2019,
        "Why are Saliency Maps Noisy? Cause of and Solution to Noisy Saliency Maps",
        "ICCV Workshops",
        "arXiv:1902.04893",
    ),
    "kindermans2018learning": Reference(
        "Kindermans et al.",
        2018,
        "Learning How to Explain Neural Networks: PatternNet and PatternAttribution",
        "ICLR",
        "arXiv:1705.05598",
    ),
    "kohlbrenner2020towards": Reference(
        "Kohlbrenner et al.",
        2020,
        "Towards Best Practice in Explaining Neural Network Decisions with LRP",
        "IJCNN",
        "arXiv:1910.09840",
    ),
    "lapuschkin2019unmasking": Reference(
        "Lapuschkin et al.",
        2019,
        "Unmasking Clever Hans Predictors and Assessing What Machines Really Learn",
        "Nature Communications 10",
        "doi:10.1038/s41467-019-08987-4",
    ),
    "liang2022credit": Reference(
        "Liang et al.",
        2022,
        "Credit Assignment for Trained Neural Networks Based on Koopman Operator Theory",
        "arXiv preprint",
        "arXiv:2212.00998",
    ),
    "maess2025uncovering": Reference(
        "Maeß et al.",
        2025,
        "Uncovering the Structure of Explanation Quality with Spectral Analysis",
        "arXiv preprint",
        "arXiv:2504.08553",
    ),
    "meyer2021hutch": Reference(
        "Meyer et al.",
        2021,
        "Hutch++: Optimal Stochastic Trace Estimation",
        "Symposium on Simplicity in Algorithms",
        "arXiv:2010.09649",
    ),
    "montavon2017explaining": Reference(
        "Montavon et al.",
        2017,
        "Explaining Nonlinear Classification Decisions with Deep Taylor Decomposition",
        "Pattern Recognition 65",
        "doi:10.1016/j.patcog.2016.11.008",
    ),
    "montavon2019layer": Reference(
        "Montavon et al.",
        2019,
        "Layer-Wise Relevance Propagation: An Overview",
        "Explainable AI, LNCS 11700",
        "doi:10.1007/978-3-030-28954-6_10",
    ),
    "roy2007effective": Reference(
        "Roy and Vetterli",
        2007,
        "The Effective Rank: A Measure of Effective Dimensionality",
        "European Signal Processing Conference",
        "pages 606-610",
    ),
    "samek2017evaluating": Reference(
        "Samek et al.",
        2017,
        "Evaluating the Visualization of What a Deep Neural Network Has Learned",
        "IEEE Transactions on Neural Networks and Learning Systems 28(11)",
        "arXiv:1509.06321",
    ),
    "selvaraju2017grad": Reference(
        "Selvaraju et al.",
        2017,
        "Grad-CAM: Visual Explanations from Deep Networks via Gradient-Based Localization",
        "ICCV",
        "arXiv:1610.02391",
    ),
    "shrikumar2017learning": Reference(
        "Shrikumar, Greenside and Kundaje",
        2017,
        "Learning Important Features Through Propagating Activation Differences",
        "ICML",
        "arXiv:1704.02685",
    ),
    "shrikumar2016not": Reference(
        "Shrikumar et al.",
        2016,
        "Not Just a Black Box: Learning Important Features Through Propagating Activation "
        "Differences",
        "arXiv preprint",
        "arXiv:1605.01713",
    ),
    "simonyan2014deep": Reference(
        "Simonyan, Vedaldi and Zisserman",
        2014,
        "Deep Inside Convolutional Networks: Visualising Image Classification Models and "
        "Saliency Maps",
        "ICLR Workshop",
        "arXiv:1312.6034",
    ),
    "sixt2020when": Reference(
        "Sixt, Granz and Landgraf",
        2020,
        "When Explanations Lie: Why Many Modified BP Attributions Fail",
        "ICML",
        "arXiv:1912.09818",
    ),
    "smilkov2017smoothgrad": Reference(
        "Smilkov et al.",
        2017,
        "SmoothGrad: Removing Noise by Adding Noise",
        "arXiv preprint",
        "arXiv:1706.03825",
    ),
    "springenberg2015striving": Reference(
        "Springenberg et al.",
        2015,
        "Striving for Simplicity: The All Convolutional Net",
        "ICLR Workshop",
        "arXiv:1412.6806",
    ),
    "strumbelj2010efficient": Reference(
        "Štrumbelj and Kononenko",
        2010,
        "An Efficient Explanation of Individual Classifications Using Game Theory",
        "Journal of Machine Learning Research 11",
        "https://jmlr.org/papers/v11/strumbelj10a.html",
    ),
    "sundararajan2017axiomatic": Reference(
        "Sundararajan, Taly and Yan",
        2017,
        "Axiomatic Attribution for Deep Networks",
        "ICML",
        "arXiv:1703.01365",
    ),
    "zeiler2014visualizing": Reference(
        "Zeiler and Fergus",
        2014,
        "Visualizing and Understanding Convolutional Networks",
        "ECCV",
        "arXiv:1311.2901",
    ),
    "zhang2018top": Reference(
        "Zhang et al.",
        2018,
        "Top-Down Neural Attention by Excitation Backprop",
        "International Journal of Computer Vision 126",
        "arXiv:1608.00507",
    ),
}
