// Numbers as the page writes them.

// Three significant digits, as `units.py` has them: 0.250 and 44.5, and every digit of 1565.
export function digits(value) {
  if (value === 0) return "0";
  const place = Math.floor(Math.log10(Math.abs(Number(value.toPrecision(3)))));
  const decimals = Math.min(100, Math.max(0, 2 - place));
  return value.toLocaleString("en", {
    minimumFractionDigits: decimals, maximumFractionDigits: decimals,
  });
}

// A value, with the ends of its interval if it has one.
export const spanned = ([value, low, high]) =>
  digits(value) + (low === undefined ? "" : ` (${digits(low)} to ${digits(high)})`);

// One margin for both sides, the larger, in as many digits as an error deserves.
export const marginal = ([value, low, high]) =>
  `${digits(value)} ± ${Number(Math.max(high - value, value - low).toPrecision(2))}`;

export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

// A model that needs a few MiB would be 0.00 of everything in GiB.
export const unitOf = (mostGib) =>
  mostGib > 1 ? {name: "GiB", perGib: 1} : {name: "MiB", perGib: 1024};

export const sized = (gib, unit) => `${digits(gib * unit.perGib)} ${unit.name}`;
