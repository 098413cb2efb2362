"""Ranking and regression losses: one file a loss, its name is the name.

Each file holds one function `name(student_MD, teacher_ME, **options) -> scalar`. Both take rows of length 1 (mixed
samples included), row m of either belonging to the same sample; D and E may differ.
"""
