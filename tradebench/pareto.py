"""Which points nothing else beats: dominance, fronts, hypervolume, the odds of being on the front.

Every objective is to be minimised; a caller negates the ones where more is better. Equal points tie
and stay together. A NaN compares with nothing, so it is refused here: a point that lacks a value is
the caller's to leave out, and to say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.intp]
    Booleans = NDArray[np.bool_]

# A draw never strays further from its mean than this, which makes a point that is beaten by more
# certain to be off the front; the normal distribution does so twice in a thousand million draws.
REACH = 6.0
# Numbers drawn at a time, which many points with many draws are cut into: 8 MB.
DRAWN = 1_000_000
# What the best point of each draw beats is looked for again while that is more than this share.
WORTH = 0.1
# One comparison with a rival takes as long as so many with the best point that is left.
PAIRS = 5
# The first rivals that a point meets, and how many times more it meets next: the best come first,
# and where they have beaten it the others need not be looked at.
FIRST, GROWTH = 8, 4


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether `a` is no worse than `b` in every objective and better in one."""
    both = _matrix([a, b])
    return bool((both[0] <= both[1]).all() and (both[0] < both[1]).any())


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the points that no other point dominates, in the order given.

    Raises:
        ValueError: A point holds NaN, or the points differ in length.
    """
    import numpy as np

    values = _matrix(points)
    if not len(values):
        return []
    return [int(index) for index in np.flatnonzero(_on_front(values))]


def ranks(points: Sequence[Sequence[float]]) -> list[int]:
    """Return each point's layer: 0 on the front, 1 on the front of what that leaves, and so on.

    Raises:
        ValueError: A point holds NaN, or the points differ in length.
    """
    import numpy as np

    values = _matrix(points)
    if not len(values):
        return []
    places = _places(values)
    order = np.argsort(places.sum(axis=1), kind="stable")
    sorted_places = places[order]
    layers = np.zeros(len(values), dtype=np.intp)
    for position, place in enumerate(sorted_places):
        earlier = sorted_places[:position]
        better = (earlier <= place).all(axis=1) & (earlier < place).any(axis=1)
        # A point lies one layer below the deepest point that dominates it.
        layers[position] = layers[:position][better].max(initial=-1) + 1
    unsorted = np.empty_like(layers)
    unsorted[order] = layers
    return [int(layer) for layer in unsorted]


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Return the volume that the points dominate up to `reference`, exactly.

    One number for the front as a whole, comparable only between fronts with the same reference. A
    point that is not better than the reference in every objective adds nothing. The cost grows
    with the number of points to the power of the objectives less one: for hundreds, not thousands.

    Raises:
        ValueError: A NaN, points that differ in length, or a reference of another length.
    """
    values = _matrix([*points, reference])
    corner, inside = values[-1], values[:-1]
    if not len(corner):
        raise ValueError("a hypervolume needs at least one objective")
    inside = inside[(inside < corner).all(axis=1)]
    if not len(inside):
        return 0.0
    return _volume(inside[_on_front(inside)], corner)


def probability(
    means: Sequence[Sequence[float]],
    sds: Sequence[Sequence[float]],
    draws: int = 2000,
    seed: int = 0,
) -> list[float]:
    """Return how often each point is on the front when its objectives vary, independently.

    `sds` are the standard errors of `means`; a zero keeps a value, and so its ties, exactly: where
    nothing varies the answers are 0 and 1. A seed draws the same numbers for the same points.

    Raises:
        ValueError: A NaN, shapes that differ, a negative or infinite sd, or no draws.
    """
    import numpy as np

    centre, scale = _checked(means, sds, draws)
    if not scale.any():
        return [float(on) for on in _on_front(centre)]
    possible = np.flatnonzero(_not_hopeless(centre - REACH * scale, centre + REACH * scale))
    # The best come first: they are those that beat the others in most draws.
    possible = possible[np.argsort(_places(centre[possible]).sum(axis=1), kind="stable")]
    # Numbers are drawn for the points in the order given.
    given = np.argsort(np.argsort(possible))
    centre, scale = centre[possible], scale[possible]
    rivals = _rivals(centre - REACH * scale, centre + REACH * scale)
    random = np.random.default_rng(seed)
    hits = np.zeros(len(means))
    most = max(1, DRAWN // centre.size)
    for start in range(0, draws, most):
        noise = random.standard_normal((min(most, draws - start), *centre.shape))[:, given]
        drawn = centre + scale * noise.clip(-REACH, REACH)
        on_front = _on_fronts(np.ascontiguousarray(drawn.transpose(2, 1, 0)), rivals)
        hits[possible] += on_front.sum(axis=1)
    return [float(share) for share in hits / draws]


def volumes(
    means: Sequence[Sequence[float]],
    sds: Sequence[Sequence[float]],
    reference: Sequence[float],
    draws: int = 100,
    seed: int = 0,
) -> list[float]:
    """Return the hypervolume of each draw of the points, whose objectives vary independently.

    Raises:
        ValueError: A NaN, shapes that differ, a negative or infinite sd, or no draws.
    """
    import numpy as np

    centre, scale = _checked(means, sds, draws)
    random = np.random.default_rng(seed)
    return [
        hypervolume(
            (centre + scale * random.standard_normal(centre.shape).clip(-REACH, REACH)).tolist(),
            reference,
        )
        for _ in range(draws)
    ]


def alike(
    means: Sequence[Sequence[float]], sds: Sequence[Sequence[float]], reach: float
) -> list[list[int]]:
    """Return for each point the indices of the others that no objective tells from it.

    An objective tells two points apart where they differ by more than `reach` standard errors of
    their difference. That is no equivalence: a may be like b and b like c, and a unlike c.

    Raises:
        ValueError: A NaN, shapes that differ, or a negative or infinite sd.
    """
    import numpy as np

    centre, scale = _checked(means, sds, 1)
    found = []
    for row, (at, error) in enumerate(zip(centre, scale, strict=True)):
        # Two infinities are equal, and their difference would be NaN.
        same = centre == at
        near = np.abs(np.where(same, 0.0, centre) - np.where(same, 0.0, at)) <= reach * np.hypot(
            scale, error
        )
        found.append([int(index) for index in np.flatnonzero(near.all(axis=1)) if index != row])
    return found


def _checked(
    means: Sequence[Sequence[float]], sds: Sequence[Sequence[float]], draws: int
) -> tuple[Floats, Floats]:
    """Return means and standard errors as matrices; refuse what cannot be drawn from."""
    import numpy as np

    centre, scale = _matrix(means), _matrix(sds)
    if centre.shape != scale.shape:
        raise ValueError(f"{centre.shape} means do not go with {scale.shape} standard errors")
    if (scale < 0).any() or not np.isfinite(scale).all():
        raise ValueError("a standard error is negative or infinite")
    if draws < 1:
        raise ValueError("a probability needs at least one draw")
    return centre, scale


def _matrix(points: Sequence[Sequence[float]]) -> Floats:
    """Return the points as rows; refuse what has no place in a comparison."""
    import numpy as np

    if not len(points):
        return np.empty((0, 0))
    if len({len(point) for point in points}) > 1:
        raise ValueError("points with different numbers of objectives cannot be compared")
    values = np.asarray(points, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError("a point with NaN cannot be compared; leave incomplete points out")
    return values


def _places(values: Floats) -> Integers:
    """Replace every value by its place among its column's distinct values.

    Dominance is the same, and places can be added up where infinities could not.
    """
    import numpy as np

    places = np.empty(values.shape, dtype=np.intp)
    for column in range(values.shape[1]):
        places[:, column] = np.unique(values[:, column], return_inverse=True)[1]
    return places


def _on_front(values: Floats) -> Booleans:
    """Return one truth per row: what the first row that is left dominates goes at once.

    Rows are taken by rising sum of places: whatever dominates a row has a smaller sum, so the first
    of those that are left is always on the front.
    """
    import numpy as np

    if not values.shape[1]:
        return np.ones(len(values), dtype=np.bool_)
    places = _places(values)
    left = np.argsort(places.sum(axis=1), kind="stable")
    found = np.zeros(len(values), dtype=np.bool_)
    rows = places[left]
    while len(left):
        ties = (rows == rows[0]).all(axis=1)
        found[left[ties]] = True
        alive = (rows < rows[0]).any(axis=1)
        left, rows = left[alive], rows[alive]
    return found


def _rivals(best: Floats, worst: Floats) -> list[Integers]:
    """Return for each row the others that may dominate it: at best they are no worse than it."""
    import numpy as np

    near = (np.flatnonzero((best <= row).all(axis=1)) for row in worst)
    return [found[found != row] for row, found in enumerate(near)]


def _on_fronts(drawn: Floats, rivals: Sequence[Integers]) -> Booleans:
    """Return for each point and draw whether the point is on the front of that draw.

    `drawn` has an entry for each objective, point and draw, and points of good means come first.
    """
    score = _score(drawn)
    alive = _culled(drawn, score.copy())
    share = alive.mean(axis=1)
    met = sum(float(at * share[others].sum()) for at, others in zip(share, rivals, strict=True))
    if PAIRS * met < float(share.sum()) ** 2:
        _compare(drawn, alive, rivals)
    else:
        _peel(drawn, alive, score)
    return alive


def _score(drawn: Floats) -> Floats:
    """Return a number for each point and draw that is never lower than that of what dominates it.

    It weighs all objectives alike, so that a low one dominates much.
    """
    import numpy as np

    total = np.zeros(drawn.shape[1:])
    for values in drawn:
        finite = values[np.isfinite(values)]
        if finite.size:
            # Halves, for the range of two large numbers may be too large for a number.
            low, high = finite.min() / 2, finite.max() / 2
            total += ((values / 2).clip(low, high) - low) / (high - low if high > low else 1.0)
    return total


def _culled(drawn: Floats, score: Floats) -> Booleans:
    """Return what is left when the points of the lowest scores have taken what they dominate."""
    import numpy as np

    alive = np.ones(score.shape, dtype=np.bool_)
    draws = np.arange(score.shape[1])
    before, left = 0, alive.size
    while before - left > WORTH * left or not before:
        best = score.argmin(axis=0)
        beaten = _beaten(((values[best, draws], values) for values in drawn), alive)
        alive &= ~beaten
        score[beaten] = np.inf
        score[best, draws] = np.inf
        before, left = left, int(np.count_nonzero(alive))
    return alive


def _peel(drawn: Floats, alive: Booleans, score: Floats) -> None:
    """Leave alive only fronts: the lowest score of a draw is on it and takes what it dominates."""
    import numpy as np

    draw, point = np.nonzero(alive.T)
    # Of equal scores, which rounding can make of others, a dominating point comes first like this.
    keys = (*(values[point, draw] for values in drawn[::-1]), score[point, draw], draw)
    order = np.lexsort(keys)
    draw, point = draw[order], point[order]
    rows = [values[point, draw] for values in drawn]
    while len(draw):
        starts = np.flatnonzero(np.diff(draw, prepend=-1))
        best = np.repeat(starts, np.diff(starts, append=len(draw)))
        beaten = _beaten(((values[best], values) for values in rows), np.ones_like(draw, np.bool_))
        alive[point[beaten], draw[beaten]] = False
        stays = ~beaten
        stays[starts] = False
        draw, point, rows = draw[stays], point[stays], [values[stays] for values in rows]


def _compare(drawn: Floats, alive: Booleans, rivals: Sequence[Integers]) -> None:
    """Leave alive only fronts, by holding every point against its rivals."""
    import numpy as np

    for index, others in enumerate(rivals):
        start, size = 0, FIRST
        while start < len(others) and len(left := np.flatnonzero(alive[index])):
            some = others[start : start + size]
            start, size = start + size, size * GROWTH
            # What beats a beaten rival beats all that the rival would.
            row, column = np.nonzero(alive[some][:, left])
            rival, draw = some[row], left[column]
            pairs = ((values[rival, draw], values[index, draw]) for values in drawn)
            beaten = _beaten(pairs, np.ones_like(draw, np.bool_))
            alive[index, draw[beaten]] = False


def _beaten(pairs: Iterable[tuple[Floats, Floats]], among: Booleans) -> Booleans:
    """Return where the first of a pair dominates the second; there is a pair for each objective."""
    import numpy as np

    no_worse, better = among.copy(), np.zeros_like(among)
    for rival, own in pairs:
        no_worse &= rival <= own
        better |= rival < own
    return no_worse & better


def _not_hopeless(best: Floats, worst: Floats) -> Booleans:
    """Which rows could be on the front if they came out at their best and all others at worst."""
    import numpy as np

    rivals = worst[_on_front(worst)]
    return np.array(
        [not ((rivals <= row).all(axis=1) & (rivals < row).any(axis=1)).any() for row in best],
        dtype=np.bool_,
    )


def _volume(values: Floats, corner: Floats) -> float:
    """Add up slices along the last objective, each with the area of the points that reach it."""
    if values.shape[1] == 1:
        return float(corner[0] - values.min())
    ordered = values[values[:, -1].argsort(kind="stable")]
    edges: Any = [*ordered[1:, -1], corner[-1]]
    total = 0.0
    for count, (row, end) in enumerate(zip(ordered, edges, strict=True), start=1):
        thickness = float(end - row[-1])
        if thickness > 0:
            reached = ordered[:count, :-1]
            total += thickness * _volume(reached[_on_front(reached)], corner[:-1])
    return total
