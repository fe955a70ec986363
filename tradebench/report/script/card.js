// The card that holds all of one point.

import {peakDrawing, stepDrawing} from "./drawings.js";
import {element} from "./elements.js";
import {embed} from "./embedding.js";
import {isLimited} from "./fitting.js";
import {sized} from "./numbers.js";
import {judged} from "./rows.js";
import {called, described, valued} from "./telling.js";

const SUITE = "Suite file: save it as point.yaml, then run tradebench run point.yaml";
const TRAINING = "training";
const CODE = "Settings of transformers and peft";

// `said` is a verdict on another machine than that of the question.
export function openCard(dialog, point, group, question, said) {
  const summary = [
    said ?? judged(point, group, question)?.textContent ?? point.status,
    ...point.reasons,
    // It is about the device of the plan.
    ...(said || isLimited(question.machine) ? [] : [point.advice]),
    described(point, group, question),
  ];
  const facts = group.columns.flatMap((column, at) =>
    [element("dt", {}, column.head), element("dd", {}, valued(point, at, group))]);
  const memory = element("div", {});
  dialog.querySelector(".point-card").replaceChildren(
    element("h3", {}, called(point)),
    element("p", {}, summary.filter(Boolean).join(". ")),
    element("p", {class: "note"}, `These numbers are ${group.kind}. ${group.accuracyNote}`),
    element("dl", {}, ...facts),
    memory,
    ...copyable(SUITE, point.yaml),
    ...copyable(CODE, point.code),
  );
  dialog.showModal();
  // A drawing measures its place, which has no width before it is shown.
  drawMemory(memory, point, group);
}

function drawMemory(node, point, group) {
  const peak = peakDrawing(point, group);
  const title = point.moments ? "Memory by category over one step, predicted" : peak.title;
  const {parts} = peak.datasets;
  if (!parts.length) return;
  const all = parts.reduce((sum, {size}) => sum + size, 0);
  // What is no thousandth of the whole is no part of the answer.
  const held = parts.filter(({size}) => size >= all / 1000)
    .map(({category, text}) => `${category} ${text}`);
  const plot = element("div", {class: "plot small", role: "img", "aria-label": title});
  const note = point.moments
    ? "One step from start to end, predicted; the highest moment is "
      + `${sized(point.moments.most, group.unit)}.`
    : "Tensor memory at the peak of training.";
  const elsewhere = point.phase && point.phase !== TRAINING
    ? ` It needs most while ${point.phase}, which is not drawn.` : "";
  node.append(
    element("h4", {}, title),
    plot,
    element("p", {}, `At the peak: ${held.join(", ")}.`),
    element("p", {class: "note"}, note + elsewhere),
  );
  if (point.moments) embed(plot, group.charts.memory, stepDrawing(point, group));
  else embed(plot, group.charts.peak, peak);
}

function copyable(title, text) {
  if (!text) return [];
  const button = element("button", {type: "button"}, "Copy");
  const block = element("pre", {tabindex: "0"}, element("code", {}, text));
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(block);
    const told = () => { button.textContent = "Copied"; };
    // A page opened as a file may not have the clipboard; the text is selected all the same.
    navigator.clipboard?.writeText(text).then(told, () => {});
  });
  return [element("h4", {}, title), button, block];
}
