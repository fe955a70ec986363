// Every table that can be sorted, and every explorer: the drawings of one group of points, the table
// of them, and what fits. It is a module, so it runs after that of Vega, which stands before it.

const GIB_OF_LARGEST_CARD = 256;
const NARROW = 560; // pixels, in which legends no longer stand beside each other
const FINE = 1000; // of a step's length and of its highest memory, the steps that `explorer.py` counts in
const HAIR = 0.05;
const MOODS = {fits: "good", tight: "unsure", no: "bad"};
const WORDS = {fits: "fits", tight: "is tight on", no: "does not fit"};
const MANY = 60; // beyond this the intervals of points that nobody wants hide those of the front
// How far a mark is filled: surely on the front, perhaps, not, or nothing to compare.
const FILLED = {front: 1, possible: 0.4, dominated: 0, incomplete: 0};

const digits = (value) => Number(value.toPrecision(3)).toLocaleString("en", {maximumFractionDigits: 6});

function element(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function sortable(table) {
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

// The specification with words for its texts that start with `$`, and the data that it names.
async function embed(node, specification, words, datasets) {
  const fill = (_, value) => (typeof value === "string" && value.startsWith("$") ? words[value] : value);
  const filled = JSON.parse(JSON.stringify(specification), fill);
  // A layer without data would leave its scale without an end.
  filled.layer &&= filled.layer.filter((layer) => datasets[layer.data?.name]?.length);
  for (const layer of filled.layer ?? []) {
    for (const axis of ["x", "y"]) {
      if (words[`${axis} scale`] !== "log" || !layer.encoding[axis]) continue;
      layer.encoding[axis].scale.type = "log";
      delete layer.encoding[axis].scale.zero;
    }
  }
  if (node.clientWidth < NARROW) filled.config.legend.columns = 1;
  // The interpreter needs no code made from text, which this page's policy forbids.
  const {view} = await vegaEmbed(node, {...filled, datasets}, {ast: true, actions: false, renderer: "svg"});
  return view;
}

// The values of a front's staircase: none is behind another in both of two costs.
function staircase(points) {
  let best = Infinity;
  return points.sort((a, b) => a.costs[0] - b.costs[0] || a.costs[1] - b.costs[1])
    .filter(({costs}) => (costs[1] < best ? ((best = costs[1]), true) : false));
}

// What `explorer.py` packed: JSON in gzip in base 64.
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

async function explore(root) {
  const find = (name) => root.querySelector(name);
  const data = await unpacked(find("script").textContent);
  const {columns, choices, points} = data;
  const byNumber = new Map(points.map((point) => [point.number, point]));
  const rows = new Map([...root.querySelectorAll("tr[data-number]")]
    .map((row) => [Number(row.dataset.number), row]));
  const chosen = {filter: find(".filter"), gpus: find(".gpus"), memory: find(".memory"),
    tokens: find(".tokens"), price: find(".price")};
  const marks = [...root.querySelectorAll("[data-gib]")];
  const accuracy = columns.findIndex((each) => each.name.startsWith("accuracy."));
  // What one asks of a point, beside its memory.
  const asked = ["accuracy.", "device_seconds_per_token", "step_seconds"]
    .map((name) => columns.findIndex((each) => each.name.startsWith(name))).find((at) => at >= 0) ?? 0;
  let inside = null;
  let scatter = null, refresh = null;

  // What memory each point needs, on a slider that is even in powers of two.
  const needed = points.flatMap((each) => each.needs ?? []);
  const [least, most] = [Math.min(...needed, Infinity), Math.max(...needed, 0)];
  const [unit, perGib] = most > 1 ? ["GiB", 1] : ["MiB", 1024];
  const size = (gib) => `${digits(gib * perGib)} ${unit}`;
  const top = unit === "GiB" ? Math.max(most, GIB_OF_LARGEST_CARD) : most;
  const limit = () => 2 ** Number(chosen.memory.value);
  const unlimited = () => Number(chosen.memory.value) > Number(chosen.memory.max) - 1e-6
    && chosen.gpus.selectedIndex === chosen.gpus.options.length - 1;

  const verdict = (point) => {
    if (!point.needs || point.gpus > Number(chosen.gpus.value)) return "no";
    if (point.needs[1] <= limit() * 1.0001) return "fits";
    return point.needs[0] <= limit() ? "tight" : "no";
  };
  const kept = (point) => (unlimited() || verdict(point) !== "no")
    && (!inside || inside.has(point.number))
    && chosen.filter.value.toLowerCase().split(/\s+/).every((word) => point.name.toLowerCase().includes(word));

  const shown = (point, at) => {
    const [value, low, high] = point.values[at] ?? [];
    if (value === undefined) return "no value";
    if (low === undefined) return digits(value);
    return data.kind === "predicted" ? `${digits(value)} (${digits(low)} to ${digits(high)})`
      : `${digits(value)} ± ${Number(Math.max(high - value, value - low).toPrecision(2))}`;
  };
  // Hours on all devices of a point, and of one, with the ends of their interval.
  const cost = (point) => {
    const tokens = Number(chosen.tokens.value), price = Number(chosen.price.value);
    if (!point.cost || !tokens) return "";
    const hours = (times) => point.cost.map((each) => each * tokens * times);
    const span = ([value, low, high]) => digits(value) + (low === undefined ? "" : ` (${digits(low)} to ${digits(high)})`);
    const each = point.gpus === 1 ? "" : ` = ${span(hours(1))} device-hours`;
    return `${digits(tokens)} million tokens take ${span(hours(1 / point.gpus))} hours${each}`
      + (price ? `, $${span(hours(price))}` : "");
  };
  const described = (point) => [
    point.needs && `${size(point.needs[1])} on ${point.gpus === 1 ? "one device" : `each of ${point.gpus} devices`}`,
    point.step && `a step takes ${point.step}`, cost(point),
  ].filter(Boolean).join("; ");
  // A machine is paid for whole, so what ends first on it is what costs least.
  const rank = (point) => (accuracy >= 0 && point.values[accuracy] ? -point.values[accuracy][0]
    : point.cost ? point.cost[0] / point.gpus : Infinity);
  // Of predictions that take the same time, the one that leaves more of the model: nobody knows which
  // of them becomes the better one, and a hair is no reason for fewer bits or a smaller rank.
  function settle(ranked) {
    if (accuracy >= 0 || data.kind !== "predicted" || !ranked.length) return ranked;
    const near = ranked.filter((each) => rank(each) <= rank(ranked[0]) * (1 + HAIR));
    const left = (each) => each.left[0] * 1e6 + each.left[1] * 1e4 + each.left[2];
    const best = near.reduce((one, other) => (left(other) > left(one) ? other : one));
    return [best, ...ranked.filter((each) => each !== best)];
  }
  const place = () => {
    const mark = marks.find((each) => Math.abs(Number(each.dataset.gib) - limit()) < 0.01);
    const each = mark ? mark.textContent : size(limit());
    return find(".machines").hidden ? each : `${chosen.gpus.value} × ${each}`;
  };

  function answer() {
    const fitting = points.filter((each) => verdict(each) === "fits");
    const tight = points.filter((each) => verdict(each) === "tight").length;
    if (unlimited() && data.kind === "predicted") {
      return `Choose how many GPUs you have and their size. Without a limit, ${fitting.length} points have a prediction.`;
    }
    const where = unlimited() ? "With any memory" : `On ${place()}`;
    const goal = accuracy >= 0 ? "The most accurate"
      : "The fastest to train on it, or within 5 % of that and with more bits or a larger rank";
    const degrees = [...new Set(points.filter((each) => each.needs).map((each) => each.gpus))].sort((a, b) => a - b);
    const untried = degrees.includes(Number(chosen.gpus.value)) || unlimited() ? ""
      : ` This run has points for ${degrees.join(", ")} devices only, and others are not known.`;
    const [best, ...rest] = settle(fitting.sort((a, b) => rank(a) - rank(b))).slice(0, 3);
    if (!best) return `${where} no point of this run fits${tight ? `; ${tight} may, just` : ""}.${untried}`;
    const scored = accuracy >= 0 ? `; ${columns[accuracy].head}: ${shown(best, accuracy)}` : "";
    return `${where}, ${fitting.length} ${fitting.length === 1 ? "point fits" : "points fit"}`
      + `${tight ? ` and ${tight} may, just` : ""} (${data.kind}). ${goal}: No. ${best.number}, ${best.name} `
      + `(${described(best)}${scored}).`
      + (rest.length ? ` Next: ${rest.map((each) => `No. ${each.number}, ${each.name}`).join("; then ")}.` : "") + untried;
  }

  const head = (at, scale) => `${columns[at].head}${scale === "log" ? ", log" : ""}, ${columns[at].better} is better`;
  const spread = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return low > 0 && high / low > 30 ? "log" : "linear";
  };
  const axes = () => [Number(find(".across").value), Number(find(".up").value)];

  function spots(scale) {
    const [x, y] = axes();
    // What is on the front lies on top of what is not.
    const ordered = points.toSorted((a, b) => FILLED[a.label] - FILLED[b.label]);
    const every = ordered.filter((each) => each.values[x] && each.values[y]).map((point) => {
      const [[across, left = null, right = null], [up, low = null, high = null]] = [point.values[x], point.values[y]];
      return {
        number: point.number, name: `No. ${point.number}: ${point.name}`, status: point.status,
        standing: point.standing, filled: FILLED[point.label], kept: kept(point), needs: described(point),
        colour: data.colours[point.colour], shape: data.shapes[point.shape],
        x: across, x_low: left, x_high: right, y: up, y_low: low, y_high: high,
        across: `${columns[x].head}: ${shown(point, x)}`, up: `${columns[y].head}: ${shown(point, y)}`,
      };
    });
    // No bar of a logarithmic axis can reach zero.
    const barred = (axis) => every.filter((each) => each[`${axis}_low`] !== null
      && (each.filled || every.length <= MANY)
      && (scale[axis] === "linear" || each[`${axis}_low`] > 0));
    return {points: every, x_bars: barred("x"), y_bars: barred("y")};
  }

  async function drawScatter() {
    const [x, y] = axes();
    const ended = points.filter((each) => each.values[x] && each.values[y])
      .map((each) => [each.values[x][0], each.values[y][0]]);
    const scale = {x: spread(ended.map((each) => each[0])), y: spread(ended.map((each) => each[1]))};
    const sign = (at) => (columns[at].better === "more" ? -1 : 1);
    const front = staircase(ended.map(([a, b]) => ({x: a, y: b, costs: [sign(x) * a, sign(y) * b]})));
    const bound = (at, name) => (columns[at].limit === null ? [] : [{[name]: columns[at].limit}]);
    const words = {"$x": head(x, scale.x), "$y": head(y, scale.y), "x scale": scale.x, "y scale": scale.y};
    find(".plot").setAttribute("aria-label", `${columns[y].head} against ${columns[x].head}`);
    const drawn = spots(scale);
    scatter = await embed(find(".plot"), data.charts.scatter, words,
      {...drawn, front, x_limit: bound(x, "x"), y_limit: bound(y, "y")});
    refresh = () => {
      for (const [name, each] of Object.entries(spots(scale))) {
        if (drawn[name].length) scatter.data(name, each);
      }
      scatter.runAsync();
    };
    const every = drawn.points;
    scatter.addSignalListener("brush", (_, range) => {
      const within = ([low, high], value) => value >= Math.min(low, high) && value <= Math.max(low, high);
      inside = range.x ? new Set(every.filter((each) => within(range.x, each.x) && within(range.y, each.y))
        .map((each) => each.number)) : null;
      update();
    });
    scatter.addEventListener("click", (_, item) => item?.datum?.number && open(byNumber.get(item.datum.number)));
  }

  async function drawMaps() {
    const [across, up, each, value] = [".map-across", ".map-up", ".map-each", ".map-value"]
      .map((name) => Number(find(name).value));
    const better = columns[value].better === "more" ? -1 : 1;
    const cells = new Map();
    for (const point of points) {
      if (!point.values[value] || point.at[across] === null || !kept(point)) continue;
      const place = [point.at[each] ?? 0, point.at[up], point.at[across]];
      const cell = cells.get(place.join()) ?? {place, count: 0, best: point};
      cell.count += 1;
      if (better * point.values[value][0] < better * cell.best.values[value][0]) cell.best = point;
      cells.set(place.join(), cell);
    }
    const values = [...cells.values()].map(({best}) => best.values[value][0]);
    const bend = spread(values) === "log" ? Math.log : (number) => number;
    const [low, high] = [Math.min(...values), Math.max(...values)].map(bend);
    const named = (choice, at) => choices[choice].values[at];
    const pages = each < 0 ? [0] : choices[each].values.map((_, at) => at);
    const drawn = pages.flatMap((page) => choices[up].values.flatMap((_, row) => choices[across].values.map((_, column) => {
      const cell = cells.get([page, row, column].join());
      const found = cell && cell.best.values[value][0];
      return {
        across: named(across, column), up: named(up, row), each: each < 0 ? "every point" : `${choices[each].title}: ${named(each, page)}`,
        text: cell ? digits(found) : "-", share: cell ? (bend(found) - low) / (high - low || 1) : null,
        number: cell?.best.number, name: cell ? `No. ${cell.best.number}: ${cell.best.name}` : "no point",
        points: cell ? `${cell.count} points` : "0 points",
      };
    })));
    find(".map-title").textContent = `${columns[value].head}, the best of the points kept above, by `
      + `${choices[up].title.toLowerCase()} and ${choices[across].title.toLowerCase()}`;
    const view = await embed(find(".maps"), data.charts.maps,
      {"$x": choices[across].title, "$y": choices[up].title, "$value": columns[value].head}, {cells: drawn});
    view.addEventListener("click", (_, item) => item?.datum?.number && open(byNumber.get(item.datum.number)));
  }

  // What memory is for: over one step where a prediction has it, else at the peak.
  function memory(point, node) {
    const held = point.parts.map((part, place) => ({category: data.categories[place], place, size: part * perGib, text: size(part)}))
      .filter((each) => each.size);
    if (!held.length) return;
    node.append(element("h4", {}, "Memory by category"));
    const drawing = node.appendChild(element("div", {class: "plot small", role: "img", "aria-label": "Memory by category"}));
    node.append(element("p", {}, `At the peak: ${held.map((each) => `${each.category} ${each.text}`).join(", ")}.`));
    const words = {"$y": `Memory (${unit})`};
    if (!point.moments) {
      node.append(element("p", {class: "note"}, "Tensor memory at the peak of training."));
      embed(drawing, data.charts.peak, words, {parts: held});
      return;
    }
    node.append(element("p", {class: "note"}, `One step from start to end, predicted; the highest moment is ${size(point.moments.most)}.`));
    const {most, at, sizes, parts} = point.moments;
    const moments = sizes.flatMap(([place, line]) => line.map((share, moment) => {
      const gib = share * most / FINE;
      return {at: at[moment], place, category: data.categories[place], size: gib * perGib, text: size(gib)};
    }));
    embed(drawing, data.charts.memory, words, {moments, parts: parts.map(([name, start]) => ({name, at: start}))});
  }

  function copied(title, content) {
    if (!content) return [];
    const button = element("button", {type: "button"}, "Copy");
    const block = element("pre", {tabindex: "0"}, element("code", {}, content));
    button.addEventListener("click", () => {
      getSelection().selectAllChildren(block);
      // A page opened as a file may not have the clipboard; the text is selected all the same.
      navigator.clipboard?.writeText(content).then(() => { button.textContent = "Copied"; }, () => {});
    });
    return [element("h4", {}, title), button, block];
  }

  function open(point) {
    const card = find(".point-card");
    const facts = element("dl", {});
    columns.forEach((column, at) => facts.append(element("dt", {}, column.head), element("dd", {}, shown(point, at))));
    card.replaceChildren(element("h3", {}, `No. ${point.number}: ${point.name}`),
      element("p", {}, [point.status, ...point.reasons, point.advice, described(point)].filter(Boolean).join(". ")),
      element("p", {class: "note"}, `These numbers are ${data.kind}. ${data.accuracyNote}`), facts);
    const drawn = card.appendChild(element("div", {}));
    card.append(...copied("Suite file: save it as point.yaml, then run tradebench run point.yaml", point.yaml), ...copied("Settings of transformers and peft", point.code));
    find("dialog").showModal();
    // A drawing measures its place, which has no width before it is shown.
    memory(point, drawn);
  }

  // The table's verdict on a planned point is on the device of the plan, until another is chosen.
  function judge(status, point) {
    status.dataset.planned ??= `${status.className}|${status.textContent}`;
    const [looks, words] = status.dataset.planned.split("|");
    const chosenHere = !unlimited() && point.needs && data.kind === "predicted";
    status.className = chosenHere ? `status ${MOODS[verdict(point)]}` : looks;
    status.textContent = chosenHere ? `${WORDS[verdict(point)]} ${place()}` : words;
  }

  function update() {
    find(".size").textContent = unlimited() ? "any memory" : size(limit());
    chosen.memory.setAttribute("aria-valuetext", size(limit()));
    find(".answer").textContent = answer();
    let count = 0;
    for (const point of points) {
      const keep = kept(point);
      count += keep;
      const row = rows.get(point.number);
      if (!row) continue;
      row.hidden = !keep;
      judge(row.querySelector(".status"), point);
    }
    find(".kept").textContent = `${count} of ${points.length} points are kept.`;
    refresh?.();
    if (data.crossed.length) drawMaps();
  }

  const options = (name, texts, value) => {
    const select = find(name);
    texts.forEach((each, at) => select.append(element("option", {value: at}, each)));
    select.value = String(value);
    return select;
  };
  const heads = columns.map((column) => column.head);
  for (const select of [options(".across", heads, 0), options(".up", heads, asked)]) {
    select.addEventListener("change", () => { inside = null; update(); drawScatter(); });
  }
  chosen.memory.min = Math.log2(least * 0.98);
  chosen.memory.max = Math.log2(top * 1.02);
  chosen.memory.value = chosen.memory.max;
  chosen.gpus.selectedIndex = chosen.gpus.options.length - 1;
  for (const each of Object.values(chosen)) each.addEventListener("input", update);
  find(".machines").hidden = points.every((point) => point.gpus === 1) && unit === "MiB";
  // A model of a few MiB fits every card: marks would only tell that.
  for (const mark of marks) mark.hidden = unit === "MiB" || Number(mark.dataset.gib) > top;
  for (const mark of marks) {
    mark.addEventListener("click", () => { chosen.memory.value = Math.log2(mark.dataset.gib); update(); });
  }
  const everything = () => {
    chosen.memory.value = chosen.memory.max;
    chosen.gpus.selectedIndex = chosen.gpus.options.length - 1;
  };
  find(".all").addEventListener("click", () => { everything(); update(); });
  find(".clear").addEventListener("click", () => {
    everything();
    inside = null;
    chosen.filter.value = "";
    update();
    drawScatter();
  });
  const answers = document.querySelectorAll(`[data-of="${root.dataset.group}"] tr[data-number]`);
  for (const row of [...rows.values(), ...answers]) {
    const number = Number(row.dataset.number);
    row.tabIndex = 0;
    row.addEventListener("focus", () => scatter?.signal("focus", number).runAsync());
    row.addEventListener("click", () => getSelection().isCollapsed && open(byNumber.get(number)));
    row.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.target !== row) return;
      // The same key would press the card's first button, which closes it.
      event.preventDefault();
      open(byNumber.get(number));
    });
  }
  if (data.crossed.length) {
    const titles = choices.map((choice) => choice.title);
    const [up, across, third = -1] = data.crossed;
    options(".map-across", titles, across);
    options(".map-up", titles, up);
    options(".map-value", heads, asked);
    options(".map-each", titles, third).prepend(element("option", {value: -1}, "nothing: one map"));
    find(".map-each").value = String(third);
    for (const name of [".map-across", ".map-up", ".map-each", ".map-value"]) find(name).addEventListener("change", drawMaps);
  } else find(".mapped").hidden = true;
  root.classList.add("ready");
  if (columns.length) {
    update();
    drawScatter();
  }
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll(".explorer").forEach(explore);
