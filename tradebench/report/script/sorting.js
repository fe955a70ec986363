// Tables that a click on a heading sorts.

const keyOfRow = (row, at) => row.cells[at].dataset.value ?? row.cells[at].textContent.trim();

function compared(one, other, isDescending) {
  // What has no value comes last, whichever way the others are sorted.
  if (one === "" || other === "") return (one === "") - (other === "");
  const order = isNaN(one) || isNaN(other) ? one.localeCompare(other) : one - other;
  return isDescending ? -order : order;
}

export function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const [body] = table.tBodies;
  heads.forEach((head, at) => head.addEventListener("click", () => {
    const isDescending = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
    body.append(...[...body.rows].sort((one, other) =>
      compared(keyOfRow(one, at), keyOfRow(other, at), isDescending)));
  }));
}
