// Drawings in their places on the page, by vega-embed, which stands in the module before this one.

const NARROW = 560; // pixels, in which legends no longer stand beside each other
// The interpreter needs no code made from text, which this page's policy forbids.
const OPTIONS = {ast: true, actions: false, renderer: "svg"};

// The specification with a drawing's words, scales and data.
function filled(specification, {words, scales = {}, datasets}, width) {
  const worded = JSON.stringify(specification, (_, value) =>
    typeof value === "string" && value.startsWith("$") ? words[value] : value);
  const whole = {...JSON.parse(worded), datasets};
  // A layer without data would leave its scale without an end.
  whole.layer &&= whole.layer.filter((layer) => datasets[layer.data?.name]?.length);
  for (const {encoding} of whole.layer ?? []) {
    for (const axis of ["x", "y"]) {
      if (scales[axis] !== "log" || !encoding[axis]) continue;
      encoding[axis].scale.type = "log";
      delete encoding[axis].scale.zero;
    }
  }
  if (width < NARROW) whole.config.legend.columns = 1;
  return whole;
}

export const embed = (node, specification, drawing) =>
  vegaEmbed(node, filled(specification, drawing, node.clientWidth), OPTIONS);

// A drawing that follows what its reader chooses: `content` gives what it shows now; `entitle` is
// given its title, and `wire` its view, whenever it is drawn.
export class LiveDrawing {
  #node;
  #specification;
  #content;
  #entitle;
  #wire;
  #embedded = null; // null until it is drawn
  #isDrawing = false;
  #isStale = false; // something has changed since it was last asked what to show

  constructor(node, specification, {content, entitle, wire}) {
    this.#node = node;
    this.#specification = specification;
    this.#content = content;
    this.#entitle = entitle;
    this.#wire = wire;
  }

  // Draw it anew, which other axes need. Whoever asks faster than it can draw makes no queue: what
  // is under way is followed by one drawing of what is asked by then.
  async draw() {
    this.#isStale = true;
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    try {
      while (this.#isStale) await this.#drawOnce();
    } finally {
      this.#isDrawing = false;
    }
  }

  async #drawOnce() {
    this.#isStale = false;
    const drawing = this.#content();
    this.#entitle(drawing.title);
    this.#embedded?.finalize();
    this.#embedded = null;
    this.#embedded = await embed(this.#node, this.#specification, drawing);
    this.#wire(this.#embedded.view);
  }

  // Show other data on the same axes.
  refresh() {
    if (this.#isDrawing) this.#isStale = true;
    if (this.#isDrawing || !this.#embedded) return;
    for (const [name, rows] of Object.entries(this.#content().datasets)) {
      // What is empty is so for these axes, and its layer was left out.
      if (rows.length) this.#embedded.view.data(name, rows);
    }
    this.#embedded.view.runAsync();
  }

  signal(name, value) {
    this.#embedded?.view.signal(name, value).runAsync();
  }
}
