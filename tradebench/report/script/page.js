// The page comes alive: its tables can be sorted, and each group of points explored.

import {explore} from "./explorer.js";
import {makeSortable} from "./sorting.js";

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll(".explorer").forEach(explore);
