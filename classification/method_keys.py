"""The keys of every shipped method with their defaults, a section for each. Greek letters are the papers' symbols."""

from __future__ import annotations

from fvcore.common.config import CfgNode


def add_method_keys(cfg: CfgNode) -> None:
    """Adds the section of every shipped method to ``cfg``, in place."""
    # Hinton et al. 2015: WEIGHT * T^2 * KL(teacher || student).
    cfg.KD = CfgNode()
    cfg.KD.WEIGHT = 1.0
    cfg.KD.TEMPERATURE = 4.0  # T

    # Zhao et al. 2022, eq. 7: WEIGHT * T^2 * (alpha * TCKD + beta * NCKD). "dkd_tckd" and "dkd_nckd" are WEIGHT * T^2 *
    # one part alone, without ALPHA and BETA; in "dkd_coupled" the weight of NCKD is 1 - p_y, as in KD, not BETA.
    cfg.DKD = CfgNode()
    cfg.DKD.WEIGHT = 1.0
    cfg.DKD.ALPHA = 1.0
    cfg.DKD.BETA = 8.0
    cfg.DKD.TEMPERATURE = 4.0

    # Yang et al. 2023: WEIGHT * (target part + gamma * T^2 * non-target part).
    cfg.NKD = CfgNode()
    cfg.NKD.WEIGHT = 1.0
    cfg.NKD.GAMMA = 1.5
    cfg.NKD.TEMPERATURE = 1.0

    # Wei et al. 2024: WEIGHT * (D_con + beta * D_com) over the regions.
    cfg.SDD = CfgNode()
    cfg.SDD.WEIGHT = 1.0
    cfg.SDD.BASE = "dkd"  # the loss of a region, with that method's settings except WEIGHT: "kd", "dkd" or "nkd"
    cfg.SDD.SCALES = (1, 2, 4)  # m for m x m regions, the first 1
    # Allow scales larger than a map's side: adaptive pooling repeats its positions, as in the published code.
    cfg.SDD.REPEAT = False
    cfg.SDD.COMPLEMENTARY_WEIGHT = 2.0  # beta

    # Romero et al. 2015: WEIGHT * mean squared error of one stage's map, the student's adapted by a convolution. The
    # weights of FITNET, AT and RKD are those of the DKD paper's tables, from Tian et al. 2020.
    cfg.FITNET = CfgNode()
    cfg.FITNET.WEIGHT = 100.0
    cfg.FITNET.STAGE = 1  # from 0, the largest map; the tables use the second stage

    # Zagoruyko and Komodakis 2017: WEIGHT * squared distance of normalised attention maps, summed over the stages.
    cfg.AT = CfgNode()
    cfg.AT.WEIGHT = 1000.0
    cfg.AT.STAGES = 0  # the last stages that are compared; 0: all, of networks with equally many
    cfg.AT.POWER = 2  # p, the exponent of the activations

    # Park et al. 2019: pairwise distances and angles of the pooled features.
    cfg.RKD = CfgNode()
    cfg.RKD.DISTANCE_WEIGHT = 25.0
    cfg.RKD.ANGLE_WEIGHT = 50.0

    # Chen et al. 2021: WEIGHT * HCL between the student's fused stage maps and pooled feature and the teacher's.
    cfg.REVIEWKD = CfgNode()
    cfg.REVIEWKD.WEIGHT = 1.0  # on CIFAR-100 chosen pair by pair: 5 for ResNet32x4 and ResNet8x4
    # Channels of the fusion; 0: as many as the student's pooled feature has, at most 512.
    cfg.REVIEWKD.MID_CHANNELS = 0
    cfg.REVIEWKD.STAGES = 0  # the last stages that are compared; 0: all, of networks with equally many
    # Fuse the student's maps before their last ReLU, as the published code does on ImageNet. The teacher's always are.
    cfg.REVIEWKD.PREACTIVATION = False

    # Wang et al. 2024: WEIGHT * (instance + sample + category term), contrastive losses on L2-normalised logits.
    cfg.MCLD = CfgNode()
    cfg.MCLD.WEIGHT = 1.0
    cfg.MCLD.TEMPERATURE = 0.2  # tau
    cfg.MCLD.QUEUE = 0  # earlier teacher logits that are kept as negatives; 0: as many as training samples
    # Add the cross-entropy with the labels: False for strong teachers, True for ResNet56, ResNet110 and R34 to R18.
    cfg.MCLD.CE = False
    # The three terms. With all of them False the student is a plain one, with the cross-entropy whatever CE is.
    cfg.MCLD.INSTANCE = True
    cfg.MCLD.SAMPLE = True
    cfg.MCLD.CATEGORY = True
    # "counts": the category term compares the mean over positives with the mean over negatives, as the paper's text
    # says; "supcon": the supervised contrastive loss of Khosla et al. 2020, which it cites.
    cfg.MCLD.CATEGORY_NORM = "counts"

    # Xu et al. 2025: WEIGHT * (KD + sum over the sub-logits (KD + CE_WEIGHT * cross-entropy) + lambda * orthogonality).
    # The defaults are ours: only the paper's abstract is known to us.
    cfg.HCD = CfgNode()
    cfg.HCD.WEIGHT = 1.0
    cfg.HCD.N = 4  # n, the sub-logits
    cfg.HCD.TEMPERATURE = 4.0
    cfg.HCD.CE_WEIGHT = 1.0
    cfg.HCD.ORTHOGONAL_WEIGHT = 1.0  # lambda
    cfg.HCD.STAGE = -1  # the student's stage whose map is used, from 0, the largest map; -1: the last
    cfg.HCD.PROJECTOR_CHANNELS = 0  # 0: as many as the teacher's feature has

    _add_relations(cfg)
    _add_imitation(cfg)
    _add_levels(cfg)


def _add_relations(cfg: CfgNode) -> None:
    # Tung and Mori 2019: WEIGHT * mean squared error of the similarities of samples, on the last stage's map. The
    # weights of SP, NST, PKT, KDSVD, VID and CRD are those of Tian et al. 2020 for CIFAR-100.
    cfg.SP = CfgNode()
    cfg.SP.WEIGHT = 3000.0

    # Huang and Wang 2017: WEIGHT * squared MMD of the channels, summed over the stages.
    cfg.NST = CfgNode()
    cfg.NST.WEIGHT = 50.0

    # Passalis and Tefas 2018: WEIGHT * divergence of the samples' similarities, on the pooled features.
    cfg.PKT = CfgNode()
    cfg.PKT.WEIGHT = 30000.0

    # Lee et al. 2018: WEIGHT * squared error of the relations of singular vectors of consecutive stages.
    cfg.KDSVD = CfgNode()
    cfg.KDSVD.WEIGHT = 1.0
    cfg.KDSVD.K = 1  # k, the vectors of a map

    # Tian et al. 2020: WEIGHT * noise-contrastive estimation on embedded pooled features.
    cfg.CRD = CfgNode()
    cfg.CRD.WEIGHT = 0.8
    cfg.CRD.FEATURE_DIM = 128  # of the embeddings
    cfg.CRD.NEGATIVES = 16384  # K, of a sample, from other classes
    cfg.CRD.TEMPERATURE = 0.07  # tau
    cfg.CRD.MOMENTUM = 0.5  # of the memories


def _add_imitation(cfg: CfgNode) -> None:
    # Ahn et al. 2019: WEIGHT * minus log-likelihood of the teacher's stage maps, summed over the stages.
    cfg.VID = CfgNode()
    cfg.VID.WEIGHT = 1.0
    cfg.VID.INIT_VARIANCE = 5.0  # of each channel; it is learned

    # Heo et al. 2019: WEIGHT * partial squared distance of the stage maps before their last ReLU.
    cfg.OFD = CfgNode()
    cfg.OFD.WEIGHT = 0.001
    cfg.OFD.STAGES = 0  # the last stages that are compared; 0: as many as both networks have

    # Chen et al. 2022: WEIGHT * mean squared error of the projected map. The student gets the teacher's classifier.
    # CE_WEIGHT is 0 there.
    cfg.SIMKD = CfgNode()
    cfg.SIMKD.WEIGHT = 1.0
    cfg.SIMKD.REDUCTION = 2  # the projector is narrower than the teacher's map by this factor


def _add_levels(cfg: CfgNode) -> None:
    # Huang et al. 2022: WEIGHT * T^2 * (beta * inter-class + gamma * intra-class part), 1 - Pearson correlation each.
    cfg.DIST = CfgNode()
    cfg.DIST.WEIGHT = 2.0
    cfg.DIST.INTER_WEIGHT = 1.0  # beta
    cfg.DIST.INTRA_WEIGHT = 1.0  # gamma
    cfg.DIST.TEMPERATURE = 4.0  # T; on ImageNet 1

    # Jin et al. 2023: WEIGHT * (KD + relations of samples + relations of classes), summed over the temperatures.
    cfg.MLKD = CfgNode()
    cfg.MLKD.WEIGHT = 0.9
    cfg.MLKD.TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)

    # Li et al. 2023: WEIGHT * KD at T = START + SPAN * sigmoid(theta), whose gradient is reversed, with a factor that
    # rises from 0 to 1 over EPOCHS.
    cfg.CTKD = CfgNode()
    cfg.CTKD.WEIGHT = 0.9
    cfg.CTKD.START = 1.0
    cfg.CTKD.SPAN = 20.0
    cfg.CTKD.EPOCHS = 10  # on ImageNet 5

    # Guo et al. 2023: WEIGHT * mean squared error of the class activation maps, pooled to RESOLUTION x RESOLUTION.
    cfg.CATKD = CfgNode()
    cfg.CATKD.WEIGHT = 400.0  # with CATKD.NORMALIZE; the published code chooses it pair by pair
    cfg.CATKD.RESOLUTION = 2
    cfg.CATKD.NORMALIZE = True  # divide each class's map by its norm
