// What the drawings of `charts.py` show, as values. A drawing has a `title`, `datasets` by their
// names, `words` for the texts of its specification that start with `$`, and, where an axis may be
// logarithmic, the `scales` of both.

import {isKept} from "./fitting.js";
import {digits, plural, sized} from "./numbers.js";
import {called, described, valued} from "./telling.js";

const FINE = 1000; // steps that `explorer.py` counts a step's length and its highest memory in
const MANY = 60; // beyond this the bars of points that nobody wants hide those of the front
const WIDE = 30; // beyond this ratio of the largest to the smallest, a linear axis shows only one
// How far a mark is filled: surely on the front, perhaps, not, or nothing to compare.
const FILLED = {front: 1, possible: 0.4, dominated: 0, incomplete: 0};

function scaleOf(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low > 0 && high / low > WIDE ? "log" : "linear";
}

// Two columns against each other.
export function scatterDrawing(group, question, [x, y]) {
  const {columns, points} = group;
  const ended = points.filter(({values}) => values[x] && values[y]);
  const scale = (at) => scaleOf(ended.map(({values}) => values[at][0]));
  const scales = {x: scale(x), y: scale(y)};
  const named = ({head, better}, kind) =>
    `${head}${kind === "log" ? ", log" : ""}, ${better} is better`;
  const limit = (at, axis) => (columns[at].limit === null ? [] : [{[axis]: columns[at].limit}]);
  // What is on the front lies on top of what is not.
  const spots = ended.toSorted((one, other) => FILLED[one.label] - FILLED[other.label])
    .map((point) => spot(point, group, question, [x, y]));
  return {
    title: `${columns[y].head} against ${columns[x].head}`,
    words: {"$x": named(columns[x], scales.x), "$y": named(columns[y], scales.y)},
    scales,
    datasets: {
      points: spots,
      x_bars: barred(spots, "x", scales.x),
      y_bars: barred(spots, "y", scales.y),
      front: staircase(ended, columns, [x, y]),
      x_limit: limit(x, "x"),
      y_limit: limit(y, "y"),
    },
  };
}

function spot(point, group, question, [x, y]) {
  const [across, left = null, right = null] = point.values[x];
  const [up, low = null, high = null] = point.values[y];
  return {
    number: point.number,
    name: called(point),
    status: point.status,
    standing: point.standing,
    needs: described(point, group, question),
    across: `${group.columns[x].head}: ${valued(point, x, group)}`,
    up: `${group.columns[y].head}: ${valued(point, y, group)}`,
    kept: isKept(point, question),
    filled: FILLED[point.label],
    colour: group.colours[point.colour],
    shape: group.shapes[point.shape],
    x: across, x_low: left, x_high: right,
    y: up, y_low: low, y_high: high,
  };
}

function barred(spots, axis, scale) {
  return spots.filter(({filled, [`${axis}_low`]: low}) =>
    low !== null && (filled || spots.length <= MANY)
    // No bar of a logarithmic axis can reach zero.
    && (scale === "linear" || low > 0));
}

// The front of the two columns alone: no point is worse than the one before in both.
function staircase(points, columns, [x, y]) {
  const cost = ({values}, at) => (columns[at].better === "more" ? -values[at][0] : values[at][0]);
  const sorted = points.toSorted((one, other) =>
    cost(one, x) - cost(other, x) || cost(one, y) - cost(other, y));
  const steps = [];
  let least = Infinity;
  for (const point of sorted) {
    if (cost(point, y) >= least) continue;
    least = cost(point, y);
    steps.push({x: point.values[x][0], y: point.values[y][0]});
  }
  return steps;
}

// The best kept point of every cell of two choices, one map for each value of a third, or one of
// all points if `each` is -1. `value` is the column that is compared.
export function mapsDrawing(group, question, {across, up, each, value}) {
  const {choices, columns} = group;
  const settings = {across, up, each, value};
  const cells = bestCells(group, group.points.filter((point) => isKept(point, question)), settings);
  // As deep whichever points are kept: a colour means a number, not a place among what is left.
  const paint = painted([...bestCells(group, group.points, settings).values()]
    .map(({best}) => best.values[value][0]));
  const named = each < 0 ? ["every point"]
    : choices[each].values.map((text) => `${choices[each].title}: ${text}`);
  const held = new Set([...cells.keys()].map((key) => Number(key.split(",")[0])));
  const pages = named.map((text, page) => ({text, page})).filter(({page}) => held.has(page));
  const drawn = pages.flatMap(({text, page}) =>
    choices[up].values.flatMap((row, down) =>
      choices[across].values.map((column, along) => ({
        across: column, up: row, each: text, column: along, row: down, page,
        ...told(cells.get(keyOf(page, down, along)), value, paint),
      }))));
  return {
    title: `${columns[value].head}, the best of the points kept above, by `
      + `${choices[up].title.toLowerCase()} and ${choices[across].title.toLowerCase()}`,
    words: {"$x": choices[across].title, "$y": choices[up].title, "$value": columns[value].head},
    datasets: {cells: drawn},
  };
}

const keyOf = (...places) => places.join();

function bestCells(group, points, {across, up, each, value}) {
  const sign = group.columns[value].better === "more" ? -1 : 1;
  const cells = new Map();
  for (const point of points) {
    // A point that did not end well stands at no choice.
    if (!point.values[value] || point.at[across] === null) continue;
    const key = keyOf(each < 0 ? 0 : point.at[each], point.at[up], point.at[across]);
    const {count, best} = cells.get(key) ?? {count: 0, best: point};
    const better = sign * point.values[value][0] < sign * best.values[value][0];
    cells.set(key, {count: count + 1, best: better ? point : best});
  }
  return cells;
}

// How deep a value is painted, from 0 to 1, among those of all cells.
function painted(values) {
  const bend = scaleOf(values) === "log" ? Math.log : (number) => number;
  const [low, high] = [Math.min(...values), Math.max(...values)].map(bend);
  return (number) => (bend(number) - low) / (high - low || 1);
}

function told(cell, value, paint) {
  if (!cell) return {text: "-", share: null, name: "no point", points: "0 points"};
  const [number] = cell.best.values[value];
  return {
    text: digits(number),
    share: paint(number),
    number: cell.best.number,
    name: called(cell.best),
    points: plural(cell.count, "point"),
  };
}

const ofMemory = ({unit}) => ({
  title: "Memory by category",
  words: {"$y": `Memory (${unit.name})`},
});

const heldSize = (gib, {unit}) => ({size: gib * unit.perGib, text: sized(gib, unit)});

// What memory is for at the peak.
export function peakDrawing(point, group) {
  const parts = point.parts
    .map((gib, place) => ({category: group.categories[place], place, ...heldSize(gib, group)}))
    .filter(({size}) => size);
  return {...ofMemory(group), datasets: {parts}};
}

// What memory is for over one step, where a prediction has it.
export function stepDrawing({moments: {most, at, sizes, parts}}, group) {
  const moments = sizes.flatMap(([place, shares]) => shares.map((share, moment) => ({
    at: at[moment],
    category: group.categories[place],
    place,
    ...heldSize(share * most / FINE, group),
  })));
  return {
    ...ofMemory(group),
    datasets: {moments, parts: parts.map(([name, start]) => ({name, at: start}))},
  };
}
