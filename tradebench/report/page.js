"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, at) => row.cells[at].dataset.value ?? row.cells[at].textContent.trim();
  heads.forEach((head, at) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [key(a, at), key(b, at)];
      // What has no value comes last, whichever way the others are sorted.
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}

// Okabe and Ito's colours with black replaced, so that every one stands out on light and dark.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C28400", "#3A9BD1", "#7F7F7F"];
// Drawn around 0, 0: circle, square, triangle, diamond, triangle down, plus, cross.
const SHAPES = [
  "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z", "M-4.5,-4.5h9v9h-9z", "M0,-6L5.5,4.5H-5.5z",
  "M0,-6.5L6.5,0L0,6.5L-6.5,0z", "M0,6L5.5,-4.5H-5.5z",
  "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z", "M-6,-4L-4,-6L0,-2L4,-6L6,-4L2,0L6,4L4,6L0,2L-4,6L-6,4L-2,0z",
];
const GIB = 2 ** 30;
const make = (name, attributes, text) => {
  const svg = ["svg", "g", "path", "line", "text", "title", "rect"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
const digits = (value) => Number(value.toPrecision(3)).toLocaleString("en", {maximumFractionDigits: 6});

// Round places for about five marks on an axis, on powers where it is logarithmic.
function places(low, high, log) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const lead of [1, 2, 5]) found.push(lead * 10 ** power);
    }
    const inside = found.filter((each) => each >= low && each <= high);
    const powers = inside.filter((each) => Number.isInteger(Math.log10(each)));
    return inside.length > 7 && powers.length > 1 ? powers : inside;
  }
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const first = Math.ceil(low / step), last = Math.floor(high / step);
  return Array.from({length: last - first + 1}, (_, at) => (first + at) * step);
}

function axis(values, from, to) {
  const least = Math.min(...values), most = Math.max(...values);
  const log = least > 0 && most / least > 30;
  const room = (most - least || Math.abs(most) || 1) * 0.06;
  const low = log ? least / 1.2 : least - room, high = log ? most * 1.2 : most + room;
  const bend = log ? Math.log : (each) => each;
  const scale = (each) => from + (to - from) * (bend(each) - bend(low)) / (bend(high) - bend(low));
  return {scale, log, marks: places(low, high, log)};
}

for (const root of document.querySelectorAll(".explorer")) {
  const find = (name) => root.querySelector(name);
  const data = JSON.parse(find("script").textContent);
  const rows = new Map([...root.parentElement.querySelectorAll("tr[data-number]")]
    .map((row) => [Number(row.dataset.number), row]));
  const most = Math.max(1e-3 * GIB, ...data.points.filter((each) => each.needs).map((each) => each.needs[1]));
  const [unit, bytes] = most > GIB ? ["GiB", GIB] : ["MiB", GIB / 1024];
  const size = (number) => `${digits(number / bytes)} ${unit}`;
  const largest = 1.02 * most / bytes;
  const [slider, gpus, across, up, filter] =
    [".memory", ".gpus", ".across", ".up", ".filter"].map(find);
  let inside = null;
  const marks = [...root.querySelectorAll("[data-gib]")];
  slider.max = unit === "GiB" ? Math.max(largest, 192) : largest;
  slider.value = slider.max;
  gpus.value = "8";
  // A model of a few MiB fits every card: marks would only tell that.
  for (const mark of marks) mark.hidden = unit === "MiB" || Number(mark.dataset.gib) > 1.1 * slider.max;

  const verdict = (point) => {
    if (!point.needs || point.gpus > gpus.value) return "no";
    if (point.needs[1] <= slider.value * bytes) return "fits";
    return point.needs[0] <= slider.value * bytes ? "tight" : "no";
  };
  const named = (point) => filter.value.toLowerCase().split(/\s+/)
    .every((word) => point.name.toLowerCase().includes(word));
  const unlimited = () => Number(slider.value) >= Number(slider.max) && gpus.value === "8";
  const kept = (point) => (unlimited() || verdict(point) !== "no") && named(point)
    && (!inside || inside.has(point.number));

  const cost = (point) => point.rate
    ? `${digits(point.gpus * 1e6 / point.rate / 3600)} device-hours per million tokens` : "";
  const described = (point) => [
    point.needs && `${size(point.needs[1])} on each of ${point.gpus}`,
    point.step && `a step takes ${point.step}`, cost(point),
  ].filter(Boolean).join("; ");
  const accuracy = data.columns.findIndex((each) => each.name.startsWith("accuracy."));
  const rank = (point) => accuracy >= 0 && point.values[accuracy] !== null
    ? -point.values[accuracy] : point.rate ? point.gpus / point.rate : Infinity;

  function answer() {
    const fitting = data.points.filter((each) => verdict(each) === "fits");
    const tight = data.points.filter((each) => verdict(each) === "tight").length;
    const where = unlimited() ? "Choose a size to see what fits it. Without a limit"
      : `On ${gpus.value} × ${size(slider.value * bytes)}`;
    const goal = accuracy >= 0 ? "the most accurate" : "the cheapest by device time";
    const best = [...fitting].sort((a, b) => rank(a) - rank(b)).slice(0, 3);
    if (!best.length) return `${where} no point of this run fits${tight ? `; ${tight} may, just` : ""}.`;
    const rest = best.slice(1).map((each) => `No. ${each.number}, ${each.name}`).join("; then ");
    return `${where}, ${fitting.length} points fit${tight ? ` and ${tight} may, just` : ""} (${data.kind}). `
      + `Of these ${goal}: No. ${best[0].number}, ${best[0].name} (${described(best[0])}`
      + (accuracy >= 0 ? `; ${data.columns[accuracy].head}: ${shown(best[0], accuracy)}` : "") + ")."
      + (rest ? ` Next: ${rest}.` : "");
  }
  const shown = (point, at) => point.values[at] === null ? "no value"
    : `${digits(point.values[at] / data.columns[at].factor)} ${point.errors[at]}`.trim();

  function draw() {
    const [width, height, left, bottom] = [760, 400, 70, 52];
    const [x, y] = [Number(across.value), Number(up.value)];
    const drawn = data.points.filter((each) => each.values[x] !== null && each.values[y] !== null);
    const value = (point, at) => point.values[at] / data.columns[at].factor;
    const svg = make("svg", {viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `${data.columns[y].head} against ${data.columns[x].head}`});
    find(".plot").replaceChildren(svg);
    if (!drawn.length) return;
    const [h, v] = [axis(drawn.map((each) => value(each, x)), left, width - 16),
      axis(drawn.map((each) => value(each, y)), height - bottom, 14)];
    for (const at of h.marks) {
      svg.append(make("line", {class: "grid", x1: h.scale(at), x2: h.scale(at), y1: 14, y2: height - bottom}));
      svg.append(make("text", {x: h.scale(at), y: height - bottom + 17, "text-anchor": "middle"}, digits(at)));
    }
    for (const at of v.marks) {
      svg.append(make("line", {class: "grid", x1: left, x2: width - 16, y1: v.scale(at), y2: v.scale(at)}));
      svg.append(make("text", {x: left - 8, y: v.scale(at) + 4, "text-anchor": "end"}, digits(at)));
    }
    const head = (at, log) => `${data.columns[at].head}${log ? ", log" : ""}, ${data.columns[at].better} is better`;
    svg.append(make("text", {x: (left + width) / 2, y: height - 8, "text-anchor": "middle"}, head(x, h.log)));
    svg.append(make("text", {transform: `translate(15 ${(height - bottom) / 2}) rotate(-90)`,
      "text-anchor": "middle"}, head(y, v.log)));
    for (const point of drawn) {
      const mark = make("path", {d: SHAPES[point.shape], "data-number": point.number,
        transform: `translate(${h.scale(value(point, x))} ${v.scale(value(point, y))})`,
        stroke: COLOURS[point.colour], fill: point.label === "front" ? COLOURS[point.colour] : "var(--page)",
        class: kept(point) ? "mark" : "mark out"});
      mark.append(make("title", {}, `No. ${point.number}, ${point.name}: ${described(point)}`));
      mark.addEventListener("click", () => open(point));
      svg.append(mark);
    }
    brush(svg, drawn.map((each) => [each.number, h.scale(value(each, x)), v.scale(value(each, y))]));
  }

  function brush(svg, spots) {
    let start = null, box = null;
    const at = (event) => {
      const turned = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      return [turned.x, turned.y];
    };
    const bounds = (event) => {
      const [x, y] = at(event);
      return [Math.min(x, start[0]), Math.min(y, start[1]), Math.abs(x - start[0]), Math.abs(y - start[1])];
    };
    svg.addEventListener("pointerdown", (event) => { start = at(event); });
    svg.addEventListener("pointermove", (event) => {
      if (!start) return;
      const [x, y, width, height] = bounds(event);
      if (!box && width + height > 6) {
        box = svg.appendChild(make("rect", {class: "brush"}));
        svg.setPointerCapture(event.pointerId);
      }
      if (box) for (const [key, each] of Object.entries({x, y, width, height})) box.setAttribute(key, each);
    });
    svg.addEventListener("pointerup", (event) => {
      if (box) {
        const [x, y, width, height] = bounds(event);
        inside = new Set(spots.filter(([, a, b]) => a >= x && a <= x + width && b >= y && b <= y + height)
          .map(([number]) => number));
        update();
      }
      start = box = null;
    });
  }

  function mark(number) {
    for (const each of root.querySelectorAll(".mark")) {
      each.classList.toggle("chosen", Number(each.dataset.number) === number);
    }
  }

  // What the memory is for, at the peak and, where a prediction has it, over one step.
  function memory(point) {
    if (!point.parts.some((each) => each > 0)) return [];
    const [width, height] = [560, point.moments.length ? 150 : 26];
    const shape = point.moments.length ? point.moments : [point.parts];
    const most = Math.max(...shape.map((each) => each.reduce((sum, part) => sum + part, 0)));
    const svg = make("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Memory by category"});
    const below = shape.map(() => 0), key = make("ul", {class: "parts"});
    data.categories.forEach(([name, colour], at) => {
      if (!shape.some((each) => each[at])) return;
      const low = [...below];
      shape.forEach((each, moment) => { below[moment] += each[at]; });
      if (point.moments.length) {
        const x = (moment) => width * moment / Math.max(1, shape.length - 1), y = (value) => height * (1 - value / most);
        const edge = [...below.map((each, moment) => [x(moment), y(each)]),
          ...low.map((each, moment) => [x(moment), y(each)]).reverse()];
        svg.append(make("path", {fill: colour, d: `M${edge.map((each) => each.map((part) => part.toFixed(1)).join(",")).join("L")}z`}));
      } else {
        svg.append(make("rect", {fill: colour, x: width * low[0] / most, y: 0, width: width * shape[0][at] / most, height}));
      }
      const item = make("li", {}, `${name} ${size(point.parts[at])} at the peak`);
      const sample = make("svg", {viewBox: "0 0 10 10", class: "sample"});
      sample.append(make("rect", {fill: colour, x: 0, y: 0, width: 10, height: 10}));
      item.prepend(sample);
      key.append(item);
    });
    const words = point.moments.length ? `One step from start to end, predicted; the highest moment is ${size(most)}.`
      : "Tensor memory at the peak of training.";
    return [make("h4", {}, "Memory by category"), svg, key, make("p", {class: "note"}, words)];
  }

  function open(point) {
    const card = find(".point-card");
    card.replaceChildren(make("h3", {}, `No. ${point.number}: ${point.name}`),
      make("p", {}, [point.status, ...point.reasons, point.advice, described(point)].filter(Boolean).join(". ")));
    const facts = make("dl");
    data.columns.forEach((column, at) => facts.append(make("dt", {}, column.head), make("dd", {}, shown(point, at))));
    card.append(make("p", {class: "note"}, `These numbers are ${data.kind}. ${data.accuracyNote}`), facts, ...memory(point));
    for (const [title, text] of [["Suite file", point.yaml], ["Settings of transformers and peft", point.code]]) {
      if (!text) continue;
      const button = make("button", {type: "button"}, "Copy");
      const block = make("pre", {tabindex: "0"});
      block.append(make("code", {}, text));
      button.addEventListener("click", () => {
        getSelection().selectAllChildren(block);
        // A page opened as a file may not have the clipboard; the text is selected all the same.
        navigator.clipboard?.writeText(text).then(() => { button.textContent = "Copied"; }, () => {});
      });
      card.append(make("h4", {}, title), button, block);
    }
    find("dialog").showModal();
  }

  function update() {
    find(".size").textContent = size(slider.value * bytes);
    find(".answer").textContent = answer();
    for (const point of data.points) {
      const row = rows.get(point.number);
      if (row) row.hidden = !kept(point);
    }
    draw();
  }

  for (const select of [across, up]) {
    data.columns.forEach((column, at) => select.append(make("option", {value: at}, column.head)));
    select.addEventListener("change", () => { inside = null; update(); });
  }
  across.value = "0";
  up.value = String(Math.min(data.columns.length - 1, accuracy >= 0 ? accuracy : 1));
  for (const each of [slider, filter, gpus]) each.addEventListener("input", update);
  for (const each of marks) each.addEventListener("click", () => { slider.value = each.dataset.gib; update(); });
  find(".all").addEventListener("click", () => { slider.value = slider.max; gpus.value = "8"; update(); });
  find(".clear").addEventListener("click", () => {
    inside = null; filter.value = ""; slider.value = slider.max; gpus.value = "8"; update();
  });
  for (const [number, row] of rows) {
    const point = data.points.find((each) => each.number === number);
    row.addEventListener("focus", () => mark(number));
    row.addEventListener("keydown", (event) => { 
      if (event.key !== "Enter" || event.target !== row) return;
      // The same key would press the card's first button, which closes it.
      event.preventDefault();
      open(point);
    });
  }
  const key = (slot, names, sign) => slot
    ? names.map((name, at) => sign(name, at)) : [];
  const sample = (shape, colour) => {
    const svg = make("svg", {viewBox: "-8 -8 16 16", width: 14, height: 14, "aria-hidden": "true"});
    svg.append(make("path", {d: SHAPES[shape], stroke: colour, fill: colour}));
    return svg;
  };
  const entry = (shape, colour, text) => {
    const node = make("span", {class: "entry"});
    node.append(sample(shape, colour), ` ${text}`);
    return node;
  };
  find(".key").append(
    ...key(data.colourSlot, data.colours, (name, at) => entry(0, COLOURS[at], `${data.colourSlot}: ${name}`)),
    ...key(data.shapeSlot, data.shapes, (name, at) => entry(at, "currentcolor", `${data.shapeSlot}: ${name}`)));
  root.hidden = !data.columns.length;
  if (data.columns.length) update();
}
