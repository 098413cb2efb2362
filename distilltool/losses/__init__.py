"""Ranking and regression losses: one file a loss, its name is the name.

Each file holds one function `name(student_MD, teacher_ME, **options) -> scalar`. Both take rows of length 1 (mixed
samples included; shorter ones where a recipe does not normalise mixes), row m of either belonging to the same sample;
D and E may differ. A loss whose first parameter is called `student_ME` compares the student with the teacher's vectors
themselves: it needs the teacher's space, and brings the student there. Options are keyword-only numbers with defaults.
A loss may also ask, by these keyword-only names without a default, for

- `bank_KE`: the teacher's vectors of all training images, length 1;
- `rows_M`: which of them each sample is, -1 for mixed ones, so that no image is its own neighbour.

Nothing may hold or compute more than about M² numbers, or M times the bank's K up to `relations.WORK`.
"""
