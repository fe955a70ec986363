// The controls of one group of points: what its reader asks, read off them.

import {UNLIMITED} from "./fitting.js";
import {sized} from "./numbers.js";

const GIB_OF_LARGEST_CARD = 256;
const MARGIN = 1.02; // beyond the least and the most memory, so that both lie on the slider
const SAME_GIB = 0.01; // two sizes of cards differ by more
const NAMES = ["gpus", "memory", "tokens", "price", "filter"];

export class Controls {
  #group;
  #fields;
  #machines; // the label that holds the number of GPUs
  #each; // what leads from it to the size
  #size; // what the slider is at
  #cards; // buttons, each a size that cards have

  constructor(root, group) {
    const find = (selector) => root.querySelector(selector);
    this.#group = group;
    this.#fields = Object.fromEntries(NAMES.map((name) => [name, find(`.${name}`)]));
    this.#machines = find(".machines");
    this.#each = find(".each");
    this.#size = find(".size");
    this.#cards = [...root.querySelectorAll("[data-gib]")];
    this.#prepare();
    this.chooseUnlimited();
  }

  // The slider is even in powers of two.
  #prepare() {
    const {least, most, unit, points} = this.#group;
    const {gpus, memory} = this.#fields;
    const isSmall = unit.name === "MiB";
    const largest = isSmall ? most : Math.max(most, GIB_OF_LARGEST_CARD);
    memory.closest(".controls").hidden = !most;
    memory.min = most ? Math.log2(least / MARGIN) : 0;
    memory.max = most ? Math.log2(largest * MARGIN) : 0;
    // A machine of another number of GPUs is one that no point was made for.
    const counts = [...new Set(points.map((point) => point.gpus))].sort((a, b) => a - b);
    gpus.append(...counts.map((count) => new Option(count)));
    this.#machines.hidden = isSmall && points.every((point) => point.gpus === 1);
    this.#each.hidden = this.#machines.hidden;
    for (const card of this.#cards) {
      // A model of a few MiB fits every card: that is all that these would tell.
      card.hidden = isSmall || Number(card.dataset.gib) > largest;
    }
  }

  // Call `changed` whenever the question has become another.
  listen(changed) {
    for (const field of Object.values(this.#fields)) field.addEventListener("input", changed);
    for (const card of this.#cards) {
      card.addEventListener("click", () => {
        this.#fields.memory.value = Math.log2(card.dataset.gib);
        changed();
      });
    }
  }

  chooseUnlimited() {
    const {gpus, memory} = this.#fields;
    memory.value = memory.max;
    gpus.selectedIndex = gpus.options.length - 1;
  }

  chooseEverything() {
    this.chooseUnlimited();
    this.#fields.filter.value = "";
  }

  // The question but for the box, which is drawn and not chosen here.
  get question() {
    const {tokens, price, filter} = this.#fields;
    return {
      machine: this.#machine,
      words: filter.value.toLowerCase().split(/\s+/),
      // What is negative counts as nothing.
      tokens: Math.max(0, Number(tokens.value)),
      price: Math.max(0, Number(price.value)),
    };
  }

  get #machine() {
    const {gpus, memory} = this.#fields;
    const isMost = Number(memory.value) > Number(memory.max) - 1e-6;
    if (isMost && gpus.selectedIndex === gpus.options.length - 1) return UNLIMITED;
    const gib = 2 ** Number(memory.value);
    const card = this.#cards.find((each) => Math.abs(Number(each.dataset.gib) - gib) < SAME_GIB);
    const size = card?.textContent ?? sized(gib, this.#group.unit);
    const each = {gib, most: Number(card?.dataset.most ?? gib), size};
    return this.#machines.hidden ? {...each, gpus: 1, name: each.size}
      : {...each, gpus: Number(gpus.value), name: `${gpus.value} × ${each.size}`};
  }

  // Tell what the slider is at, where it cannot be read off its thumb.
  show({gib}) {
    const size = gib === UNLIMITED.gib ? UNLIMITED.name : sized(gib, this.#group.unit);
    this.#size.textContent = size;
    this.#fields.memory.setAttribute("aria-valuetext", size);
  }
}
