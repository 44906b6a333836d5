"""A benchmark of distillation that needs no download: a teacher and its students on the digits scenes."""
