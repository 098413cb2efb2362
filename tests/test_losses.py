"""Every loss there is: the protocol, finite and differentiable; each against a value by hand and slow arithmetic."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from distilltool import extensions, objective, recipe, relations
from distilltool.divergence import _with_entropy
from distilltool.errors import DistillError
from distilltool.objective import check_losses, sum_of_losses

NAMES = extensions.names("distilltool.losses")
ROWS, DIM = 6, 4  # student and teacher of one dimension, so that losses within the teacher's space take part
ASKED = ("bank_KE", "rows_M")
Loss = Callable[..., Tensor]
Rows = NDArray[np.float64]


def loss_of(name: str) -> Loss:
    """The function in the file of that name."""
    return extensions.find("distilltool.losses", "loss", name)


def parameters(name: str) -> list[str]:
    """Names of what a loss takes, in order."""
    return list(inspect.signature(loss_of(name)).parameters)


IN_SPACE = [name for name in NAMES if parameters(name)[0] == "student_ME"]
RELATIONS = [name for name in NAMES if name not in IN_SPACE]


def unit_rows(seed: int, rows: int = ROWS, dim: int = DIM) -> Tensor:
    """Random rows of length 1, float64."""
    return F.normalize(torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, dim))), dim=1)


def call(name: str, student: Tensor, teacher: Tensor, rows: Tensor | None = None, **options: float) -> Tensor:
    """A loss with the bank it asks for: nine images, of which the samples' are `rows`, or none."""
    bank = unit_rows(99, 9, teacher.shape[1]).to(teacher.dtype)
    rows = torch.full((len(student),), -1) if rows is None else rows
    given = {"bank_KE": bank, "rows_M": rows}
    return loss_of(name)(student, teacher, **{one: given[one] for one in ASKED if one in parameters(name)}, **options)


def test_those_of_the_recipes_are_there() -> None:
    """What the recipes name exists, and nothing that no recipe names."""
    named = {term.name for one in recipe.shipped() for term in recipe.load(one).loss}
    assert named == set(NAMES)
    assert {"csd", "regression", "rop"} == set(IN_SPACE)


@pytest.mark.parametrize("name", NAMES)
def test_protocol(name: str) -> None:
    """Student and teacher first; what is asked for by name has no default; options are numbers with one."""
    function = loss_of(name)
    first, second, *more = inspect.signature(function).parameters.values()
    assert first.name in ("student_MD", "student_ME") and second.name in ("teacher_ME", "aim_ME")
    assert all(one.kind is inspect.Parameter.KEYWORD_ONLY for one in more)
    without = [one.name for one in more if one.default is inspect.Parameter.empty]
    assert set(without) <= set(ASKED)
    assert all(type(value) in (int, float) for value in (function.__kwdefaults__ or {}).values())
    assert function.__doc__ and inspect.getmodule(function).__doc__


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_a_finite_scalar(name: str, dtype: torch.dtype) -> None:
    """One number, of the student's precision, with a gradient for the student alone."""
    student, teacher = unit_rows(1).to(dtype).requires_grad_(), unit_rows(2).to(dtype)
    loss = call(name, student, teacher)
    assert loss.shape == () and loss.dtype == dtype and torch.isfinite(loss)
    loss.backward()
    assert student.grad is not None and torch.isfinite(student.grad).all() and student.grad.abs().max() > 0


@pytest.mark.parametrize("rows", [None, torch.tensor([2, 0, -1, 8, 4, -1])])
@pytest.mark.parametrize("name", NAMES)
def test_gradient(name: str, rows: Tensor | None) -> None:
    """The gradient is that of finite differences, through the normalisation; of what is fitted where it can be: with
    a student that knows something of the teacher."""
    teacher = unit_rows(4)
    raw = torch.from_numpy(np.random.default_rng(3).normal(size=(ROWS, DIM)))
    raw = (0.1 * raw + teacher if name == "sne" else raw).requires_grad_()
    assert torch.autograd.gradcheck(lambda some: call(name, F.normalize(some, dim=1), teacher, rows), (raw,))


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_itself_is_no_worse_than_chance(name: str) -> None:
    """A student equal to the teacher is better than unrelated ones."""
    teacher = unit_rows(5)
    own = call(name, teacher, teacher)
    assert all(own < call(name, unit_rows(seed), teacher) for seed in range(10, 20))


@pytest.mark.parametrize("name", ["kl", "sne", "regression", "rkd", "sp", "pkt", "csd"])
def test_the_teacher_itself_is_the_minimum(name: str) -> None:
    """For these the loss is zero there, and no small step on the sphere goes below."""
    teacher = unit_rows(6)
    raw = teacher.clone().requires_grad_()
    loss = call(name, F.normalize(raw, dim=1), teacher)
    loss.backward()
    assert raw.grad is not None
    assert abs(loss.item()) < 1e-12 and raw.grad.abs().max() < 1e-8


@pytest.mark.parametrize("name", ["darkrank", "listmle", "ranknet", "rop"])
def test_only_the_order_of_the_teacher_counts(name: str) -> None:
    """Another teacher that puts all in the same order gives the very same loss; one with another order does not.

    Vectors on a half circle: the other teacher has the angles' differences changed a little, by less than it takes to
    swap any two neighbours.
    """

    def at(*degrees: float) -> Tensor:
        turned = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
        return torch.stack([turned.cos(), turned.sin()], dim=1)

    bank, rows, student = at(0, 25, 60, 110, 170), torch.arange(5), at(10, 80, 50, 0, 120)
    given = {"bank_KE": bank, "rows_M": rows} if name in IN_SPACE else {}
    one, same, other = (
        loss_of(name)(student, teacher, **given) for teacher in (bank, at(1, 24, 61, 110, 169), at(0, 60, 25, 110, 170))
    )
    assert one.item() == same.item() and abs(one.item() - other.item()) > 1e-3


@pytest.mark.parametrize("name", ["listmle", "ranknet", "rop"])
def test_a_right_order_costs_nothing_at_a_low_temperature(name: str) -> None:
    """The sharper the student's choice, the nearer to zero where its order is the teacher's, the dearer where not."""
    teacher = unit_rows(30)
    assert call(name, teacher, teacher, tau=1e-6) < 1e-6 < call(name, teacher, teacher, tau=0.1)
    assert call(name, unit_rows(31), teacher, tau=1e-2) > 2 * call(name, teacher, teacher, tau=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_batch_does_not_matter(name: str) -> None:
    """The same samples in another order give the same loss."""
    student, teacher, order = unit_rows(7), unit_rows(8), torch.tensor([3, 0, 5, 1, 4, 2])
    rows = torch.tensor([4, 1, -1, 0, 8, -1])
    torch.testing.assert_close(
        call(name, student, teacher, rows), call(name, student[order], teacher[order], rows[order])
    )


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_equal_samples_do_no_harm(name: str, both: bool) -> None:
    """The same image twice in a batch, or two that only the student takes for the same: all stays finite."""
    student, teacher = unit_rows(9).float(), unit_rows(10).float()
    student[1] = student[0]
    if both:
        teacher[1] = teacher[0]
    student.requires_grad_()
    loss = call(name, student, teacher)
    loss.backward()
    assert torch.isfinite(loss) and student.grad is not None and torch.isfinite(student.grad).all()
    assert student.grad.abs().max() < (1e4 if both else 1e7)


@pytest.mark.parametrize("name", NAMES)
def test_a_collapsed_student_and_opposite_vectors_do_no_harm(name: str) -> None:
    """All vectors the same, and pairs of opposite ones: nothing infinite in single precision."""
    teacher = unit_rows(10).float()
    pairs = torch.cat([teacher[:3], -teacher[:3]])
    for student in (teacher[:1].repeat(ROWS, 1).requires_grad_(), pairs.clone().requires_grad_()):
        for target in (teacher, pairs):
            loss = call(name, student, target)
            student.grad = None
            loss.backward()
            assert torch.isfinite(loss) and student.grad is not None and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_need_no_common_dimension(name: str) -> None:
    """Losses on relations take any two dimensions, and do not see a rotation of the student's space."""
    student, teacher = unit_rows(11), unit_rows(12, dim=9)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))
    torch.testing.assert_close(call(name, student, teacher), call(name, student @ torch.from_numpy(turn), teacher))


@pytest.mark.parametrize("name", IN_SPACE)
def test_losses_in_the_teachers_space_see_a_rotation(name: str) -> None:
    """Those that say they need the teacher's space do: turned away, the teacher itself is no longer good."""
    teacher = unit_rows(12)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))
    assert call(name, teacher @ torch.from_numpy(turn), teacher) > call(name, teacher, teacher) + 1e-2


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that anything makes, backward included."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.numbers = max(self.numbers, one.untyped_storage().nbytes() // one.element_size())
        return made


@pytest.mark.parametrize("bank", [1000, 60_000])
@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_is_larger_than_a_few_matrices_of_the_batch(name: str, bank: int) -> None:
    """At 400 samples a few times 400² numbers, or WORK for the bank, of any size: no M³, and no M times a large K."""
    rows = torch.arange(400) % 300
    student, teacher = unit_rows(1, 400, 8).float().requires_grad_(), unit_rows(2, 400, 8).float()
    given = {"bank_KE": unit_rows(3, bank, 8).float(), "rows_M": rows}
    asked = {one: given[one] for one in ASKED if one in parameters(name)}
    if bank > 1000 and not asked:
        pytest.skip("asks for no bank")
    with Largest() as seen:
        loss_of(name)(student, teacher, **asked).backward()
    assert 400 * 8 <= seen.numbers <= (relations.WORK if asked else 4 * 400**2)
    assert student.grad is not None and student.grad.abs().max() > 0


# --- values by hand ------------------------------------------------------------

E1, E2 = (1.0, 0.0), (0.0, 1.0)
SIXTY, NINETY = (0.5, math.sqrt(0.75)), E2  # beside E1 at 0 degrees


def by_hand(name: str, student: Any, teacher: Any, **more: Any) -> float:
    """A loss of vectors written out."""
    made = [torch.tensor(one, dtype=torch.float64) for one in (student, teacher)]
    return loss_of(name)(*made, **more).item()


def test_regression_by_hand() -> None:
    """Cosines 0.6 and 0.8: 1 − 0.7."""
    assert by_hand("regression", [E1, E2], [(0.6, 0.8), (0.6, 0.8)]) == pytest.approx(0.3)


def test_kl_by_hand() -> None:
    """tau 1. Teacher's similarities 01: 1, 02: 0, 12: 0; student's 0, 0, 1; softmax(1, 0) = (0.731059, 0.268941).

    0: p (0.731059, 0.268941), q (1/2, 1/2): 0.110944. 1: p the same, q reversed: 0.462117 = 0.731059 − 0.268941.
    2: p (1/2, 1/2), q (0.268941, 0.731059): 0.120115. Mean 0.231059.
    """
    assert by_hand("kl", [E1, E2, E2], [E1, E1, E2], tau=1.0) == pytest.approx(0.231059, abs=1e-6)


def test_pkt_by_hand() -> None:
    """(1 + cosine) / 2. Teacher 01: 1, 02: 1/2, 12: 1/2; student 1/2, 1/2, 1.

    0: p (2/3, 1/3), q (1/2, 1/2): 0.056633. 1: p (2/3, 1/3), q (1/3, 2/3): ln 2 / 3 = 0.231049.
    2: p (1/2, 1/2), q (1/3, 2/3): 0.058892. Mean 0.115525.
    """
    assert by_hand("pkt", [E1, E2, E2], [E1, E1, E2]) == pytest.approx(0.115525, abs=1e-6)


def test_sp_by_hand() -> None:
    """Teacher: the identity. Student: all ones, rows at length 1 √½. (2 (1 − √½)² + 2 · ½) / 4 = 1 − √½."""
    assert by_hand("sp", [E1, E1], [E1, E2]) == pytest.approx(1 - math.sqrt(0.5))


def test_rkd_by_hand() -> None:
    """Distances: points 0, 1, 3 against 0, 1, 2 on a line: (1, 2, 3) / 2 against (1, 1, 2) · 3/4.

    Differences 1/4, 1/4, 0, each twice among nine: 4 · (1/4)² / 2 / 9 = 0.013889; no angle differs.
    Angles: 0, 1, 2 on a line against a right angle: cosines 1, −1, 1 against 0, √½, √½; Huber's function of 1, 1.707107
    and 0.292893 is 0.5, 1.207107, 0.042893, each twice among 27: 3.5 / 27.
    """
    line, other = [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0)], [(0.0, 0.0), (1.0, 0.0), (3.0, 0.0)]
    assert by_hand("rkd", other, line) == pytest.approx(1 / 72)
    assert by_hand("rkd", line, [(0.0, 0.0), E1, E2], distance=0.0, angle=1.0) == pytest.approx(3.5 / 27)


def test_darkrank_by_hand() -> None:
    """Scores −distance. Teacher's points 0, 2, 1 on a line: 0 sees 2 before 1, 1 sees 2 before 0, 2 sees both alike
    (the lower number first: 0 before 1). Student's points 0, 1, 3: scores there −3 before −1, −2 before −1, −3 before
    −2: ln(1 + e²), ln(1 + e), ln(1 + e): mean (2.126928 + 2 · 1.313262) / 3.
    """
    student, teacher = [(0.0, 0.0), (1.0, 0.0), (3.0, 0.0)], [(0.0, 0.0), (2.0, 0.0), (1.0, 0.0)]
    got = by_hand("darkrank", student, teacher, alpha=1.0, beta=1.0)
    assert got == pytest.approx((2.126928 + 2 * 1.313262) / 3, abs=1e-6)


@pytest.mark.parametrize(("neighbours", "places"), [(1, 1), (2, 2), (9, 2)])
def test_listmle_by_hand(neighbours: int, places: int) -> None:
    """tau 1. Teacher at 0, 60, 90 degrees: 0 sees 1 before 2, 1 sees 2 before 0, 2 sees 1 before 0. Student's
    similarities 01: 0, 02: 0, 12: 1: first places cost ln 2, ln(1 + 1/e), ln(1 + 1/e), last ones nothing.
    """
    got = by_hand("listmle", [E1, E2, E2], [E1, SIXTY, NINETY], tau=1.0, neighbours=neighbours)
    assert got == pytest.approx((0.693147 + 2 * 0.313262) / 3 / places, abs=1e-6)


def test_ranknet_by_hand() -> None:
    """The same vectors: one pair as seen from each sample, s_a − s_b 0, 1, 1: ln 2, ln(1 + 1/e), ln(1 + 1/e)."""
    got = by_hand("ranknet", [E1, E2, E2], [E1, SIXTY, NINETY], tau=1.0)
    assert got == pytest.approx((0.693147 + 2 * 0.313262) / 3, abs=1e-6)
    assert by_hand("ranknet", [E1, E2, E2], [E1, E1, E1]) == 0.0  # nothing is nearer than anything else


BANK = torch.tensor([E1, E2, (-1.0, 0.0)], dtype=torch.float64)


def test_csd_by_hand() -> None:
    """tau 0.2, two of three stored vectors. Teacher's similarities 0.8, 0.6: softmax(4, 3) = (0.731059, 0.268941);
    student's 0.6, 0.8: reversed; 0.462117. Where the sample is the first of the bank, the other two are left: teacher
    softmax(3, −4), student softmax(4, −3), the same.
    """
    more = {"bank_KE": BANK, "tau_teacher": 0.2, "tau_student": 0.2}
    got = by_hand("csd", [(0.6, 0.8)], [(0.8, 0.6)], rows_M=torch.tensor([-1]), **more)
    assert got == pytest.approx(0.462117, abs=1e-6)
    assert by_hand("csd", [(0.6, 0.8)], [(0.8, 0.6)], rows_M=torch.tensor([0]), **more) == pytest.approx(0, abs=1e-12)


def test_rop_by_hand() -> None:
    """The same vectors, tau 0.1: the teacher says 1, the student sigmoid(−2) = 0.119203: 0.880797². Where the sample is
    the first of the bank the student says sigmoid(14) of the other two: nothing to pay."""
    more = {"bank_KE": BANK, "tau": 0.1}
    got = by_hand("rop", [(0.6, 0.8)], [(0.8, 0.6)], rows_M=torch.tensor([-1]), **more)
    assert got == pytest.approx(0.880797**2, abs=1e-6)
    assert by_hand("rop", [(0.6, 0.8)], [(0.8, 0.6)], rows_M=torch.tensor([0]), **more) < 1e-11


# --- slow arithmetic ------------------------------------------------------------


def slow_regression(student: Rows, teacher: Rows) -> float:
    """1 − cosine, row by row."""
    return float(
        np.mean([1 - sum(s * t for s, t in zip(a, b, strict=True)) for a, b in zip(student, teacher, strict=True)])
    )


def ordered(scores: dict[int, float]) -> list[int]:
    """The keys, highest score first, equal ones by number."""
    return sorted(scores, key=lambda key: (-scores[key], key))


def seen_from(rows: Rows, i: int) -> dict[int, float]:
    """Similarities of one sample to the others."""
    return {j: float(sum(a * b for a, b in zip(rows[i], rows[j], strict=True))) for j in range(len(rows)) if j != i}


def divergence(p: Any, q: Any) -> float:
    """KL(p ‖ q)."""
    return float(sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a))


def softmax(scores: list[float]) -> Rows:
    """Shares of the exponentials."""
    powers = np.exp(np.array(scores) - max(scores))
    return powers / powers.sum()


def slow_kl(student: Rows, teacher: Rows, tau: float = 0.07, neighbours: int = 0) -> float:
    """KL of the softmax over all others or the teacher's nearest, sample by sample."""
    costs = []
    for i in range(len(student)):
        theirs, ours = seen_from(teacher, i), seen_from(student, i)
        listed = ordered(theirs)[: neighbours or None]
        costs.append(divergence(softmax([theirs[j] / tau for j in listed]), softmax([ours[j] / tau for j in listed])))
    return float(np.mean(costs))


def halved(low: float, high: float, rises: Callable[[float], float]) -> float:
    """Where a rising function of the logarithm crosses zero, by bisection."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if rises(middle) > 0 else (middle, high)
    return (low + high) / 2


def slow_sne(student: Rows, teacher: Rows, perplexity: float = 0.2) -> float:
    """KL of the softmax at two temperatures, each found by bisection: of entropy, and of the KL's own slope."""
    theirs, ours = ([list(seen_from(rows, i).values()) for i in range(len(rows))] for rows in (teacher, student))
    wanted = math.log(max(2.0, perplexity * (len(teacher) - 1)))

    def at(lists: list[list[float]], log_beta: float) -> list[Rows]:
        return [softmax([math.exp(log_beta) * one for one in scores]) for scores in lists]

    def too_sharp(log_beta: float) -> float:
        return wanted - float(np.mean([-sum(p * math.log(p) for p in row if p) for row in at(theirs, log_beta)]))

    def bounds(lists: list[list[float]]) -> tuple[float, float]:
        spread = float(np.std(np.concatenate(lists), ddof=1))
        return math.log(0.3 / spread), math.log(1e4 / spread)

    p = at(theirs, halved(*bounds(theirs), too_sharp))

    def past_the_best(log_beta: float) -> float:
        q = at(ours, log_beta)
        return float(np.mean([np.dot(b - a, scores) for a, b, scores in zip(p, q, ours, strict=True)]))

    q = at(ours, halved(*bounds(ours), past_the_best))
    return float(np.mean([divergence(a, b) for a, b in zip(p, q, strict=True)]))


def slow_pkt(student: Rows, teacher: Rows) -> float:
    """KL of shares of (1 + cosine) / 2."""
    costs = []
    for i in range(len(student)):
        p, q = (np.array([(1 + one) / 2 for one in seen_from(rows, i).values()]) for rows in (teacher, student))
        costs.append(divergence(p / p.sum(), q / q.sum()))
    return float(np.mean(costs))


def slow_sp(student: Rows, teacher: Rows) -> float:
    """Row by row of the similarity matrices."""
    total = 0.0
    for i in range(len(student)):
        ours, theirs = (np.array([float(rows[i] @ rows[j]) for j in range(len(rows))]) for rows in (student, teacher))
        total += sum((ours / math.sqrt(sum(ours**2)) - theirs / math.sqrt(sum(theirs**2))) ** 2)
    return total / len(student) ** 2


def smooth_l1(difference: float) -> float:
    """Huber's function at 1."""
    size = abs(difference)
    return 0.5 * size * size if size < 1 else size - 0.5


def slow_distances(rows: Rows) -> Rows:
    """Distances of all pairs over the mean of those of two different samples."""
    found = np.array([[np.sqrt(sum((a - b) ** 2)) for b in rows] for a in rows])
    return found / np.mean([found[i, j] for i in range(len(rows)) for j in range(len(rows)) if i != j])


def slow_angle(at: Rows, one: Rows, other: Rows) -> float:
    """Cosine of the angle at one point between two others; 0 where there is none."""
    a, b = one - at, other - at
    length = np.sqrt(a @ a) * np.sqrt(b @ b)
    return float(a @ b / length) if length > 0 else 0.0


def slow_rkd(student: Rows, teacher: Rows, distance: float = 1.0, angle: float = 2.0) -> float:
    """Park et al. 2019, pair by pair and triplet by triplet."""
    count = range(len(student))
    ours, theirs = slow_distances(student), slow_distances(teacher)
    near = np.mean([smooth_l1(ours[i, j] - theirs[i, j]) for i in count for j in count])
    bent = np.mean(
        [
            smooth_l1(slow_angle(student[i], student[j], student[k]) - slow_angle(teacher[i], teacher[j], teacher[k]))
            for i in count
            for j in count
            for k in count
        ]
    )
    return float(distance * near + angle * bent)


def slow_order(scores: list[float], rest: list[float]) -> list[float]:
    """−log of the chance of each draw: the first of all, the second of what is left, ..."""
    return [
        math.log(sum(math.exp(one) for one in [*scores[place:], *rest])) - scores[place] for place in range(len(scores))
    ]


def slow_darkrank(student: Rows, teacher: Rows, alpha: float = 3.0, beta: float = 3.0, neighbours: int = 4) -> float:
    """The permutation probability, factor by factor."""
    costs = []
    for i in range(len(student)):
        order = ordered({j: -float(sum((teacher[i] - teacher[j]) ** 2)) for j in range(len(teacher)) if j != i})
        scores = [-alpha * math.sqrt(sum((student[i] - student[j]) ** 2)) ** beta for j in order[:neighbours]]
        costs.append(sum(slow_order(scores, [])))
    return float(np.mean(costs))


def slow_listmle(student: Rows, teacher: Rows, tau: float = 0.1, neighbours: int = 32) -> float:
    """The same with similarities, and the others still to be drawn."""
    costs = []
    for i in range(len(student)):
        order, ours = ordered(seen_from(teacher, i)), seen_from(student, i)
        scores = [ours[j] / tau for j in order]
        costs += slow_order(scores[:neighbours], scores[neighbours:])
    return float(np.mean(costs))


def slow_ranknet(student: Rows, teacher: Rows, tau: float = 0.1, near: int = 16, far: int = 16) -> float:
    """Pair by pair as seen from each sample: the nearest, and others at even steps."""
    count, costs = len(student), []
    for i in range(count):
        theirs, ours = seen_from(teacher, i), seen_from(student, i)
        steps = [1 + place * (count - 1) // far for place in range(far)] if far else []
        listed = ordered(theirs)[:near] + [(i + step) % count for step in steps]
        listed = list(theirs) if near + far >= count - 1 else listed
        costs += [
            math.log1p(math.exp((ours[b] - ours[a]) / tau)) for a in listed for b in listed if theirs[a] > theirs[b]
        ]
    return float(np.mean(costs))


def slow_bank(teacher: Rows, bank: Rows, own: int, count: int) -> list[int]:
    """The stored vectors nearest to the teacher's, without the sample's own."""
    return ordered({k: float(teacher @ bank[k]) for k in range(len(bank)) if k != own})[: min(count, len(bank) - 1)]


def slow_csd(student: Rows, teacher: Rows, bank: Rows, own: list[int], **options: float) -> float:
    """Sample by sample against its neighbours in the bank."""
    tau_t, tau_s = options.get("tau_teacher", 0.05), options.get("tau_student", 0.05)
    costs = []
    for s, t, row in zip(student, teacher, own, strict=True):
        near = slow_bank(t, bank, row, int(options.get("neighbours", 96)))
        costs.append(
            divergence(softmax([t @ bank[k] / tau_t for k in near]), softmax([s @ bank[k] / tau_s for k in near]))
        )
    return float(np.mean(costs))


def slow_rop(student: Rows, teacher: Rows, bank: Rows, own: list[int], **options: float) -> float:
    """All pairs of neighbours, both ways round."""
    costs = []
    for s, t, row in zip(student, teacher, own, strict=True):
        near = slow_bank(t, bank, row, int(options.get("neighbours", 32)))
        for a in near:
            for b in near:
                if a != b:
                    theirs = 0.5 * (1 + np.sign(t @ bank[a] - t @ bank[b]))
                    ours = 1 / (1 + math.exp(-(s @ bank[a] - s @ bank[b]) / options.get("tau", 0.1)))
                    costs.append((ours - theirs) ** 2)
    return float(np.mean(costs))


SLOW: dict[str, Callable[..., float]] = {
    "regression": slow_regression,
    "kl": slow_kl,
    "sne": slow_sne,
    "pkt": slow_pkt,
    "sp": slow_sp,
    "rkd": slow_rkd,
    "darkrank": slow_darkrank,
    "listmle": slow_listmle,
    "ranknet": slow_ranknet,
    "csd": slow_csd,
    "rop": slow_rop,
}
OPTIONS: list[tuple[str, dict[str, float]]] = [
    *[(name, {}) for name in sorted(SLOW)],
    *[("kl", one) for one in ({"tau": 0.5}, {"neighbours": 3}, {"tau": 0.2, "neighbours": 1})],
    *[("sne", one) for one in ({"perplexity": 0.5}, {"perplexity": 0.8})],
    *[("rkd", one) for one in ({"distance": 0.0}, {"angle": 0.0}, {"distance": 3.0, "angle": 0.5})],
    *[("darkrank", one) for one in ({"alpha": 1.0, "beta": 2.0}, {"neighbours": 2}, {"neighbours": 50})],
    *[("listmle", one) for one in ({"tau": 1.0}, {"neighbours": 1}, {"neighbours": 4})],
    *[("ranknet", one) for one in ({"tau": 1.0}, {"near": 2, "far": 3}, {"near": 3, "far": 0}, {"near": 0, "far": 4})],
    *[("csd", one) for one in ({"tau_teacher": 0.3, "tau_student": 0.1}, {"neighbours": 3})],
    *[("rop", one) for one in ({"tau": 1.0}, {"neighbours": 3})],
]


def test_every_loss_has_a_slow_twin() -> None:
    """A loss without one is not tested."""
    assert set(SLOW) == set(NAMES)


def compare(name: str, student: Tensor, teacher: Tensor, bank: Tensor, own: list[int], **options: float) -> None:
    """A loss against its slow twin. own: which image of the bank each sample is."""
    given: dict[str, Any] = {}
    slow: list[Any] = [student.numpy(), teacher.numpy()]
    if "bank_KE" in parameters(name):
        given, slow = {"bank_KE": bank, "rows_M": torch.tensor(own)}, [*slow, bank.numpy(), own]
    got = loss_of(name)(student, teacher, **given, **options).item()
    assert got == pytest.approx(SLOW[name](*slow, **options), rel=1e-9)


@pytest.mark.parametrize("seed", [20, 21])
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_against_slow_arithmetic(name: str, options: dict[str, float], seed: int) -> None:
    """Random vectors, no two similarities alike; dimensions differ where they may."""
    student = unit_rows(seed, 8, 7 if name in IN_SPACE else 5)
    compare(
        name, student, unit_rows(seed + 100, 8, 7), unit_rows(seed + 200, 10, 7), [1, -1, 0, 5, -1, 3, 2, -1], **options
    )


def half_rows(seed: int, rows: int) -> Tensor:
    """Rows of four times ±1/2: of length 1, similarities are quarters, and so exact, and many are equal."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 2, (rows, 4)) - 0.5).double()


@pytest.mark.parametrize("seed", [40, 41, 42])
@pytest.mark.parametrize("name", sorted(SLOW))
def test_against_slow_arithmetic_with_ties(name: str, seed: int) -> None:
    """The teacher finds many alike, the same image included; the student does not. All are in the list, so that it does
    not matter which of several alike are."""
    options = {"neighbours": 50} if name in ("darkrank", "listmle", "csd", "rop") else {}
    compare(name, unit_rows(seed, 8), half_rows(seed, 8), half_rows(seed + 1, 6), [1, 0, 0, 5, 4, 3, 2, 1], **options)


def test_kl_sees_order_and_strength() -> None:
    """Swapping two neighbours costs; so does the right order with the wrong strength."""
    teacher = torch.tensor([[1.0, 0.0], [0.9, 0.4359], [0.0, 1.0]], dtype=torch.float64)
    swapped = teacher[[0, 2, 1]]
    blunt = F.normalize(teacher + 2.0, dim=1)
    loss = loss_of("kl")
    assert loss(swapped, teacher) > loss(blunt, teacher) > loss(teacher, teacher)


def narrowed(rows: Tensor, share: float) -> Tensor:
    """The same vectors in a narrow cone: similarities shrink to a share of their differences, in the same order."""
    common = torch.full((len(rows), 1), math.sqrt(1 - share), dtype=rows.dtype)
    return torch.cat([math.sqrt(share) * rows, common], dim=1)


def test_sne_does_not_see_how_wide_the_cones_are() -> None:
    """Of the teacher or of the student; with a temperature that is said, kl does."""
    student, teacher = unit_rows(1, 40, 8), unit_rows(2, 40, 8)
    wanted = loss_of("sne")(student, teacher)
    torch.testing.assert_close(loss_of("sne")(student, narrowed(teacher, 0.02)), wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss_of("sne")(narrowed(student, 0.02), teacher), wanted, rtol=1e-6, atol=0)
    assert loss_of("kl")(student, narrowed(teacher, 0.02)) > 3 * wanted
    single = [narrowed(one, 1e-4).float() for one in (student, teacher)]
    assert loss_of("sne")(*single).item() == pytest.approx(wanted.item(), rel=0.05)


def test_sne_still_teaches_a_student_that_orders_nothing_as_the_teacher_does() -> None:
    """Its best temperature would be infinite, and the gradient nothing."""
    student = unit_rows(2, 40, 8).requires_grad_()
    loss_of("sne")(student, unit_rows(1, 40, 8)).backward()
    assert student.grad is not None and student.grad.norm() > 0.1


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_sne_gives_lists_their_perplexity(share: float) -> None:
    """Of clustered vectors as of scattered ones."""
    scattered = unit_rows(1, 200, 16)
    clustered = F.normalize(unit_rows(2, 20, 16).repeat(10, 1) + 0.3 * scattered, dim=1)
    for rows in (scattered, clustered):
        scores = rows @ rows.T
        beta = _with_entropy(scores, math.log(share * 199))
        log_p = F.log_softmax(relations.others(beta * scores), dim=1)
        entropy = -(log_p.exp() * log_p).sum(dim=1).mean().item()
        assert math.exp(entropy) == pytest.approx(share * 199, rel=1e-6)


def test_a_large_batch_is_compared_with_a_large_bank_at_even_steps() -> None:
    """Beyond WORK similarities evenly spaced samples stand for all: the loss is that of these alone."""
    bank = unit_rows(1, relations.WORK // 100, 4)
    student, teacher, rows = unit_rows(2, 400, 4), unit_rows(3, 400, 4), torch.arange(400)
    at = torch.arange(100) * 4
    for name in ("csd", "rop"):
        whole = loss_of(name)(student, teacher, bank_KE=bank, rows_M=rows)
        torch.testing.assert_close(
            whole, loss_of(name)(student[at], teacher[at], bank_KE=bank, rows_M=rows[at]), rtol=1e-9, atol=0
        )


def test_angles_of_a_large_batch_are_those_of_evenly_spaced_samples() -> None:
    """64 of 200 samples, the same ones on both sides."""
    student, teacher = unit_rows(2, 200, 4), unit_rows(3, 200, 4)
    at = torch.tensor([place * 200 // 64 for place in range(64)])
    whole, some = (loss_of("rkd")(s, t, distance=0.0) for s, t in ((student, teacher), (student[at], teacher[at])))
    torch.testing.assert_close(whole, some)


# --- recipes ------------------------------------------------------------


@pytest.mark.parametrize("name", recipe.shipped())
def test_shipped_recipes_pass_the_check(name: str) -> None:
    """Each is what it says about its space; one made for the teacher's is refused elsewhere."""
    found = recipe.load(name)
    check_losses(found, same_space=True)
    if found.space == "own":
        return check_losses(found, same_space=False)
    with pytest.raises(DistillError, match="space"):
        check_losses(found, same_space=False)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("drd", ["loss.kl.tua=1"], "tua"),
        ("drd", ["loss.kl.name=kll"], "kll"),
        ("csd", ["loss.csd.bank_KE=1"], "bank_KE"),
        ("drd", ["loss.kl.tau=0"], "tau=0"),
        ("listmle", ["loss.listmle.neighbours=2.5"], "whole number"),
        ("listmle", ["loss.listmle.neighbours=0"], "neighbours=0"),
        ("ranknet", ["loss.ranknet.near=-1"], "whole number"),
        ("rkd", ["loss.rkd.distance=0", "loss.rkd.angle=0"], "distance=0"),
        ("darkrank", ["loss.darkrank.beta=nan"], "beta=nan"),
    ],
)
def test_recipes_are_checked_against_the_losses(name: str, changes: list[str], says: str) -> None:
    """Unknown losses and options, and values that cannot be worked with, are told before anything is spent."""
    found = recipe.load(name, changes)
    with pytest.raises(DistillError, match=says):
        check_losses(found, same_space=found.space == "teacher")


def test_which_loss_needs_which_space() -> None:
    """The message names the loss; in the teacher's space what draws no vectors there is mapped at the end."""
    both = recipe.load("kl")
    both = recipe.Recipe(**{**{one: getattr(both, one) for one in both.__slots__}, "loss": (*both.loss, LOSS_CSD)})
    check_losses(both, same_space=True)
    with pytest.raises(DistillError, match="the loss csd"):
        check_losses(both, same_space=False)
    check_losses(recipe.load("kl"), same_space=True)


LOSS_CSD = recipe.LossTerm(name="csd", weight=2.0, options={"neighbours": 3})


def test_the_sum_weighs_and_hands_on_what_is_asked_for() -> None:
    """kl at its options plus twice csd with the bank and rows it asks for."""
    base = recipe.load("kl", ["loss.kl.tau=0.3", "loss.kl.weight=0.5"])
    both = recipe.Recipe(**{**{one: getattr(base, one) for one in base.__slots__}, "loss": (*base.loss, LOSS_CSD)})
    student, teacher, bank, rows = unit_rows(1), unit_rows(2), unit_rows(3, 9), torch.tensor([0, 3, -1, 8, 2, -1])
    wanted = 0.5 * loss_of("kl")(student, teacher, tau=0.3)
    wanted = wanted + 2 * loss_of("csd")(student, teacher, bank_KE=bank, rows_M=rows, neighbours=3)
    torch.testing.assert_close(sum_of_losses(both, bank)(student, teacher, rows), wanted)


def test_a_recipe_moves_between_the_spaces() -> None:
    """Into the teacher's: what draws no vectors there is mapped last. Out of it: what compares the two is left out."""
    own = recipe.load("best")
    moved = objective.in_space(own, "teacher")
    assert moved.loss == own.loss and moved.space == "teacher"
    assert objective.mapped_last(moved) and not objective.mapped_last(own)
    objective.check_losses(moved, True)
    assert objective.in_space(moved, "own") == own
    drawn = recipe.load("csd")
    assert objective.in_space(drawn, "teacher") == drawn and not objective.mapped_last(drawn)
    with pytest.raises(DistillError, match="every loss of the recipe csd"):
        objective.in_space(drawn, "own")
