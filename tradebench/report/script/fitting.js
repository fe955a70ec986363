// What a reader's question rules out, and which of the other points is the one to run.
//
// A question is all that the reader has chosen: the `machine`, the `words` that a name must have,
// the numbers of the points `inside` the box over the drawing (null without one), how many million
// `tokens` to train on and the `price` of a GPU-hour. A machine has a `name`, so many `gpus`, and
// on each of them so many `gib` whichever card of its size it is, and `most` on some. A group is
// what `explorer.py` packed, and what `grouped` finds in it. The `room` of a point is the share of
// a GPU that it must leave, because predictions of its kind were off by as much.

import {unitOf} from "./numbers.js";

export const UNLIMITED = {name: "any memory", gpus: Infinity, gib: Infinity, most: Infinity};
const ROUNDING = 1.0001; // a card holds what needs all of it, though both were rounded
const HAIR = 0.05;
const POINTS = 0.5; // per cent of the answers, that no one waits longer for

export function grouped(data) {
  const at = (name) => data.columns.findIndex((column) => column.name.startsWith(name));
  const needed = data.points.flatMap((point) => point.needs ?? []);
  const most = Math.max(...needed, 0);
  // What one asks of a point, beside its memory.
  const asked = ["accuracy.", "device_seconds_per_token", "step_seconds"].map(at);
  return {
    ...data,
    byNumber: new Map(data.points.map((point) => [point.number, point])),
    accuracy: at("accuracy."),
    step: at("step_seconds"),
    asked: asked.find((column) => column >= 0) ?? 0,
    least: Math.min(...needed, Infinity),
    most,
    unit: unitOf(most),
  };
}

export const isLimited = (machine) => machine !== UNLIMITED;

export function verdict(point, machine) {
  if (!point.needs || point.gpus > machine.gpus) return "no";
  const [least, most] = point.needs;
  if (most <= machine.gib * (1 - point.room) * ROUNDING) return "fits";
  return least <= machine.most * ROUNDING ? "tight" : "no";
}

// Whether all of its interval fits, with or without room.
const isHeld = ({needs}, machine) => needs[1] <= machine.gib * ROUNDING;

export function isKept(point, {machine, words, inside}) {
  const name = point.name.toLowerCase();
  return (!isLimited(machine) || verdict(point, machine) !== "no")
    && (!inside || inside.has(point.number))
    && words.every((word) => name.includes(word));
}

// The numbers of the points inside the box `{x: [from, to], y: [from, to]}` of two columns.
export function enclosed(points, [x, y], box) {
  const within = ([from, to], [value]) =>
    value >= Math.min(from, to) && value <= Math.max(from, to);
  const found = points.filter(({values}) =>
    values[x] && values[y] && within(box.x, values[x]) && within(box.y, values[y]));
  return new Set(found.map((point) => point.number));
}

// Where nobody knows which point becomes the better model, the time that it takes decides.
export const isSettledByTime = (group) => group.accuracy < 0 && group.kind === "predicted";

// A machine is paid for whole, so what ends first on it is what costs least.
function rank(point, group) {
  const scored = point.values[group.accuracy];
  if (scored) return -scored[0];
  return point.cost ? point.cost[0] / point.gpus : Infinity;
}

// Of points that may fit those that do by all of their interval, or else those first that need
// least at worst.
export function likeliest(points, group, machine) {
  const held = points.filter((point) => isHeld(point, machine));
  if (held.length) return ranked(held, group);
  return ranked(points, group).toSorted((one, other) => one.needs[1] - other.needs[1]);
}

// Whether all weights are left, then how many bits of each, then the rank of an adapter.
function leavesMore(point, other) {
  const at = point.left.findIndex((each, place) => each !== other.left[place]);
  return at >= 0 && point.left[at] > other.left[at];
}

// Of accuracies that are the same as the best, as far as their intervals tell, the quickest first.
function quickestFirst(sorted, {accuracy, step}) {
  const best = sorted[0].values[accuracy];
  if (!best || step < 0) return sorted;
  const [most, low = most] = best;
  const alike = sorted.filter(({values}) => {
    const [value, , high = value] = values[accuracy] ?? [-Infinity];
    return most - value <= POINTS && high >= low && values[step];
  });
  if (alike.length < 2) return sorted;
  const first = alike.reduce((one, other) =>
    (other.values[step][0] < one.values[step][0] ? other : one));
  return [first, ...sorted.filter((point) => point !== first)];
}

// The points in the order in which to run them. Of predictions that take the same time the one that
// leaves more of the model comes first: a hair is no reason for fewer bits or a smaller rank. Those
// that take weights away are only for where nothing else fits.
export function ranked(points, group) {
  const whole = points.filter(({left}) => left[0]);
  const able = isSettledByTime(group) && whole.length ? whole : points;
  const sorted = able.toSorted((one, other) => rank(one, group) - rank(other, group));
  if (!sorted.length) return sorted;
  if (!isSettledByTime(group)) return quickestFirst(sorted, group);
  const longest = rank(sorted[0], group) * (1 + HAIR);
  const near = sorted.filter((point) => rank(point, group) <= longest);
  const best = near.reduce((one, other) => (leavesMore(other, one) ? other : one));
  return [best, ...sorted.filter((point) => point !== best)];
}
