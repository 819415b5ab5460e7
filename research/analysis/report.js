// What the page of experiments.report can do beyond being read: tables that sort, curves that zoom.
"use strict";

// A link into something folded unfolds it; newer browsers do so by themselves.
function reveal() {
  const target = document.getElementById(location.hash.slice(1));
  for (let place = target; place; place = place.parentElement) if (place.tagName === "DETAILS") place.open = true;
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", reveal);
if (location.hash) reveal();

const collator = new Intl.Collator("en", { numeric: true });

// Cells without a number come last, whichever way.
function compare(a, b, sign) {
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
  return sign * (isNaN(a) || isNaN(b) ? collator.compare(a, b) : a - b);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.ariaSort = "none";
    button.addEventListener("click", () => {
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      for (const other of heads) other.ariaSort = "none";
      head.ariaSort = sign > 0 ? "ascending" : "descending";
      const value = (row) => row.cells[column].dataset.value;
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b), sign)));
    });
  });
}

// Zooming is along the steps; the values fill the height. Units are those of the picture, see curves.py.
const SIZE = 1000, LEAST = 10;

for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector(".plot > svg");
  const [x0, x1] = chart.dataset.x.split(" ").map(Number), [y0, y1] = chart.dataset.y.split(" ").map(Number);
  const lines = [...svg.querySelectorAll("polyline")].map((line) =>
    line.getAttribute("points").split(" ").map((point) => point.split(",").map(Number)));
  let from = 0, to = SIZE;

  function label(list, first, last) {
    const items = [...list.children];
    items.forEach((item, i) => {
      item.textContent = Number((first + (last - first) * i / (items.length - 1)).toPrecision(5));
    });
  }

  function show(first, last) {
    const width = Math.min(Math.max(last - first, LEAST), SIZE);
    from = Math.min(Math.max(first, 0), SIZE - width);
    to = from + width;
    const seen = lines.flat().filter(([x]) => x >= from && x <= to).map(([, y]) => y);
    let top = 0, bottom = SIZE;
    if (width < SIZE && seen.length) {
      const least = Math.min(...seen), most = Math.max(...seen), margin = Math.max((most - least) / 20, 1);
      [top, bottom] = [least - margin, most + margin];
    }
    svg.setAttribute("viewBox", `${from} ${top} ${width} ${bottom - top}`);
    const x = (place) => x0 + (x1 - x0) * place / SIZE, y = (place) => y1 - (y1 - y0) * place / SIZE;
    label(chart.querySelector(".x"), x(from), x(to));
    label(chart.querySelector(".y"), y(top), y(bottom));
  }

  const tools = document.createElement("div");
  tools.className = "tools";
  tools.role = "group";
  tools.ariaLabel = "Zoom " + chart.querySelector("figcaption").textContent;
  const quarter = () => (to - from) / 4;
  for (const [name, act] of [
    ["zoom in", () => show(from + quarter(), to - quarter())],
    ["zoom out", () => show(from - 2 * quarter(), to + 2 * quarter())],
    ["earlier", () => show(from - 2 * quarter(), to - 2 * quarter())],
    ["later", () => show(from + 2 * quarter(), to + 2 * quarter())],
    ["all", () => show(0, SIZE)],
  ]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", act);
    tools.append(button);
  }
  chart.querySelector(".plot").before(tools);

  // Dragging over the picture zooms to what was passed, a double click shows all.
  const place = (event) => {
    const box = svg.getBoundingClientRect();
    return from + (to - from) * Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
  };
  let pressed = null;
  svg.addEventListener("pointerdown", (event) => {
    pressed = [place(event), event.clientX];
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointercancel", () => { pressed = null; });
  svg.addEventListener("pointerup", (event) => {
    if (pressed && Math.abs(event.clientX - pressed[1]) > 8) {
      const other = place(event);
      show(Math.min(pressed[0], other), Math.max(pressed[0], other));
    }
    pressed = null;
  });
  svg.addEventListener("dblclick", () => show(0, SIZE));
}
