"""tools/train_net.py with a term on features: a teacher of other classes, and a term with far too large a loss."""

from __future__ import annotations

from tests.tiny import TINY, teacher_files


def test_a_teacher_of_other_classes_and_a_term_that_is_too_large(train_net, tmp_path):
    teacher = teacher_files(tmp_path)  # of 3 classes, for a student of COCO's 80
    trained = train_net(
        *TINY, "MODEL.META_ARCHITECTURE", "DistillRCNN", "MODEL.ROI_HEADS.NAME", "DistillROIHeads",
        "MODEL.ROI_HEADS.NUM_CLASSES", 80, "DATASETS.TRAIN", "('coco_2017_train',)", "INPUT.MIN_SIZE_TRAIN", "(96,)",
        "KD.TERMS", "('fitnet',)", "KD.TEACHER.CONFIG_FILE", teacher[0], "KD.TEACHER.WEIGHTS", teacher[1],
        "KD.TEACHER.DTYPE", "float32",
        "SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", 20, "SOLVER.BASE_LR", 1e-20, "DATALOADER.NUM_WORKERS", 0,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-3000:]
    log = (tmp_path / "output" / "log.txt").read_text()
    for text in (trained.stdout, log):
        assert "Distilled classes: none. The terms fitnet compare feature maps" in text
        assert text.count("Lower KD.FITNET.WEIGHT from 1 to ") == 1
