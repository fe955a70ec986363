// Elements of the page made from values; a text stays text, whatever it says.

export function element(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// Fill a select with texts, whose values are their places, and choose one.
export function offer(select, texts, chosen) {
  select.append(...texts.map((text, at) => element("option", {value: at}, text)));
  select.value = String(chosen);
}

// The numbers that selects have as their values, by the names of the selects.
export const numbersOf = (selects) => Object.fromEntries(
  Object.entries(selects).map(([name, select]) => [name, Number(select.value)]));
