"""Image classification students under frozen teachers, with the losses of ``kd_det.losses``. Needs no detectron2."""
