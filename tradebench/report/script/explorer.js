// One group of points on the page: its drawings, its table and its answer follow its controls.

import {openCard} from "./card.js";
import {Controls} from "./controls.js";
import {mapsDrawing, scatterDrawing} from "./drawings.js";
import {element, numbersOf, offer} from "./elements.js";
import {LiveDrawing} from "./embedding.js";
import {enclosed, grouped, isKept} from "./fitting.js";
import {AnswerRow, OWN_COST, PointRow, isOwnJob, makeOpening} from "./rows.js";
import {answer, standing} from "./telling.js";

// What `explorer.py` packed: JSON in gzip in base 64.
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

export async function explore(root) {
  const data = await unpacked(root.querySelector("script").textContent);
  new Explorer(root, grouped(data)).start();
}

class Explorer {
  #root;
  #group;
  #controls;
  #rows = new Map(); // by the number of their point
  #costHead = null; // of the table above, with the text that it was written with
  #answers = []; // rows of the table above, each with the number of its point
  #inside = null; // the numbers of the points in the box over the drawing; null without a box
  #scatter;
  #maps = null; // null where no two settings were tried together

  constructor(root, group) {
    this.#root = root;
    this.#group = group;
    this.#controls = new Controls(root, group);
    this.#scatter = this.#prepareScatter();
    this.#find(".mapped").hidden = !group.crossed.length;
    if (group.crossed.length) this.#maps = this.#prepareMaps();
    this.#prepareRows();
    this.#controls.listen(() => this.#update());
    this.#find(".all").addEventListener("click", () => {
      this.#controls.chooseUnlimited();
      this.#update();
    });
    this.#find(".clear").addEventListener("click", () => {
      this.#controls.chooseEverything();
      this.#redraw();
    });
  }

  start() {
    this.#root.classList.add("ready");
    // Without a column no point has ended well.
    if (this.#group.columns.length) this.#redraw();
  }

  #find(selector) {
    return this.#root.querySelector(selector);
  }

  get #question() {
    return {...this.#controls.question, inside: this.#inside};
  }

  #prepareScatter() {
    const selects = {across: this.#find(".across"), up: this.#find(".up")};
    const heads = this.#group.columns.map((column) => column.head);
    offer(selects.across, heads, 0);
    offer(selects.up, heads, this.#group.asked);
    const axes = () => [Number(selects.across.value), Number(selects.up.value)];
    for (const each of Object.values(selects)) {
      each.addEventListener("change", () => this.#redraw());
    }
    const plot = this.#find(".plot");
    return new LiveDrawing(plot, this.#group.charts.scatter, {
      content: () => scatterDrawing(this.#group, this.#question, axes()),
      entitle: (title) => plot.setAttribute("aria-label", title),
      wire: (view) => {
        this.#opensPoints(view);
        view.addSignalListener("brush", (_, box) => {
          this.#inside = box.x ? enclosed(this.#group.points, axes(), box) : null;
          this.#update();
        });
      },
    });
  }

  #prepareMaps() {
    const {choices, columns, crossed: [up, across, each = -1]} = this.#group;
    const selects = Object.fromEntries(
      ["value", "across", "up", "each"].map((name) => [name, this.#find(`.map-${name}`)]));
    const titles = choices.map((choice) => choice.title);
    offer(selects.value, columns.map((column) => column.head), this.#group.asked);
    offer(selects.across, titles, across);
    offer(selects.up, titles, up);
    selects.each.append(new Option("nothing: one map", -1));
    offer(selects.each, titles, each);
    for (const select of Object.values(selects)) {
      select.addEventListener("change", () => this.#maps.draw());
    }
    return new LiveDrawing(this.#find(".maps"), this.#group.charts.maps, {
      content: () => mapsDrawing(this.#group, this.#question, numbersOf(selects)),
      entitle: (title) => { this.#find(".map-title").textContent = title; },
      wire: (view) => this.#opensPoints(view),
    });
  }

  #prepareRows() {
    for (const row of this.#root.querySelectorAll("tr[data-number]")) {
      this.#rows.set(Number(row.dataset.number), new PointRow(row));
      this.#opensPoint(row, row.dataset.number);
    }
    const answers = document.querySelector(`[data-of="${this.#root.dataset.group}"]`);
    for (const row of answers?.querySelectorAll("tr[data-point]") ?? []) {
      const answer = new AnswerRow(row);
      this.#answers.push([Number(row.dataset.point), answer]);
      // What was measured fitted where it ran.
      const said = this.#group.kind === "predicted" ? answer.verdict : undefined;
      this.#opensPoint(row, row.dataset.point, said);
    }
    const node = [...answers?.querySelectorAll("thead th") ?? []]
      .find((head) => head.textContent.startsWith("Cost"));
    if (node) this.#costHead = {node, written: node.textContent};
    // What is to be trained, and its price, stand where they are answered first.
    answers?.querySelector("table").before(this.#find(".job"));
  }

  #opensPoint(row, text, said) {
    const number = Number(text);
    makeOpening(row, () => this.#open(number, said), () => this.#scatter.signal("focus", number));
  }

  #opensPoints(view) {
    view.addEventListener("click", (_, item) => {
      if (item?.datum?.number) this.#open(item.datum.number);
    });
  }

  #open(number, said) {
    const point = this.#group.byNumber.get(number);
    openCard(this.#find("dialog"), point, this.#group, this.#question, said);
  }

  // Other axes, or no box.
  #redraw() {
    this.#inside = null;
    this.#tell();
    this.#scatter.draw();
    this.#maps?.draw();
  }

  // The same axes, and another question.
  #update() {
    this.#tell();
    this.#scatter.refresh();
    // A map without a kept point is left out, so that there may be more or fewer of them.
    this.#maps?.draw();
  }

  // All that is text: the answer, the table, how many points are kept.
  #tell() {
    const {points} = this.#group;
    const question = this.#question;
    this.#controls.show(question.machine);
    const told = answer(this.#group, question).map((text) => element("p", {}, text));
    this.#find(".answer").replaceChildren(...told);
    this.#find(".answer").dataset.verdict = standing(this.#group, question);
    if (this.#costHead) {
      const {node, written} = this.#costHead;
      node.textContent = isOwnJob(question) ? OWN_COST : written;
    }
    for (const [number, row] of this.#answers) {
      row.show(this.#group.byNumber.get(number), question);
    }
    for (const point of points) {
      this.#rows.get(point.number)?.show(point, this.#group, question);
    }
    const kept = points.filter((point) => isKept(point, question)).length;
    this.#find(".kept").textContent = `${kept} of ${points.length} points are kept.`;
  }
}
