// What the page says of a point, and its answer to what fits, in sentences.

import {isLimited, isSettledByTime, likeliest, ranked, verdict} from "./fitting.js";
import {marginal, plural, sized, spanned} from "./numbers.js";

export const called = (point) => `No. ${point.number}: ${point.name}`;

const mentioned = (point) => `No. ${point.number}, ${point.name}`;

// The value of a point in a column.
export function valued(point, at, group) {
  const ends = point.values[at];
  if (!ends) return "no value";
  return ends.length > 1 && group.kind !== "predicted" ? marginal(ends) : spanned(ends);
}

// Hours on all devices of a point, and of one, with the ends of their interval, and money.
export function priced(point, {tokens, price}) {
  if (!point.cost || !tokens) return "";
  const hours = (times) => spanned(point.cost.map((each) => each * tokens * times));
  const ofOne = point.gpus === 1 ? "" : ` = ${hours(1)} device-hours`;
  const money = price ? `, $${hours(price)}` : "";
  const job = `${tokens.toLocaleString("en")} million tokens`;
  return `${job} take ${hours(1 / point.gpus)} hours${ofOne}${money}`;
}

// What a point takes: memory, time and money.
export function described(point, group, question) {
  const devices = point.gpus === 1 ? "one device" : `each of ${point.gpus} devices`;
  const phase = point.phase && `, most of all while ${point.phase}`;
  return [
    point.needs && `${sized(point.needs[1], group.unit)} on ${devices}${phase}`,
    point.host && `${sized(point.host, group.unit)} of the host's memory for each`,
    point.step && `a step takes ${point.step}`,
    priced(point, question),
  ].filter(Boolean).join("; ");
}

// What fits the machine of the question, and what to run on it: a few paragraphs.
export function answer(group, question) {
  const {machine} = question;
  if (!group.most) return ["No point of this run tells how much memory it needs."];
  const verdicts = group.points.map((point) => verdict(point, machine));
  const fitting = group.points.filter((_, at) => verdicts[at] === "fits");
  const tight = group.points.filter((_, at) => verdicts[at] === "tight");
  if (!isLimited(machine) && group.kind === "predicted") {
    const have = fitting.length === 1 ? "has" : "have";
    return ["Choose how many GPUs you have and their size. Without a limit, "
      + `${plural(fitting.length, "point")} ${have} a prediction.`];
  }
  const able = fitting.length ? ranked(fitting, group) : likeliest(tight, group, machine);
  const [best, ...rest] = able.slice(0, 3);
  const head = counted(fitting.length, tight.length, group, machine);
  if (!best) return [head, ...nearest(group, machine)];
  return [
    head,
    `${fitting.length ? goal(group) : "Tight, but of these the first to try"}: ${mentioned(best)}.`,
    `It takes ${reasons(best, group, question)}.`,
    ...(rest.length ? [`Next: ${rest.map(mentioned).join("; then ")}.`] : []),
  ];
}

// Where nothing fits, what is nearest on so many GPUs.
function nearest({points, unit}, {gpus, gib, most}) {
  const able = points.filter((point) => point.needs && point.gpus <= gpus);
  if (!able.length) return ["No point of this run takes so few GPUs."];
  const near = able.reduce((one, other) => (other.needs[1] < one.needs[1] ? other : one));
  const lacks = near.needs[0] - Math.max(gib, most);
  return [`Nearest: ${mentioned(near)}, with at least ${sized(lacks, unit)} short.`];
}

// Whether something fits the machine, or may, or nothing does.
export function standing(group, {machine}) {
  const found = new Set(group.points.map((point) => verdict(point, machine)));
  return ["fits", "tight"].find((each) => found.has(each)) ?? "no";
}

// How many points fit, and how many may.
function counted(fitting, tight, {kind}, machine) {
  const where = isLimited(machine) ? `On ${machine.name}` : "With any memory";
  const perhaps = tight ? ` and ${tight} may, just` : "";
  if (!fitting) return `${where} no point of this run fits for certain${perhaps} (${kind}).`;
  return `${where}, ${fitting} ${fitting === 1 ? "point fits" : "points fit"}${perhaps} (${kind}).`;
}

function goal(group) {
  if (group.accuracy >= 0) return "The most accurate, or not to be told from it and quicker";
  const near = ", or within 5 % of that and with more bits or a larger rank";
  return `The fastest to train on it${isSettledByTime(group) ? near : ""}`;
}

function reasons(point, group, question) {
  const {accuracy, columns} = group;
  const cost = described(point, group, question);
  if (accuracy < 0) return cost;
  return `${cost}; ${columns[accuracy].head}: ${valued(point, accuracy, group)}`;
}
