// The rows of tables that speak of points: those of every point, and those of the answers above.

import {isKept, isLimited, verdict} from "./fitting.js";
import {priced} from "./telling.js";

const VERDICTS = {
  fits: {mood: "good", words: "fits"},
  tight: {mood: "unsure", words: "is tight on"},
  no: {mood: "bad", words: "does not fit"},
};

// A row of the table of every point, with the verdict that it was written with: a planned point's
// is on the device of the plan, until its reader chooses another.
export class PointRow {
  #node;
  #status;
  #advice; // how to fit the device of the plan
  #written;

  constructor(node) {
    this.#node = node;
    this.#status = node.querySelector(".status");
    this.#advice = node.querySelector(".advice");
    const {className, textContent} = this.#status;
    this.#written = {className, textContent};
  }

  show(point, group, question) {
    this.#node.hidden = !isKept(point, question);
    const verdict = judged(point, group, question);
    Object.assign(this.#status, verdict ?? this.#written);
    if (this.#advice) this.#advice.hidden = verdict !== null;
  }
}

// The verdict on a planned point on the machine that its reader has chosen; null without one.
export function judged(point, {kind}, {machine}) {
  if (!isLimited(machine) || !point.needs || kind !== "predicted") return null;
  const {mood, words} = VERDICTS[verdict(point, machine)];
  return {className: `status ${mood}`, textContent: `${words} ${machine.name}`};
}

// Whether its reader has a job of their own, other than a million tokens without a price.
export const isOwnJob = ({tokens, price}) => tokens > 0 && (tokens !== 1 || price > 0);

// What the rows of the answers are called where they are written.
const WRITTEN = {fits: "fits", tight: "tight", "nothing-fits": "no"};

export const OWN_COST = "Cost of these tokens";

// A row of the answers, whose cost is of so many tokens as its reader trains on.
export class AnswerRow {
  #node;
  #cell;
  #written;
  #head;

  constructor(node) {
    this.#node = node;
    const place = node.querySelector("[data-head^=Cost]");
    this.#cell = place?.querySelector("bdi");
    this.#written = this.#cell?.textContent;
    this.#head = place?.dataset.head;
  }

  // Its point on its own machine, whichever its reader has chosen below.
  get verdict() {
    const {words} = VERDICTS[WRITTEN[this.#node.className]];
    return `${words} ${this.#node.querySelector("th bdi").textContent}`;
  }

  show(point, question) {
    if (!this.#cell) return;
    const own = isOwnJob(question) && priced(point, question);
    this.#cell.textContent = own || this.#written;
    // On a narrow page each cell has its head beside it.
    this.#cell.parentElement.dataset.head = own ? OWN_COST : this.#head;
  }
}

// Let a row open its point by mouse and keyboard, and mark it while it has the focus.
export function makeOpening(row, open, mark) {
  row.tabIndex = 0;
  row.addEventListener("focus", mark);
  // Whoever drags over a row wants its text.
  row.addEventListener("click", () => getSelection().isCollapsed && open());
  row.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.target !== row) return;
    // The same key would press the card's first button, which closes it.
    event.preventDefault();
    open();
  });
}
